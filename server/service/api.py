"""What the service answers, each route a method."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response

from common.config import ServeConfig
from server.prediction.predictor import Predictor
from server.prediction.records import Record, records
from server.service.batcher import Batcher
from server.service.body import BodyReader, GoneError
from server.service.description import body_bytes, describe
from server.service.examples import Examples, known_labels
from server.service.metrics import CONTENT_TYPE, Metrics
from server.service.refusal import RefusedError
from server.service.requests import Question, RequestReader

#: Bytes of a body that is read in the event loop; a larger one is read beside it.
SMALL = 1 << 16

#: Where nobody is there to be answered; only the metrics see it.
GONE = 499

Found = TypeVar("Found")


class Api:
    """A model that answers.

    Parameters
    ----------
    predictor
        The model.
    config
        Its limits.
    examples
        What can be picked on the page.

    Attributes
    ----------
    reader
        Reads the requests for it.
    metrics
        Counts them.
    """

    def __init__(self, predictor: Predictor, config: ServeConfig, examples: Examples) -> None:
        self._predictor = predictor
        self._examples = examples.items
        self._labels = known_labels(config, predictor, examples.label_names)
        self._description = describe(config, predictor, self._labels)
        self._bodies = BodyReader(body_bytes(config))
        self.reader = RequestReader(
            predictor.features, predictor.max_seq_len, config.max_items, config.max_steps
        )
        self.metrics = Metrics()
        self._batcher = Batcher(
            self._answer,
            config.max_batch,
            config.max_wait_ms / 1000,
            config.max_queue,
            self.metrics.predicted,
        )
        self.metrics.watch(lambda: self._batcher.held)
        self._aside = ThreadPoolExecutor(1, "read")

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer while the block lasts."""
        async with self._batcher:
            yield
        self._aside.shutdown()

    async def predict(self, request: Request) -> Response:
        """Predict items, each from any subset of its modalities."""
        try:
            with self._bodies.holding() as body:
                with self._batcher.announced():
                    await self._bodies.fill(body, request)
                    question = await self._read(body)
                found = await _unless_gone(request, self._batcher.ask(question))
        except GoneError:
            return Response(status_code=GONE)
        model = {name: self._description[name] for name in ("name", "sha256")}
        return json_answer({"predictions": found, "model": model})

    async def model(self) -> Response:
        """Tell what the model takes and predicts, how it joins modalities, and the limits."""
        return json_answer(self._description)

    async def examples(self) -> Response:
        """List the items that the page offers to pick."""
        return json_answer(
            [
                {"id": each.name, "label": each.label, "modalities": list(each.features)}
                for each in self._examples
            ]
        )

    async def example(self, number: int) -> Response:
        """Give one of them: its label, and the item as a request takes it."""
        if not 0 <= number < len(self._examples):
            raise RefusedError(
                404, f"there is no example {number}; there are {len(self._examples)}"
            )
        found = self._examples[number]
        return json_answer({"label": found.label, "item": {"id": found.name, **found.features}})

    async def health(self) -> Response:
        """Say that the service is there."""
        return json_answer({"status": "ok"})

    async def counts(self) -> Response:
        """Give the metrics, in the text format of Prometheus."""
        return Response(self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def _read(self, body: bytearray) -> Question:
        if len(body) <= SMALL:
            return self.reader.read(body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._aside, self.reader.read, body)

    def _answer(self, question: Question) -> list[Record]:
        found = self._predictor.predict_sequences(question.items, len(question))
        return records(question.ids, found, self._labels)


def json_answer(content: Any, status: int = 200) -> Response:
    """Return plain values as an answer."""
    return Response(
        msgspec.json.encode(content),
        status,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        media_type="application/json",
    )


async def _unless_gone(request: Request, asked: Coroutine[Any, Any, Found]) -> Found:
    """Wait for an answer, and no longer than for whoever asked.

    Raises
    ------
    GoneError
        If the caller broke off.
    """
    answer = asyncio.create_task(asked)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise GoneError
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Wait until the caller breaks off."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
