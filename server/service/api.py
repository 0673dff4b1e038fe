"""The routes of the service."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect

from common.config import ServeConfig
from server.prediction.predictor import Predictor
from server.prediction.records import Record, records
from server.service.answers import (
    ExampleAnswer,
    ExampleName,
    ModelAnswer,
    PredictAnswer,
    errors,
    json_answer,
)
from server.service.batcher import Batcher
from server.service.bodies import BodyReader
from server.service.description import describe
from server.service.examples import Examples, known_labels
from server.service.metrics import CONTENT_TYPE, Metrics
from server.service.requests import Item, RequestReader

T = TypeVar("T")

#: Bytes of a body that is read at once; larger ones are read in a thread, one after the other.
_SMALL = 1 << 16


class Api:
    """What `app.make_app` serves to callers who know the token; the parameters are the same."""

    def __init__(self, predictor: Predictor, config: ServeConfig, examples: Examples) -> None:
        self._predictor = predictor
        self._examples = examples.items
        self._labels = known_labels(config, predictor, examples.label_names)
        self._description = describe(config, predictor, self._labels)
        self._bodies = BodyReader(self._description["limits"]["max_body_bytes"])
        self._reader = RequestReader(
            predictor.features, predictor.max_seq_len, config.max_items, config.max_steps
        )
        self._thread = ThreadPoolExecutor(1)
        self.metrics = Metrics(lambda: self._batcher.held)
        self._batcher = Batcher(
            self._predict, config.max_batch, config.max_wait_ms / 1000, config.max_queue
        )

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer while the block lasts."""
        async with self._batcher:
            yield
        self._thread.shutdown(wait=False)

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(responses=errors(401))
        schema = {"application/json": {"schema": self._reader.schema()}}
        router.post(
            "/predict",
            response_model=PredictAnswer,
            responses=errors(400, 408, 413, 415, 422, 500, 503),
            openapi_extra={"requestBody": {"required": True, "content": schema}},
        )(self.predict)
        router.get("/model", response_model=ModelAnswer)(self.model)
        router.get("/examples", response_model=list[ExampleName])(self.examples)
        router.get("/examples/{number}", response_model=ExampleAnswer, responses=errors(404, 422))(
            self.example
        )
        router.get("/metrics", response_class=PlainTextResponse)(self.counts)
        return router

    async def predict(self, request: Request) -> Response:
        """Predict items, each from any subset of its modalities."""
        async with self._bodies.reading(request) as body:
            if len(body) > _SMALL:
                loop = asyncio.get_running_loop()
                items = await loop.run_in_executor(self._thread, self._reader.read, body)
            else:
                items = self._reader.read(body)
            predictions = await _while_connected(request, self._batcher.ask(items))
        model = {name: self._description[name] for name in ("name", "sha256")}
        return json_answer({"predictions": predictions, "model": model})

    async def model(self) -> Response:
        """Describe the inputs and outputs of the model, its fusion, and the limits."""
        return json_answer(self._description)

    async def examples(self) -> Response:
        """List the items that the page offers to pick."""
        return json_answer(
            [
                {"id": item.name, "label": item.label, "modalities": list(item.features)}
                for item in self._examples
            ]
        )

    async def example(self, number: int) -> Response:
        """Give one of these items, in the form of a request, and its true label."""
        if not 0 <= number < len(self._examples):
            message = f"there is no example {number}; there are {len(self._examples)}"
            raise HTTPException(404, message)
        name, label, features = self._examples[number]
        return json_answer({"label": label, "item": {"id": name, **features}})

    async def counts(self) -> Response:
        """Give the metrics, in the text format of Prometheus."""
        return Response(self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    def _predict(self, items: Sequence[Item]) -> list[Record]:
        began = time.perf_counter()
        names = {name for item in items for name in item.features}
        inputs = {name: [item.features.get(name) for item in items] for name in names}
        predictions = self._predictor.predict(inputs)
        answers = records([item.id for item in items], predictions, self._labels)
        self.metrics.predicted(len(items), time.perf_counter() - began)
        return answers


async def _while_connected(request: Request, asked: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer; raise `ClientDisconnect` if the client disconnects first."""
    answer = asyncio.create_task(asked)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
