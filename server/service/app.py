"""The service as a FastAPI application: who may ask what, and how errors look.

All routes but ``/health`` and the files of the page need the token, if one is set. Every error is
``{"error": "…one line…"}``.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from common.config import ServeConfig
from common.task import Task
from server.prediction.predictor import Predictor
from server.service.api import Api, json_answer
from server.service.examples import Examples
from server.service.metrics import Counting
from server.service.page import page_routes

TITLE = "HA-Fedformer"

#: The status of a request whose client disconnected; only the metrics see it.
DISCONNECTED = 499


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
        Items that can be picked on the page.
    token
        Required of callers; None to require none.

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

    async def schema() -> Response:
        return json_answer(app.openapi())

    guarded = api.guarded_routes()
    guarded.add_api_route("/openapi.json", schema, include_in_schema=False)
    app.include_router(api.open_routes())
    app.include_router(page_routes())
    app.include_router(guarded, dependencies=[] if token is None else [Depends(_guard(token))])
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


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    """Return a check that a request carries the token."""
    scheme = HTTPBearer(auto_error=False, description="The token of the service.")

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        # The duration does not depend on where the two differ.
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            message = "the token is missing or wrong; send Authorization: Bearer TOKEN"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    return check


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    path = request.url.path
    of_router = {
        "Not Found": f"there is no {path}; /docs lists what there is",
        "Method Not Allowed": f"{path} does not take {request.method}",
    }
    message = of_router.get(error.detail, error.detail)
    return _error(message, error.status_code, error.headers or {})


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(f"{first['loc'][-1]}: {first['msg']}", 422)


async def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=DISCONNECTED)


async def _failed(_: Request, __: Exception) -> Response:
    return _error("the service failed; see its log", 500)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    StarletteHTTPException: _refused,
    RequestValidationError: _invalid,
    ClientDisconnect: _disconnected,
    Exception: _failed,
}


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    # A message may quote what a caller sent; it stays one line of text.
    line = "".join(letter if letter.isprintable() else " " for letter in message)
    answer = json_answer({"error": line}, status)
    answer.headers.update(headers or {})
    return answer
