"""How long to wait before looking again for something that comes sooner or later."""

import time
from collections.abc import Callable

_SHORTEST = 0.05
_GROWTH = 1.1


class GrowingPause:
    """Pauses that grow by a tenth, so that a look comes late by a tenth of the time waited.

    Parameters
    ----------
    sleep
        Waits for a number of seconds.
    """

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
