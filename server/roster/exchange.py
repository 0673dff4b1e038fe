"""A round's messages out, and its replies in as they come, until a deadline."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from server.acceptance.update_filter import FilteredUpdates

#: Seconds between looks for replies: from the first, growing, to the second.
POLL_SECONDS = (0.02, 1.0)
_GROWTH = 1.2

#: How long looks that bring nothing go on after the deadline.
GRACE_SECONDS = 2.0

#: How far the clocks of a site and of the server may be apart.
CLOCK_SECONDS = 60.0


class PartwiseGrid(Grid):
    """A grid whose replies come part by part, and may be begun when the deadline is there."""

    #: Bytes of a reply to the messages of a round, at most, by the key of the message.
    most: dict[str, int]
    #: When a look for replies ends, by `time.monotonic`, whatever the SuperLink is at.
    deadline: float

    @abstractmethod
    def abandon(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield an error in place of each reply of which only a part has come."""


@dataclass(frozen=True)
class _Late:
    """A message that met its deadline: its node, when it was sent and when nobody waits for it."""

    node: int
    sent: float
    expires: float


@dataclass
class Backlog:
    """Messages that were not answered in time: nodes are still at them, or will not answer.

    A node works off its messages one by one. One that is slower than the deadline, and asked again
    every round, would be late in every round to come. One that was started again is free.
    """

    _late: dict[str, _Late] = field(default_factory=dict)

    def add(self, key: str, node: int, sent: float) -> None:
        """Note a message, sent at a Unix time, that has just met its deadline."""
        self._late[key] = _Late(node, sent, time.monotonic() + CLOCK_SECONDS)

    def nodes(self, grid: Grid) -> frozenset[int]:
        """Return the nodes that are still at one; late replies are discarded."""
        if not self._late:
            return frozenset()
        for reply in grid.pull_messages(list(self._late)):
            self._late.pop(reply.metadata.reply_to_message_id, None)
        now, started = time.monotonic(), {node.node_id: _start(node) for node in grid.get_nodes()}
        self._late = {
            key: late
            for key, late in self._late.items()
            if late.expires > now and started.get(late.node, 0.0) < late.sent
        }
        return frozenset(late.node for late in self._late.values())


def _start(node: NodeInfo) -> float:
    """Return the Unix time at which a node last came online, 0 where the grid does not say."""
    at = node.last_activated_at
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    timeout: float,
    check: Callable[[], None] = lambda: None,
    backlog: Backlog | None = None,
    intake: FilteredUpdates | None = None,
) -> Iterator[Message]:
    """Send messages, then yield each reply once, as it comes, for at most `timeout` seconds.

    Messages expire soon after the deadline, so that a node which hung does not work off the rounds
    that it missed; late replies are discarded, and `backlog` notes whose they are. `check` is
    called before each look for replies, and may raise to end the wait. `intake` says whose replies
    are looked for; others stay with the grid.
    """
    sent, pending = time.time(), send(grid, messages, timeout + CLOCK_SECONDS)
    yield from collect(grid, pending, timeout, check, intake)
    if backlog is not None:
        for key, node in pending.items():
            backlog.add(key, node, sent)


def send(grid: Grid, messages: Iterable[Message], lifetime: float) -> dict[str, int]:
    """Send messages that expire after `lifetime` seconds; return the node of each, by its key."""
    outgoing = list(messages)
    for message in outgoing:
        message.metadata.ttl = lifetime
    sent = {key for key in grid.push_messages(outgoing) if key}
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in outgoing}
    return {key: nodes[key] for key in nodes if key in sent}


def collect(
    grid: Grid,
    pending: dict[str, int],
    timeout: float,
    check: Callable[[], None] = lambda: None,
    intake: FilteredUpdates | None = None,
) -> Iterator[Message]:
    """Yield the replies to messages that were sent, as they come, for at most `timeout` seconds.

    Those that were answered are taken out of `pending`, before their reply is yielded. At the
    deadline of a round, which has an `intake`, an error stands for each reply of which only a part
    has come. Others for which there was no room may still be at the grid: then the nodes that are
    waited for are given up one after the other.
    """
    missed: set[int] = set()
    deadline, pause = time.monotonic() + timeout, POLL_SECONDS[0]
    if isinstance(grid, PartwiseGrid):
        grid.deadline = deadline + GRACE_SECONDS if intake else math.inf
        if intake:
            grid.most = {key: intake.most_bytes(node) for key, node in pending.items()}
    while pending:
        check()
        waiting, wanted = len(pending), intake.wanted() if intake else None
        there = {key: node for key, node in pending.items() if node not in missed}
        keys = [key for key, node in there.items() if wanted is None or node in wanted]
        # One at a time, where the grid has them so.
        yield from _answers(grid.pull_messages(keys), pending)
        came, left = len(pending) < waiting, deadline - time.monotonic()
        if intake and left <= 0 and isinstance(grid, PartwiseGrid):
            yield from _answers(grid.abandon(keys), pending)
        more = came or left > -GRACE_SECONDS
        if intake and wanted is not None and more and (left <= 0 or not keys):
            missed.update(wanted)
            for node in wanted:
                intake.give_up(node)
            continue
        if left <= 0 or not pending:
            return
        pause = POLL_SECONDS[0] if came else min(pause * _GROWTH, POLL_SECONDS[1])
        time.sleep(min(pause, left))


def _answers(replies: Iterable[Message], pending: dict[str, int]) -> Iterator[Message]:
    """Yield the first reply to each message, as one of the node that was asked.

    What a reply says of its sender is not to be relied on; and the SuperLink answers for a node
    that is gone, under its own number.
    """
    for reply in replies:
        if (node := pending.pop(reply.metadata.reply_to_message_id, None)) is not None:
            reply.metadata.__dict__["_src_node_id"] = node
            yield reply
