"""A round's messages out, and its replies in as they come, until a deadline."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from server.acceptance.update_filter import FilteredUpdates

#: Seconds between looks for replies: from the first, growing, to the second.
POLL_SECONDS = (0.02, 1.0)
_GROWTH = 1.2

#: How far the clocks of a site and of the server may be apart.
CLOCK_SECONDS = 60.0


@dataclass
class Backlog:
    """Messages that were not answered in time: nodes are still at them, or will not answer.

    A node works off its messages one by one. One that is slower than the deadline, and asked again
    every round, would be late in every round to come.
    """

    _late: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, key: str, node: int) -> None:
        """Note a message that has just met its deadline."""
        self._late[key] = (node, time.monotonic() + CLOCK_SECONDS)

    def nodes(self, grid: Grid) -> frozenset[int]:
        """Return the nodes that are still at one; late replies are discarded."""
        if self._late:
            for reply in grid.pull_messages(list(self._late)):
                self._late.pop(reply.metadata.reply_to_message_id, None)
        now = time.monotonic()
        self._late = {key: late for key, late in self._late.items() if late[1] > now}
        return frozenset(node for node, _ in self._late.values())


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
    pending = send(grid, messages, timeout + CLOCK_SECONDS)
    yield from collect(grid, pending, timeout, check, intake)
    if backlog is not None:
        for key, node in pending.items():
            backlog.add(key, node)


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
    deadline, replies for which there was no room may still be at the grid: then the nodes that are
    waited for are given up one after the other.
    """
    missed: set[int] = set()
    deadline, pause = time.monotonic() + timeout, POLL_SECONDS[0]
    while pending:
        check()
        came, wanted = False, intake.wanted() if intake else None
        there = {key: node for key, node in pending.items() if node not in missed}
        keys = [key for key, node in there.items() if wanted is None or node in wanted]
        # One at a time, where the grid has them so.
        for reply in grid.pull_messages(keys):
            came = True
            if (node := pending.pop(reply.metadata.reply_to_message_id, None)) is None:
                continue
            if reply.has_error():
                # The SuperLink answers for a node that is gone, under its own number.
                reply.metadata.__dict__["_src_node_id"] = node
            yield reply
        left = deadline - time.monotonic()
        if intake and wanted is not None and (left <= 0 or not keys):
            missed.update(wanted)
            for node in wanted:
                intake.give_up(node)
            continue
        if left <= 0 or not pending:
            return
        pause = POLL_SECONDS[0] if came else min(pause * _GROWTH, POLL_SECONDS[1])
        time.sleep(min(pause, left))
