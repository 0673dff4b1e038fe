"""Updates are handed on in the clients' order, and only so many wait for others."""

from collections.abc import Iterable

import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_federation import Federation, assert_bitwise, config_with, honest
from updates import uplink

from common.clients import ClientKey
from server.acceptance import order
from server.acceptance.order import ClientOrder
from server.roster.exchange import collect, send

KEYS = [ClientKey(modality, part) for modality in ("audio", "vision") for part in range(4)]
SIZE = 8  # bytes of an update here


@settings(deadline=None)
@given(st.permutations(KEYS), st.sets(st.sampled_from(KEYS)))
def test_each_modality_keeps_its_order_whatever_comes_when(
    coming: list[ClientKey], without: set[ClientKey]
) -> None:
    line, found = ClientOrder(KEYS), []
    for key in coming:
        line.settle(key, None if key in without else uplink(str(key)))
        found += [each.key for each in line.ready()]
    for modality in ("audio", "vision"):
        expected = [key for key in KEYS if key.modality == modality and key not in without]
        assert [key for key in found if key.modality == modality] == expected


def test_who_is_next_is_wanted_where_there_is_no_room_for_others() -> None:
    line = ClientOrder(KEYS, most_waiting=2 * SIZE)
    assert line.wanted() is None
    for key in (KEYS[2], KEYS[6]):
        line.settle(key, uplink(str(key)))
    assert list(line.ready()) == [] and line.wanted() == {KEYS[0], KEYS[4]}
    line.settle(KEYS[0], None)
    assert line.wanted() == {KEYS[1], KEYS[4]}
    line.settle(KEYS[1], uplink(str(KEYS[1])))
    assert [each.key for each in line.ready()] == [KEYS[1], KEYS[2]]
    assert line.wanted() is None


class Clients:
    """A grid with one reply a look, the last first; some clients never answer."""

    def __init__(self, silent: Iterable[int]) -> None:
        self.silent = set(silent)
        self.replies: dict[str, Message] = {}

    def push_messages(self, messages: list[Message]) -> list[str]:
        for number, message in enumerate(messages):
            key = message.metadata.__dict__["_message_id"] = f"message-{number}"
            if message.metadata.dst_node_id not in self.silent:
                self.replies[key] = honest(message, config_with("strategy=fedavg"))
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, keys: list[str]) -> Iterable[Message]:
        there = [key for key in keys if key in self.replies]
        return [self.replies.pop(key) for key in there[-1:]]


NODES = {20 + part: (f"audio-{part}",) for part in range(8)}


@pytest.mark.usefixtures("in_a_task")
@pytest.mark.parametrize("silent", [(), (20,), (20, 23, 27)])
def test_the_model_is_the_same_to_the_bit_where_replies_stay_with_the_grid(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[int, ...]
) -> None:
    monkeypatch.setattr("server.acceptance.update_filter.MOST_WAITING", 0)  # not held, as if later
    config, results = config_with("strategy=fedavg"), []
    seen: list[int] = []
    for room in (1 << 30, 1):
        federation = Federation(config, dict(NODES))
        monkeypatch.setattr(order.ClientOrder.__init__, "__defaults__", (room,))
        messages, grid = federation.ask(), Clients(silent)
        pending = send(grid, messages, 60)
        updates = federation.strategy.updates
        waiting = []

        def watched(pending=pending, updates=updates, grid=grid, waiting=waiting):
            for reply in collect(grid, pending, 1.0, intake=updates):
                yield reply
                waiting.append(updates._order._waiting)

        arrays, report = federation.merge(watched())
        results.append(arrays)
        seen.append(max(waiting))
        assert report.clients == {"audio": len(NODES) - len(silent)}
        assert report.rejected == tuple(sorted(f"audio-{n - 20}: no reply" for n in silent))
        assert len(pending) == len(silent)
    assert_bitwise(*results)
    several, one = seen
    assert several >= 4 * one > 0
