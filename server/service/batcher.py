"""Requests that come at the same time go through the model together.

One thread predicts, so that the event loop stays free. What waits is taken in turns: a request of
many items gives way to the others after each of its batches. The line is bounded; who finds it full
is asked to come back.

Notation: N items.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.data.dataset import Sequences, concatenate
from server.service.refusal import RefusedError
from server.service.requests import Question

#: Items times the square of the longest: the pairs of steps that attention looks at in one batch.
#: 84 MB for five heads.
PAIRS = 1 << 22

Record = dict[str, Any]

#: Answers N items, in order; called in the batcher's own thread.
Answer = Callable[[Question], Sequence[Record]]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiting:
    """A request in line, and what was answered of it."""

    question: Question
    answered: asyncio.Future[list[Record]]
    records: list[Record] = field(default_factory=list)

    def next(self, items: int, steps: int, most: int) -> Question:
        """Return those of its items that fit into a batch; perhaps none.

        Parameters
        ----------
        items, steps
            What the batch has: items, and the steps of the longest.
        most
            Items that it takes.
        """
        first = len(self.records)
        longest = self.question.longest[first : first + most - items]
        longest = np.maximum.accumulate(np.maximum(longest, steps))
        pairs = longest**2 * (items + 1 + np.arange(len(longest)))
        fitting = int((pairs <= PAIRS).sum())
        # An item that is too long for any batch goes alone.
        return self.question.select(slice(first, first + max(fitting, int(items == 0))))


#: A request, and those of its items that are in a batch.
_Share = tuple[_Waiting, Question]


class Batcher:
    """Answers questions, several at a time.

    Use as an asynchronous context manager, in the event loop that asks.

    Parameters
    ----------
    answer
        Answers items, in order.
    max_batch
        Items that are answered at a time.
    max_wait
        Seconds that a question may wait for others, where others are likely: one is being read, or
        the last batch had several.
    max_queue
        Items that may wait.
    observe
        Told the items and the seconds of every batch.
    """

    def __init__(
        self,
        answer: Answer,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._observe = observe
        self._line: deque[_Waiting] = deque()
        self._held = 0
        self._announced = 0
        self._crowded = False
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "predict")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        _give_up(self._line)
        self._thread.shutdown()

    @property
    def held(self) -> int:
        """Items that were asked and are not answered."""
        return self._held

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Tell that a question is on its way."""
        self._announced += 1
        try:
            yield
        finally:
            self._announced -= 1
            self._changed.set()

    async def ask(self, question: Question) -> list[Record]:
        """Answer a question; whoever is cancelled while it waits leaves the line.

        Raises
        ------
        RefusedError
            503 if the line is full, 500 if the model fails.
        """
        count = len(question)
        if self._held + count > self._max_queue:
            raise RefusedError(
                503,
                f"{self._held} items are waiting, and {self._max_queue} may; come back later",
                {"Retry-After": "1"},
            )
        waiting = _Waiting(question, asyncio.get_running_loop().create_future())
        self._held += count
        self._line.append(waiting)
        self._changed.set()
        try:
            return await waiting.answered
        finally:
            self._held -= count

    async def _run(self) -> None:
        while True:
            await self._gather()
            batch = self._next_batch()
            try:
                if batch:
                    await self._predict(batch)
            except asyncio.CancelledError:
                _give_up(waiting for waiting, _ in batch)
                raise
            self._crowded = len(batch) > 1

    async def _gather(self) -> None:
        """Wait until a question is in line, and then for others that are likely."""
        while not self._line:
            await self._change(None)
        until = time.monotonic() + self._max_wait
        while (self._crowded or self._announced) and self._held < self._max_batch:
            left = until - time.monotonic()
            if left <= 0:
                break
            await self._change(left)

    async def _change(self, seconds: float | None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _next_batch(self) -> list[_Share]:
        """Take from the line what goes through the model next."""
        batch: list[_Share] = []
        items = steps = 0
        while self._line and items < self._max_batch:
            waiting = self._line[0]
            if not waiting.answered.done():  # it is where nobody waits for it any more
                share = waiting.next(items, steps, self._max_batch)
                if len(share) == 0:
                    break
                items += len(share)
                steps = max(steps, int(share.longest.max()))
                batch.append((waiting, share))
            self._line.popleft()
        return batch

    async def _predict(self, batch: list[_Share]) -> None:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        try:
            joined = _joined([share for _, share in batch])
            records = await loop.run_in_executor(self._thread, self._answer, joined)
            if len(records) != len(joined):
                raise RuntimeError(f"{len(joined)} items were asked, {len(records)} answered")
        except Exception:
            await self._fail(batch)
            return
        self._observe(len(joined), time.perf_counter() - began)
        self._hand_out(batch, records)

    async def _fail(self, batch: list[_Share]) -> None:
        """Ask each alone, so that one does not fail the others."""
        if len(batch) > 1:
            for share in batch:
                await self._predict([share])
            return
        ((waiting, _),) = batch
        logger.exception("the model failed")
        if not waiting.answered.done():
            waiting.answered.set_exception(RefusedError(500, "the model failed; the log says why"))

    def _hand_out(self, batch: list[_Share], records: Sequence[Record]) -> None:
        first = 0
        for waiting, share in batch:
            waiting.records += records[first : first + len(share)]
            first += len(share)
            if waiting.answered.done():
                continue
            if len(waiting.records) < len(waiting.question):
                self._line.append(waiting)
            else:
                waiting.answered.set_result(waiting.records)


def _give_up(line: Iterable[_Waiting]) -> None:
    for waiting in line:
        waiting.answered.cancel()


def _joined(questions: Sequence[Question]) -> Question:
    """Join questions into one."""
    if len(questions) == 1:
        return questions[0]
    widths = {name: each.width for asked in questions for name, each in asked.items.items()}
    ids = tuple(name for asked in questions for name in asked.ids)
    return Question(
        ids,
        {
            name: concatenate(
                [
                    asked.items[name] if name in asked.items else _absent(len(asked), width)
                    for asked in questions
                ]
            )
            for name, width in widths.items()
        },
    )


def _absent(items: int, width: int) -> Sequences:
    """Return the sequences of items that lack a modality."""
    nothing = np.zeros(items, dtype=np.int64)
    return Sequences(np.empty((0, width), dtype=np.float32), nothing, nothing)
