"""Ctrl-C and SIGTERM: a run ends after its current step, and says how to resume it.

A process whose parent has died, too, whatever it waits for.
"""

import os
import signal
import threading
import time
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


def end_with_parent(grace: float = 10.0) -> None:
    """End this process, with status 1, so many seconds after the one that started it has ended.

    Flower interrupts a ServerApp then. One that waits for a SuperLink which is gone tries again and
    again, without a look at that. What a run has on disk is whole at any moment.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(min(grace, 1.0))
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
