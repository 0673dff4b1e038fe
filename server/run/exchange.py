"""A round's messages out, and its replies in as they come, until a deadline."""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

#: Seconds between looks for replies: from the first, growing, to the second.
POLL_SECONDS = (0.02, 1.0)
_GROWTH = 1.5

#: How far the clocks of a site and of the server may be apart.
CLOCK_SECONDS = 60.0


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    timeout: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Message]:
    """Send messages and yield each reply once, as it comes.

    Ends when all have been answered or after `timeout`. A reply that comes later belongs to no
    message that anyone waits for, and is never fetched.

    Parameters
    ----------
    grid
        Reaches the nodes.
    messages
        All are sent before the first reply is looked for. They expire soon after the deadline, so
        that a node which hung does not work off the rounds that it missed.
    timeout
        Seconds from now.
    check
        Called before each look for replies; may raise to end the wait.
    """
    deadline = time.monotonic() + timeout
    outgoing = list(messages)
    for message in outgoing:
        message.metadata.ttl = timeout + CLOCK_SECONDS
    pending = {key for key in grid.push_messages(outgoing) if key}
    del outgoing
    pause, longest = POLL_SECONDS
    while pending:
        check()
        replies = list(grid.pull_messages(pending))
        for reply in replies:
            key = reply.metadata.reply_to_message_id
            if key in pending:
                pending.remove(key)
                yield reply
        left = deadline - time.monotonic()
        if not pending or left <= 0:
            return
        pause = POLL_SECONDS[0] if replies else min(pause * _GROWTH, longest)
        time.sleep(min(pause, left))
