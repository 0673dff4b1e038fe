"""Ctrl-C and SIGTERM: a run ends after its current step, and says how to resume it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedRunError(Exception):
    """The user ended the run; `status` is the exit status that shells expect for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a check that raises `InterruptedRunError` once a signal has come.

    A second signal ends the process as usual.

    For the main thread: only that one is interrupted by a signal.
    """
    came: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def take(number: int, _: FrameType | None) -> None:
        came.append(number)
        restore()

    def check() -> None:
        if came:
            raise InterruptedRunError(came[0])

    for number in former:
        signal.signal(number, take)
    try:
        yield check
    finally:
        restore()
