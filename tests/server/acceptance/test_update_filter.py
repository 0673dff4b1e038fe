"""Updates are handed on in the clients' order, and only so many wait for others."""

from collections.abc import Iterable
from functools import cache

import pytest
from fake_nodes import MemoryGrid
from flwr.app import Error, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_federation import Federation, config_with, honest, key
from wire import assert_same

from common.clients import ClientKey
from common.config import Config
from common.flower import BROKEN_REPLY
from server.acceptance import update_filter
from server.roster.exchange import collect, send
from server.strategy import StrategyState

KEYS = [ClientKey(modality, part) for modality in ("audio", "vision") for part in range(4)]
NODES = {20 + number: (str(key),) for number, key in enumerate(KEYS)}


def federation() -> Federation:
    return Federation(config_with("strategy=fedavg"), dict(NODES))


@cache
def after_a_round() -> StrategyState:
    """Return what a strategy knows when it has something to compare updates with."""
    former = federation()
    former.round(1)
    return former.strategy.state()


def second_round() -> tuple[Federation, dict[ClientKey, Message]]:
    run = federation()
    run.strategy.restore(after_a_round())
    return run, {key(message): honest(message, run.config) for message in run.ask(2)}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(KEYS), st.sets(st.sampled_from(KEYS)))
def test_an_update_is_handed_on_when_all_before_it_are_there_or_will_not_come(
    order: list[ClientKey], silent: set[ClientKey]
) -> None:
    run, replies = second_round()
    coming, came = [key for key in order if key not in silent], 0

    def counted() -> Iterable[Message]:
        nonlocal came
        for client in coming:
            came += 1
            yield replies[client]

    found = []
    for uplink in run.strategy.updates.take(counted()):
        found.append(uplink.key)
        before = [k for k in KEYS if k.modality == uplink.key.modality and k <= uplink.key]
        last = max(coming.index(k) + 1 for k in before if k not in silent)
        assert came == (len(coming) if silent & set(before) else last)
    for modality in ("audio", "vision"):
        expected = [key for key in KEYS if key.modality == modality and key not in silent]
        assert [key for key in found if key.modality == modality] == expected


def test_replies_that_cannot_be_had_cost_a_node_its_place() -> None:
    run, bad = federation(), KEYS[0]
    reason = "its reply came only in part (1 of 7)"

    def answer(message: Message, config: Config) -> Message:
        if key(message) == bad:
            return Message(Error(BROKEN_REPLY, reason), reply_to=message)
        return honest(message, config)

    for number in (1, 2, 3):
        _, report = run.round(number, answer)
        assert f"{bad} (node 20): {reason}" in report.rejected
    assert len(report.rejected) == 2 and "left out for the rest of the run" in report.rejected[1]
    assert bad not in {key(message) for message in run.ask(4)}


def test_those_next_in_line_are_wanted_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, replies = second_round()
    updates, limits = run.strategy.updates, run.strategy._filter.rules.limits
    assert updates.wanted() is None
    monkeypatch.setattr(update_filter, "MOST_WAITING", 3 * max(limits.values()))
    audio, vision = range(20, 24), range(24, 28)
    assert updates.wanted() == {*audio[:2], vision[0]}
    taking = updates.take(replies[KEYS[number]] for number in (1, 0, 4))
    assert [next(taking).key, next(taking).key] == KEYS[:2]
    assert updates.wanted() == {*audio[2:], vision[0]}
    assert [uplink.key for uplink in taking] == [KEYS[4]]
    # However little room there is, the first of each line are wanted.
    run, _ = second_round()
    monkeypatch.setattr(update_filter, "MOST_WAITING", 0)
    assert run.strategy.updates.wanted() == {audio[0], vision[0]}


class Clients(MemoryGrid):
    """Clients that have all answered, but for some who never do."""

    def __init__(self, silent: Iterable[int]) -> None:
        super().__init__()
        self.silent, self.largest_burst = set(silent), 0

    def answers(self, messages: list[Message]) -> list[Message | None]:
        answering = [m for m in reversed(messages) if m.metadata.dst_node_id not in self.silent]
        return [honest(message, config_with("strategy=fedavg")) for message in answering]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        self.largest_burst = max(self.largest_burst, len(found))
        return found


def watched(
    updates: update_filter.FilteredUpdates, replies: Iterable[Message]
) -> Iterable[Message]:
    """Pass on replies, and check after each how many bytes of updates wait for their turn."""
    firsts = sum(updates._checks.rules.limits.values())
    for reply in replies:
        yield reply
        assert updates._waiting_bytes <= update_filter.MOST_WAITING + firsts


@pytest.mark.parametrize("silent", [(), (20,), (20, 23, 26)])
def test_the_model_is_the_same_to_the_bit_where_replies_stay_with_the_grid(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[int, ...]
) -> None:
    results, bursts = [], []
    for room in (1 << 30, 30_000, 1):
        monkeypatch.setattr(update_filter, "MOST_WAITING", room)
        run, grid = federation(), Clients(silent)
        pending = send(grid, run.ask(), 60)
        updates = run.strategy.updates
        arrays, report = run.merge(watched(updates, collect(grid, pending, 0.5, intake=updates)))
        assert updates._waiting_bytes == 0
        results.append(arrays)
        bursts.append(grid.largest_burst)
        assert sum(report.clients.values()) == len(NODES) - len(silent)
        assert report.rejected == tuple(f"{KEYS[n - 20]}: no reply" for n in silent)
        assert len(pending) == len(silent)
        assert_same(arrays, results[0])
    every, some, few = bursts
    assert every == len(NODES) - len(silent) > some > few and few <= 2
