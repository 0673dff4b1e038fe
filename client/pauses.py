"""How long to wait until one looks again for something that comes sooner or later."""

import time
from collections.abc import Callable


class GrowingPause:
    """Pauses that grow with the time already waited, so that a look comes late by a tenth of it.

    Parameters
    ----------
    shortest
        Seconds of the first pause.
    growth
        What each pause is longer than the one before.
    sleep
        Waits for a number of seconds.
    """

    def __init__(
        self,
        shortest: float = 0.05,
        growth: float = 1.1,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shortest, self._growth, self._sleep = shortest, growth, sleep
        self.reset()

    def reset(self) -> None:
        """Begin anew: something came."""
        self._pause, self._longest = self._shortest, 0.0

    def wait(self, longest: float) -> None:
        """Pause for at most `longest` seconds; another limit is another wait, which begins anew."""
        if longest != self._longest:
            self.reset()
            self._longest = longest
        self._sleep(min(self._pause, longest))
        self._pause *= self._growth
