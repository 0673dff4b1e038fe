"""How long to wait between two polls."""

import time
from collections.abc import Callable

_SHORTEST = 0.05
_GROWTH = 1.1


class GrowingPause:
    """Pauses that grow by a tenth, so that a message is late by a tenth of the time waited."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self.reset()

    def reset(self) -> None:
        """Start with the shortest pause again."""
        self._pause, self._longest = _SHORTEST, 0.0

    def wait(self, longest: float) -> None:
        """Pause for at most `longest` seconds; a limit other than the last one starts anew."""
        if longest != self._longest:
            self.reset()
            self._longest = longest
        self._sleep(min(self._pause, longest))
        self._pause *= _GROWTH
