"""Connections on which the service waits for the client: how long, and which give way to others.

uvicorn's own limit counts every connection, so that a thousand silent ones stop a service. Here a
connection is never refused. One that lets the service wait too long for a request is closed; where
there are too many, those are closed first that have let it wait longest, of the addresses that have
most. Whoever sends a request and reads the answer is served in between.
"""

import math
import resource
from collections import Counter
from collections.abc import Collection
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Connections that are kept open; those of requests that are being answered always are.
CONNECTIONS = 2000

#: Seconds until the head of the next request must be complete.
HEAD = 5.0

#: Seconds until an answer must be read.
ANSWER = 60.0

#: What a connection waits for: the request or the answer, and the seconds that it may take.
Wait = tuple[Any, float]


def raise_file_limit() -> int:
    """Let this process open as many files as it may; return their number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Connections:
    """Closes connections that wait for their client, of one server; keeps at most so many open."""

    def __init__(self, most: int) -> None:
        self._most = most
        #: What each connection waits for, and since when.
        self._waiting: dict[H11Protocol, tuple[Wait, float]] = {}

    def close_idle(self, connections: Collection[H11Protocol], now: float) -> None:
        """Close those of all open connections that have waited too long, and those too many."""
        waits = {own: wait for own in connections if (wait := _wait(own))}
        former = self._waiting
        self._waiting = {
            own: former[own] if own in former and former[own][0] == wait else (wait, now)
            for own, wait in waits.items()
        }
        late = [own for own, ((_, most), since) in self._waiting.items() if now - since > most]
        # What the client of a new one has sent may not have been read yet.
        others = {own for own, (_, since) in self._waiting.items() if since < now}.difference(late)
        excess = max(0, len(connections) - len(late) - self._most)
        for own in late + self._first_to_go(others)[:excess]:
            # To close it properly would be to wait for the client again.
            own.transport.abort()

    def _first_to_go(self, waiting: Collection[H11Protocol]) -> list[H11Protocol]:
        """Sort by the place among those of the same address; the last go first.

        Those have the first places whose last request was answered, then the newest.
        """

        def rank(own: H11Protocol) -> tuple[bool, float]:
            answered = own.cycle is not None and own.cycle.response_complete
            return answered, self._waiting[own][1]

        counts: Counter[str | None] = Counter()
        places = {}
        for own in sorted(waiting, key=rank, reverse=True):
            address = own.client and own.client[0]
            counts[address] += 1
            places[own] = counts[address]
        return sorted(places, key=lambda own: places[own], reverse=True)


def _wait(connection: H11Protocol) -> Wait | None:
    """Return what a connection waits for; None if it is the client that waits."""
    cycle = connection.cycle
    if connection.transport.get_write_buffer_size():
        return cycle, ANSWER
    if cycle is None or cycle.response_complete:
        return cycle, HEAD
    # The application has a deadline of its own for bodies.
    return (cycle, math.inf) if cycle.more_body else None
