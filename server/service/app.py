"""The service as an application of FastAPI: who may ask what, and how errors look.

Everything but ``/health`` and the files of the page needs the token, where there is one. An error
is ``{"error": "…one line…"}``, whatever went wrong.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from common.config import ServeConfig
from common.task import Task
from server.prediction.predictor import Predictor
from server.service.api import Api, json_answer
from server.service.counting import Counting
from server.service.examples import Examples
from server.service.page import page_routes
from server.service.refusal import RefusedError
from server.service.schema import ANSWERS, add_requests

TITLE = "HA-Fedformer"


def make_app(
    predictor: Predictor,
    config: ServeConfig,
    examples: Examples = Examples(),  # noqa: B008 - it is frozen
    token: str | None = None,
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    predictor
        The model that answers.
    config
        Its limits.
    examples
        What can be picked on the page.
    token
        What callers must know; None: they need none.

    Raises
    ------
    UserError
        If the model has a modality that requests cannot name.
    """
    api = Api(predictor, config, examples)
    app = FastAPI(
        title=TITLE,
        summary=f"Predicts {_outcome(predictor)} from any of {', '.join(predictor.features)}.",
        lifespan=api.lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(_open_routes(api))
    app.include_router(page_routes())
    app.include_router(_guarded_routes(api, app, token))
    add_requests(app, api.reader.request_type)
    app.add_middleware(Counting, metrics=api.metrics)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def _outcome(predictor: Predictor) -> str:
    match predictor.task:
        case Task.regression:
            return "a number"
        case Task.classification:
            return f"one of {predictor.outputs} classes"
        case Task.multilabel:
            return f"{predictor.outputs} labels"


def _open_routes(api: Api) -> APIRouter:
    router = APIRouter()
    router.add_api_route("/health", api.health, responses=ANSWERS["health"])
    return router


def _guarded_routes(api: Api, app: FastAPI, token: str | None) -> APIRouter:
    router = APIRouter(dependencies=[] if token is None else [Depends(_guard(token))])

    async def schema() -> Response:
        return json_answer(app.openapi())

    router.add_api_route("/predict", api.predict, methods=["POST"], responses=ANSWERS["predict"])
    router.add_api_route("/model", api.model, responses=ANSWERS["model"])
    router.add_api_route("/examples", api.examples, responses=ANSWERS["examples"])
    router.add_api_route("/examples/{number}", api.example, responses=ANSWERS["example"])
    router.add_api_route(
        "/metrics", api.counts, responses=ANSWERS["metrics"], response_class=PlainTextResponse
    )
    router.add_api_route("/openapi.json", schema, include_in_schema=False)
    return router


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    """Return a check that a request carries the token."""
    scheme = HTTPBearer(auto_error=False, description="The token of the service.")

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        # It takes as long wherever the two differ.
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise RefusedError(
                401,
                "the token is missing or wrong; send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _error(str(error), error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    reason = {
        404: f"there is no {path}; /docs lists what there is",
        405: f"{path} does not take {method}",
    }
    message = reason.get(error.status_code, str(error.detail))
    return _error(message, error.status_code, dict(error.headers or {}))


async def _unfit(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(f"{first['loc'][-1]}: {first['msg']}", 422)


async def _failed(_: Request, __: Exception) -> Response:
    return _error("the service failed; its log says why", 500)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RefusedError: _refused,
    HTTPException: _not_found,
    RequestValidationError: _unfit,
    Exception: _failed,
}


def _error(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    answer = json_answer({"error": message}, status)
    answer.headers.update(headers or {})
    return answer
