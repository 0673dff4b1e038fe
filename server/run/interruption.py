"""Ctrl-C and SIGTERM: a run ends after its current step, and says how to resume it."""

import signal
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None


class InterruptedRunError(Exception):
    """The user ended the run; `status` is the exit status that shells expect for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


class Interruption:
    """Notes the first signal for `check`; a second one ends the process as usual.

    Use as a context manager, in the main thread: only that one is interrupted by a signal.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._former: dict[int, Handler] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        self.__exit__()

    def check(self) -> None:
        """Raise `InterruptedRunError` if a signal has come."""
        if self._signal is not None:
            raise InterruptedRunError(self._signal)
