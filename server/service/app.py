"""The service as a FastAPI application: who may ask what, and how errors look.

All routes but ``/health`` and the files of the page, which hold nothing of the model, need the
token, if one is set. Requests that call the service by an unknown name are refused everywhere.
Every error is ``{"error": "…one line…"}``.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from common.config import ServeConfig
from common.task import Task
from server.prediction.predictor import Predictor
from server.prediction.records import Record, records
from server.service.answers import (
    ExampleAnswer,
    ExampleName,
    HealthAnswer,
    ModelAnswer,
    PredictAnswer,
    describe,
    error_answer,
    errors,
    json_answer,
)
from server.service.batcher import Batcher
from server.service.examples import Examples
from server.service.hosts import KnownHosts
from server.service.metrics import Metrics
from server.service.requests import Item, RequestReader

T = TypeVar("T")

#: Path to a file of ``page/`` and its type.
FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/ask.js": ("ask.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}

_HEADERS = {
    # The browser loads and asks only what this service serves; no other page may frame it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_OUTCOMES = {
    Task.regression: "a number",
    Task.classification: "one of {} classes",
    Task.multilabel: "{} labels",
}

_ERRORS = (StarletteHTTPException, RequestValidationError, ClientDisconnect, Exception)

#: The status of a request whose client disconnected; only the metrics see it.
DISCONNECTED = 499


def make_app(
    predictor: Predictor, config: ServeConfig, examples: Examples, token: str | None
) -> FastAPI:
    """Build the application; callers must know the token, if there is one.

    Raises
    ------
    UserError
        If the model has a modality that requests cannot name.
    """
    api = Api(predictor, config, examples)
    guard = [] if token is None else [Depends(_guard(token))]
    outcome = _OUTCOMES[predictor.task].format(predictor.outputs)
    app = FastAPI(
        title="HA-Fedformer",
        summary=f"Predicts {outcome} from any of {', '.join(predictor.features)}.",
        lifespan=lambda _: api.batcher.running(),
        # Its own documentation loads scripts from elsewhere: ours works offline.
        openapi_url=None,
        exception_handlers=dict.fromkeys(_ERRORS, _error),
    )
    app.add_middleware(KnownHosts, config=config)
    app.add_middleware(api.metrics.counting)
    for path, (name, kind) in FILES.items():
        content = (files("server.service") / "page" / name).read_bytes()
        file = Response(content, headers=_HEADERS, media_type=kind)
        app.add_api_route(
            path, partial(_file, file), methods=["GET", "HEAD"], include_in_schema=False
        )
    app.get("/health", response_model=HealthAnswer)(health)
    app.include_router(api.routes(), dependencies=guard)

    async def schema() -> Response:
        return json_answer(app.openapi())

    app.get("/openapi.json", include_in_schema=False, dependencies=guard)(schema)
    return app


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    """Return a check that a request carries the token."""
    scheme = HTTPBearer(auto_error=False, description="The token of the service.")

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        # The duration does not depend on where the two differ.
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            message = "the token is missing or wrong; send Authorization: Bearer TOKEN"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    return check


async def _file(file: Response) -> Response:
    return file


async def health() -> Response:
    """Say that the service is running."""
    return json_answer({"status": "ok"})


async def _error(request: Request, error: Exception) -> Response:
    """Answer with what was raised."""
    match error:
        case StarletteHTTPException():
            path = request.url.path
            of_router = {
                "Not Found": f"there is no {path}; /docs lists what there is",
                "Method Not Allowed": f"{path} does not take {request.method}",
            }
            message = of_router.get(error.detail, error.detail)
            return error_answer(message, error.status_code, error.headers)
        case RequestValidationError():
            first = error.errors()[0]
            return error_answer(f"{first['loc'][-1]}: {first['msg']}", 422)
        case ClientDisconnect():
            return Response(status_code=DISCONNECTED)
    return error_answer("the service failed; see its log", 500)


class Api:
    """What callers who know the token may ask; the parameters are those of `make_app`."""

    def __init__(self, predictor: Predictor, config: ServeConfig, examples: Examples) -> None:
        self._predictor = predictor
        self._examples, self._typical = examples.items, examples.typical
        self._labels = predictor.names(config.labels, examples.label_names)
        self._model = describe(config, predictor, self._labels)
        self._reader = RequestReader(
            predictor.features,
            predictor.max_seq_len,
            context=self._model.context,
            **self._model.limits,
        )
        # Of which the last steps that count may leave less.
        self._context = min(self._model.context, (predictor.max_seq_len or math.inf) - 1)
        self.batcher = Batcher(
            self._predict, config.max_batch, config.max_wait_ms / 1000, config.max_queue
        )
        self.metrics = Metrics(lambda: self.batcher.held)

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(responses=errors(400, 401))
        schema = {"application/json": {"schema": self._reader.schema()}}
        router.post(
            "/predict",
            response_model=PredictAnswer,
            responses=errors(408, 413, 415, 422, 500, 503),
            openapi_extra={"requestBody": {"required": True, "content": schema}},
        )(self.predict)
        router.get("/model", response_model=ModelAnswer)(self.model)
        router.get("/examples", response_model=list[ExampleName])(self.examples)
        router.get("/examples/{number}", response_model=ExampleAnswer, responses=errors(404, 422))(
            self.example
        )
        router.get("/metrics", response_class=PlainTextResponse)(self.metrics.counts)
        return router

    async def predict(self, request: Request) -> Response:
        """Predict items, each from any subset of its modalities."""
        async with self._reader.reading(request) as items:
            predictions = await _while_connected(request, self.batcher.ask(items))
        model = {"name": self._model.name, "sha256": self._model.sha256}
        return json_answer({"predictions": predictions, "model": model})

    async def model(self) -> Response:
        """Describe the inputs and outputs of the model, its fusion, and the limits."""
        return json_answer(self._model)

    async def examples(self) -> Response:
        """List the items that the page offers to pick."""
        # An item begins with its id; its other keys are modalities.
        return json_answer(
            [
                {
                    "id": given.item["id"],
                    "label": given.label,
                    "modalities": list(given.item)[1:],
                    "typical": number == self._typical,
                }
                for number, given in enumerate(self._examples)
            ]
        )

    async def example(self, number: int) -> Response:
        """Give one of these items, in the form of a request, and its true label."""
        if not 0 <= number < len(self._examples):
            message = f"there is no example {number}; there are {len(self._examples)}"
            raise HTTPException(404, message)
        return json_answer(self._examples[number])

    def _predict(self, items: Sequence[Item]) -> list[Record]:
        began = time.perf_counter()
        names = {name for item in items for name in item.features}
        inputs = {name: [item.features.get(name) for item in items] for name in names}
        predictions = self._predictor.predict(inputs)
        answers = records([item.id for item in items], predictions, self._labels)
        for item, answer in zip(items, answers, strict=True):
            if item.unknown:
                answer["unknown"] = item.unknown
            if lacking := item.lacking(self._context):
                answer["context"] = lacking
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
