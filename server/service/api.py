"""The routes of the service."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from common.config import ServeConfig
from server.prediction.predictor import Predictor
from server.prediction.records import Record, records
from server.service.answers import (
    ExampleAnswer,
    ExampleName,
    HealthAnswer,
    ModelAnswer,
    PredictAnswer,
    errors,
)
from server.service.batcher import Batcher
from server.service.bodies import BodyReader
from server.service.description import body_bytes, describe
from server.service.examples import Examples, known_labels
from server.service.metrics import CONTENT_TYPE, Metrics
from server.service.requests import Question, RequestReader

T = TypeVar("T")


class Api:
    """A model that answers.

    Parameters
    ----------
    predictor
        The model.
    config
        Its limits.
    examples
        Items that can be picked on the page.

    Attributes
    ----------
    metrics
        Counts of requests and batches.
    """

    def __init__(self, predictor: Predictor, config: ServeConfig, examples: Examples) -> None:
        self._predictor = predictor
        self._examples = examples.items
        self._labels = known_labels(config, predictor, examples.label_names)
        self._description = describe(config, predictor, self._labels)
        self._bodies = BodyReader(body_bytes(config))
        self._reader = RequestReader(
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

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer while the block lasts."""
        async with self._batcher:
            yield

    def open_routes(self) -> APIRouter:
        """Return the routes that need no token."""
        router = APIRouter()
        router.add_api_route("/health", self.health, response_model=HealthAnswer)
        return router

    def guarded_routes(self) -> APIRouter:
        """Return the routes that need the token, where there is one."""
        router = APIRouter(responses=errors(401))
        schema = {"application/json": {"schema": self._reader.schema()}}
        router.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            response_model=PredictAnswer,
            responses=errors(400, 408, 413, 415, 422, 500, 503),
            openapi_extra={"requestBody": {"required": True, "content": schema}},
        )
        router.add_api_route("/model", self.model, response_model=ModelAnswer)
        router.add_api_route("/examples", self.examples, response_model=list[ExampleName])
        router.add_api_route(
            "/examples/{number}",
            self.example,
            response_model=ExampleAnswer,
            responses=errors(404, 422),
        )
        router.add_api_route("/metrics", self.counts, response_class=PlainTextResponse)
        return router

    async def predict(self, request: Request) -> Response:
        """Predict items, each from any subset of its modalities."""
        with self._bodies.holding() as body:
            await self._bodies.fill(body, request)
            answer = self._batcher.ask(self._reader.read(body))
            predictions = await _while_connected(request, answer)
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
        example = self._examples[number]
        item = {"id": example.name, **example.features}
        return json_answer({"label": example.label, "item": item})

    async def health(self) -> Response:
        """Say that the service is running."""
        return json_answer({"status": "ok"})

    async def counts(self) -> Response:
        """Give the metrics, in the text format of Prometheus."""
        return Response(self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    def _answer(self, question: Question) -> list[Record]:
        predictions = self._predictor.predict_sequences(question.items, len(question))
        return records(question.ids, predictions, self._labels)


def json_answer(content: Any, status: int = 200) -> Response:
    """Return plain values as an answer."""
    return Response(
        to_json(content, inf_nan_mode="null"),
        status,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        media_type="application/json",
    )


async def _while_connected(request: Request, asked: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer while the client is connected.

    Raises
    ------
    ClientDisconnect
        If the client disconnects.
    """
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
