"""Replies as they come, each once, until the deadline and not after it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from fake_nodes import Clock
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import server.roster.exchange
from server.roster.exchange import CLOCK_SECONDS, POLL_SECONDS, Backlog, exchange


@dataclass
class TimedGrid:
    """Nodes that answer after so many seconds, or, with None, not at all."""

    clock: Clock
    delays: list[float | None]
    refused: Collection[int] = ()
    extra: list[Message] = field(default_factory=list)
    pulls: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    #: Node to when it last came online.
    online: dict[int, datetime] = field(default_factory=dict)
    due: dict[str, tuple[float, Message]] = field(default_factory=dict)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        keys: list[str | None] = []
        for number, message in enumerate(messages):
            self.sent.append(message)
            if number in self.refused:
                keys.append(None)
                continue
            key = message.metadata.__dict__["_message_id"] = f"message-{number}"
            keys.append(key)
            delay = self.delays[number]
            if delay is not None:
                reply = Message(RecordDict(), reply_to=message)
                self.due[key] = (self.clock.now + delay, reply)
        return keys

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=node, last_activated_at=moment.isoformat())
            for node, moment in self.online.items()
        ]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = frozenset(message_ids)
        self.pulls.append((self.clock.now, wanted))
        due = (self.due[key] for key in sorted(wanted) if key in self.due)
        return [reply for moment, reply in due if moment <= self.clock.now] + self.extra


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(server.roster.exchange, "time", clock := Clock())
    return clock


def messages(count: int) -> list[Message]:
    return [Message(RecordDict(), node, MessageType.TRAIN) for node in range(1, count + 1)]


def exchanged(grid: TimedGrid, timeout: float) -> list[tuple[float, int]]:
    """When each reply was yielded, and of which node."""
    replies = exchange(grid, messages(len(grid.delays)), timeout)
    return [(grid.clock.now, reply.metadata.src_node_id) for reply in replies]


def test_looks_become_rarer_and_often_again_after_a_reply(clock: Clock) -> None:
    grid = TimedGrid(clock, [20.0, 60.0])
    exchanged(grid, 100)
    moments = [moment for moment, _ in grid.pulls]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    came = next(number for number, (_, wanted) in enumerate(grid.pulls) if len(wanted) == 1) - 1
    assert gaps[0] < 2 * POLL_SECONDS[0] and gaps[came - 1] == pytest.approx(POLL_SECONDS[1])
    assert gaps[came] == pytest.approx(POLL_SECONDS[0])
    assert all(gap <= POLL_SECONDS[1] + 1e-9 for gap in gaps)
    assert len(moments) < 100, "not asked over and over"


def test_what_is_sent_expires_and_other_replies_are_ignored(
    clock: Clock,
) -> None:
    grid = TimedGrid(clock, [0.0, 1.0])
    (other,) = messages(1)
    other.metadata.__dict__["_message_id"] = "of another round"
    grid.push_messages(messages(2))
    grid.extra = [Message(RecordDict(), reply_to=other), *2 * [grid.due["message-0"][1]]]
    grid.sent.clear()
    assert [node for _, node in exchanged(grid, 7.5)] == [1, 2]
    assert [message.metadata.ttl for message in grid.sent] == [7.5 + CLOCK_SECONDS] * 2


def test_time_that_the_work_on_a_reply_takes_counts(clock: Clock) -> None:
    grid = TimedGrid(clock, [0.0, 5.0, None])
    for reply in exchange(grid, messages(3), 10):
        assert reply.metadata.src_node_id == 1
        clock.now += 20
    assert len(grid.pulls) == 1 and clock.now == 1020


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.none() | st.floats(0, 40), max_size=6),
    st.floats(0, 30),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_whenever_they_come(
    clock: Clock, delays: list[float | None], timeout: float, refused: set[int]
) -> None:
    clock.now = 1000.0
    grid = TimedGrid(clock, delays, refused)
    found = exchanged(grid, timeout)
    deadline, sent = 1000 + timeout, set(range(len(delays))) - refused
    due = {n + 1: 1000 + delay for n in sent if (delay := delays[n]) is not None}
    nodes = [node for _, node in found]
    assert len(set(nodes)) == len(nodes)
    # To the rounding of the clock, all that came in time and nothing that did not.
    assert {node for node, moment in due.items() if moment <= deadline - 1e-9} <= set(nodes)
    for moment, node in found:
        assert due[node] <= moment <= min(due[node] + POLL_SECONDS[1], deadline) + 1e-6
    # One that came is not looked for again.
    came = {f"message-{node - 1}": moment for moment, node in found}
    assert all(came.get(key, at) >= at for at, wanted in grid.pulls for key in wanted)
    assert clock.now <= deadline + 1e-6
    if len(nodes) < len(sent):
        assert clock.now == pytest.approx(deadline), "it does not give up before"


# Who is late --------------------------------------------------------------------------------------


def test_node_that_is_late_is_busy_until_its_reply_comes_which_is_dropped(clock: Clock) -> None:
    grid = TimedGrid(clock, [1.0, 15.0, None])
    backlog = Backlog()
    assert backlog.nodes(grid) == frozenset() and grid.pulls == []
    replies = list(exchange(grid, messages(3), 10, backlog=backlog))
    assert [reply.metadata.src_node_id for reply in replies] == [1]
    assert backlog.nodes(grid) == {2, 3}
    # One that never answers is asked again when its message has expired.
    for seconds, busy in ((5, {3}), (CLOCK_SECONDS - 6, {3}), (1, set())):
        clock.now += seconds
        assert backlog.nodes(grid) == busy


def test_node_that_was_started_again_is_free(clock: Clock) -> None:
    backlog, sent = Backlog(), datetime.fromtimestamp(clock.now, UTC)
    before, after = sent - timedelta(seconds=1), sent + timedelta(seconds=1)
    grid = TimedGrid(clock, [None, None, None], online={1: before, 2: after})
    assert list(exchange(grid, messages(3), 10, backlog=backlog)) == []
    assert backlog.nodes(grid) == {1, 3}


def test_reply_is_of_the_node_that_was_asked_whatever_it_says(clock: Clock) -> None:
    grid = TimedGrid(clock, [1.0, 30.0])
    grid_push = grid.push_messages

    def push(outgoing: Iterable[Message]) -> list[str | None]:
        keys = grid_push(outgoing)
        grid.due["message-0"][1].metadata.__dict__["_src_node_id"] = 2
        return keys

    grid.push_messages = push  # type: ignore[method-assign]
    assert exchanged(grid, 10) == [(pytest.approx(1001, abs=0.5), 1)]


def test_error_that_the_network_sends_for_a_node_is_that_node_s(clock: Clock) -> None:
    grid = TimedGrid(clock, [1.0, 1.0])
    replies = exchange(grid, messages(2), 10)
    sent = grid.push_messages

    def push(outgoing: Iterable[Message]) -> list[str | None]:
        keys = sent(outgoing)
        failed = Message(Error(3, "node unavailable"), reply_to=grid.sent[1])
        failed.metadata.__dict__["_src_node_id"] = 1
        grid.due["message-1"] = (clock.now + 1, failed)
        return keys

    grid.push_messages = push  # type: ignore[method-assign]
    assert [(r.has_error(), r.metadata.src_node_id) for r in replies] == [(False, 1), (True, 2)]
