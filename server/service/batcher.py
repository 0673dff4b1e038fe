"""Requests that arrive at the same time go through the model together.

One thread predicts, so that the event loop stays free. A request of many items is queued one part
after the other, so that it gives way to others. The queue is bounded.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from fastapi import HTTPException

from server.service.requests import Question, join

#: Items times the square of the longest: the pairs of steps that attention compares in one batch.
#: 84 MB for five heads.
PAIRS = 1 << 22

Record = dict[str, Any]

#: Answers N items, in order; called in the batcher's own thread.
Answer = Callable[[Question], Sequence[Record]]

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """A part of a request in the queue, and its answer to come."""

    question: Question
    answer: asyncio.Future[Sequence[Record]]


class Batcher:
    """Answers questions, several at a time.

    Use as an asynchronous context manager, in the event loop that asks.

    Parameters
    ----------
    answer
        Answers items, in order.
    max_batch
        Items in one batch.
    max_wait
        Seconds that a batch waits to fill up, if the batch before it joined several requests.
    max_queue
        Items that may wait.
    observe
        Called with the items and the seconds of every batch.

    Attributes
    ----------
    held
        Items that are not answered yet.
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
        self.held = 0
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._crowded = False
        self._thread = ThreadPoolExecutor(1, "predict")

    async def __aenter__(self) -> "Batcher":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for waiting in self._queue:
            waiting.answer.cancel()
        self._thread.shutdown()

    async def ask(self, question: Question) -> list[Record]:
        """Answer a question; if the caller is cancelled, what still waits is not predicted.

        Raises
        ------
        HTTPException
            503 if the queue is full, 500 if the model fails.
        """
        count, held = len(question), self.held
        if held + count > self._max_queue:
            message = f"{held} items are waiting, of at most {self._max_queue}; try again later"
            raise HTTPException(503, message, {"Retry-After": "1"})
        self.held += count
        records: list[Record] = []
        try:
            for part in self._parts(question):
                waiting = _Waiting(part, asyncio.get_running_loop().create_future())
                self._queue.append(waiting)
                self._arrived.set()
                records += await waiting.answer
        finally:
            self.held -= count
        return records

    def _parts(self, question: Question) -> Iterator[Question]:
        """Split a question into parts that fit into a batch; a very long item goes alone."""
        first = 0
        while first < len(question):
            longest = np.maximum.accumulate(question.longest[first : first + self._max_batch])
            pairs = longest**2 * np.arange(1, len(longest) + 1)
            end = first + max(1, int((pairs <= PAIRS).sum()))
            yield question.select(slice(first, end))
            first = end

    async def _run(self) -> None:
        while True:
            await self._gather()
            batch = self._next_batch()
            self._crowded = len(batch) > 1
            if batch:
                await self._predict(batch)

    async def _gather(self) -> None:
        """Wait for a question, and then for others if others are likely."""
        while not self._queue:
            await self._arrival()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while self._crowded and self.held < self._max_batch:
                    await self._arrival()

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _next_batch(self) -> list[_Waiting]:
        """Take from the queue what goes through the model next; cancelled requests are dropped."""
        batch: list[_Waiting] = []
        items = steps = 0
        while self._queue:
            waiting = self._queue[0]
            if not waiting.answer.done():
                items += len(waiting.question)
                steps = max(steps, int(waiting.question.longest.max()))
                if batch and (items > self._max_batch or items * steps**2 > PAIRS):
                    break
                batch.append(waiting)
            self._queue.popleft()
        return batch

    async def _predict(self, batch: list[_Waiting]) -> None:
        asked = join([waiting.question for waiting in batch])
        began = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            records = await loop.run_in_executor(self._thread, self._answer, asked)
            if len(records) != len(asked):
                raise RuntimeError(f"{len(asked)} items were asked, {len(records)} answered")
            self._observe(len(asked), time.perf_counter() - began)
            self._hand_out(batch, records)
        except Exception:
            await self._fail(batch)
        finally:
            for waiting in batch:
                waiting.answer.cancel()  # has no effect on an answer that is there

    async def _fail(self, batch: list[_Waiting]) -> None:
        """Predict requests one by one, so that one does not fail the others."""
        if len(batch) > 1:
            for waiting in batch:
                await self._predict([waiting])
        elif not batch[0].answer.done():
            logger.exception("the model failed")
            batch[0].answer.set_exception(
                HTTPException(500, "the model failed; see the log of the service")
            )

    def _hand_out(self, batch: list[_Waiting], records: Sequence[Record]) -> None:
        first = 0
        for question, answer in batch:
            end = first + len(question)
            if not answer.done():
                answer.set_result(records[first:end])
            first = end
