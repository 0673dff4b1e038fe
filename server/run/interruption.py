"""Ctrl-C and SIGTERM: a run ends after what it is at, and says how to go on."""

import signal
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None


class InterruptedRunError(Exception):
    """The user ended the run.

    Attributes
    ----------
    status
        The exit status that shells expect for the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


class Interruption:
    """Takes the first signal as a wish; a second one ends the process as it would without this.

    Use as a context manager, in the main thread. The threads of a run ask with `check`, since only
    the main thread is interrupted by a signal.
    """

    def __init__(self) -> None:
        self._wish: int | None = None
        self._former: dict[int, Handler] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self._wish = number
        self.__exit__()

    def check(self) -> None:
        """Raise `InterruptedRunError` if the user wishes to end."""
        if self._wish is not None:
            raise InterruptedRunError(self._wish)
