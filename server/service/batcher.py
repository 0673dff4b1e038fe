"""Requests that arrive at the same time go through the model together.

One thread predicts, so that the event loop stays free. A request of many items is queued one part
after the other, so that it gives way to others. The queue is bounded.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from fastapi import HTTPException

from server.prediction.records import Record
from server.service.requests import Item

#: Items times the square of the longest: the pairs of steps that attention compares in one batch.
#: 84 MB for five heads.
PAIRS = 1 << 22

logger = logging.getLogger(__name__)


class _Part(NamedTuple):
    """Items of one request in the queue, and the future of their predictions."""

    items: Sequence[Item]
    answer: asyncio.Future[Sequence[Record]]


class Batcher:
    """Predicts for several requests at a time; an asynchronous context manager.

    Parameters
    ----------
    predict
        Predicts items, in order; called in a thread of its own.
    max_batch
        Items in one batch.
    max_wait
        Seconds that a batch waits to fill up, if the batch before it joined several requests.
    max_queue
        Items that may wait.

    Attributes
    ----------
    held
        Items that are not answered yet.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Item]], Sequence[Record]],
        max_batch: int,
        max_wait: float,
        max_queue: int,
    ) -> None:
        self._predict = predict
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self.held = 0
        self._queue: deque[_Part] = deque()
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
        for part in self._queue:
            part.answer.cancel()
        self._thread.shutdown()

    async def ask(self, items: Sequence[Item]) -> list[Record]:
        """Predict items; if the caller is cancelled, those that still wait are not predicted.

        Raises
        ------
        HTTPException
            503 if the queue is full, 500 if the model fails.
        """
        if self.held + len(items) > self._max_queue:
            message = f"{self.held} items are waiting, of at most {self._max_queue}"
            raise HTTPException(503, f"{message}; try again later", {"Retry-After": "1"})
        self.held += len(items)
        records: list[Record] = []
        try:
            while left := items[len(records) :]:
                part = _Part(self._fitting(left), asyncio.get_running_loop().create_future())
                self._queue.append(part)
                self._arrived.set()
                records += await part.answer
        finally:
            self.held -= len(items)
        return records

    def _fitting(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the first items, as many as fit into a batch; a very long item goes alone."""
        steps = 0
        for count, item in enumerate(items):
            steps = max(steps, item.steps)
            if count and not self._fits(count + 1, steps):
                return items[:count]
        return items

    def _fits(self, count: int, steps: int) -> bool:
        return count <= self._max_batch and count * steps**2 <= PAIRS

    async def _run(self) -> None:
        while True:
            while not self._queue:
                await self._arrival()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._max_wait):
                    while self._crowded and self.held < self._max_batch:
                        await self._arrival()
            batch = self._next_batch()
            self._crowded = len(batch) > 1
            if batch:
                await self._answer(batch)

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _next_batch(self) -> list[_Part]:
        """Take the parts that fit into one batch from the queue, and drop cancelled ones."""
        batch: list[_Part] = []
        count = steps = 0
        while self._queue:
            part = self._queue[0]
            if not part.answer.done():
                count += len(part.items)
                steps = max(steps, *(item.steps for item in part.items))
                if batch and not self._fits(count, steps):
                    break
                batch.append(part)
            self._queue.popleft()
        return batch

    async def _answer(self, batch: Sequence[_Part]) -> None:
        """Predict a batch; if that fails, predict each part, so that one does not fail others."""
        items = [item for part in batch for item in part.items]
        try:
            loop = asyncio.get_running_loop()
            records = iter(await loop.run_in_executor(self._thread, self._predict, items))
            for part in batch:
                answers = list(islice(records, len(part.items)))
                if not part.answer.done():
                    part.answer.set_result(answers)
        except Exception:
            if len(batch) > 1:
                for part in batch:
                    await self._answer([part])
            elif not batch[0].answer.done():
                logger.exception("the model failed")
                message = "the model failed; see the log of the service"
                batch[0].answer.set_exception(HTTPException(500, message))
        finally:
            for part in batch:
                part.answer.cancel()  # has no effect on an answer that is there
