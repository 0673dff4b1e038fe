"""Requests that arrive at the same time go through the model together.

One thread predicts, so that the event loop stays free. A request of many items is queued one part
after the other, so that it gives way to others. The queue is bounded.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import chain, islice

from fastapi import HTTPException

from server.prediction.records import Record
from server.service.requests import Item

#: Items times the square of the longest: the pairs of steps that attention compares in one batch.
#: 84 MB for five heads.
PAIRS = 1 << 22

#: The future of predictions to the items, all of one request.
Parts = dict[asyncio.Future[list[Record]], Sequence[Item]]

logger = logging.getLogger(__name__)


class Batcher:
    """Predicts for several requests at a time, while `running`.

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
        #: Items that are not answered yet.
        self.held = 0
        self._queue: Parts = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "predict")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Predict while the block lasts; requests that still wait at its end are cancelled."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for answer in self._queue:
                answer.cancel()
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
                answer = asyncio.get_running_loop().create_future()
                self._queue[answer] = left[: self._fitting([item] for item in left)]
                self._arrived.set()
                try:
                    records += await answer
                finally:
                    self._queue.pop(answer, None)
        finally:
            self.held -= len(items)
        return records

    def _fitting(self, parts: Iterable[Sequence[Item]]) -> int:
        """Count the first parts that fit into one batch; a very long one goes alone."""
        fitting = count = steps = 0
        for part in parts:
            count += len(part)
            steps = max(steps, *(item.steps for item in part))
            if fitting and (count > self._max_batch or count * steps**2 > PAIRS):
                break
            fitting += 1
        return fitting

    async def _run(self) -> None:
        crowded = False
        while True:
            while not self._queue:
                await self._arrival()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._max_wait):
                    while crowded and self.held < self._max_batch:
                        await self._arrival()
            # Those that were cancelled just now have not left yet.
            self._queue = {own: part for own, part in self._queue.items() if not own.done()}
            first = list(islice(self._queue, self._fitting(self._queue.values())))
            crowded = len(first) > 1
            if first:  # else those that waited have left
                await self._answer({answer: self._queue.pop(answer) for answer in first})

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    async def _answer(self, parts: Parts) -> None:
        """Predict a batch; if that fails, predict each part, so that one does not fail others."""
        items = list(chain.from_iterable(parts.values()))
        try:
            loop = asyncio.get_running_loop()
            records = iter(await loop.run_in_executor(self._thread, self._predict, items))
            for answer, part in parts.items():
                own = list(islice(records, len(part)))
                if not answer.done():
                    answer.set_result(own)
        except Exception:
            for answer, part in parts.items():
                if len(parts) > 1:
                    await self._answer({answer: part})
                elif not answer.done():
                    logger.exception("the model failed")
                    message = "the model failed; see the log of the service"
                    answer.set_exception(HTTPException(500, message))
        finally:
            for answer in parts:
                answer.cancel()  # has no effect on an answer that is there
