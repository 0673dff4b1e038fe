"""Where the time of a round goes, phase by phase."""

import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Phase(StrEnum):
    """The phases of a round that its record tells of.

    ``configure``: choose clients and encode what they are sent. ``wait``: send it, have clients
    train and wait for what they return. ``merge``: decode, check and merge that, also what came
    while others were still waited for. ``evaluate``: score the validation items. What comes before,
    waiting for absent clients, and after, the checkpoint, is in none. A bound has ``train`` in
    place of the first three.
    """

    train = "train"
    configure = "configure"
    wait = "wait"
    merge = "merge"
    evaluate = "evaluate"


class PhaseClock:
    """Counts the seconds of each phase; each moment, from the first on, is in one phase.

    Attributes
    ----------
    seconds
        Phase to seconds so far, in the order in which the phases first ended.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def end(self, phase: Phase) -> None:
        """Count the time since the last phase ended as this one's."""
        now = time.monotonic()
        self.seconds[str(phase)] = self.seconds.get(str(phase), 0.0) + now - self._last
        self._last = now

    def each(self, items: Iterable[T], getting: Phase, using: Phase) -> Iterator[T]:
        """Yield items; the time to get one is of one phase, what is done with it of another."""
        for item in items:
            self.end(getting)
            yield item
            self.end(using)
        self.end(getting)

    def rounded(self) -> dict[str, float]:
        """Return the seconds as a record has them."""
        return {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
