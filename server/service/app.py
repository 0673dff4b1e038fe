"""The service as a FastAPI application: who may ask what, and how errors look.

All routes but ``/health`` and the files of the page, which hold nothing of the model, need the
token, if one is set. Every error is ``{"error": "…one line…"}``.
"""

import hmac
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from common.config import ServeConfig
from common.task import Task
from server.prediction.predictor import Predictor
from server.service.answers import HealthAnswer, error_answer, json_answer
from server.service.api import Api
from server.service.examples import Examples
from server.service.metrics import Counting

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
    guard = [] if token is None else [Depends(_guard(token))]
    summary = f"Predicts {_outcome(predictor)} from any of {', '.join(predictor.features)}."
    # Without its own documentation, which loads scripts from elsewhere: ours works offline.
    app = FastAPI(title="HA-Fedformer", summary=summary, lifespan=api.lifespan, openapi_url=None)
    app.get("/health", response_model=HealthAnswer)(health)
    app.include_router(_page())
    app.include_router(api.routes(), dependencies=guard)

    async def schema() -> Response:
        return json_answer(app.openapi())

    app.get("/openapi.json", include_in_schema=False, dependencies=guard)(schema)
    app.add_middleware(Counting, metrics=api.metrics)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _failed)
    return app


def _page() -> APIRouter:
    """Return a route for each file of the page and of the documentation of the API."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in FILES.items():
        content = (files("server.service") / "page" / name).read_bytes()
        _add(router, path, Response(content, headers=_HEADERS, media_type=kind))
    return router


def _add(router: APIRouter, path: str, file: Response) -> None:
    async def give() -> Response:
        return file

    router.add_api_route(path, give, methods=["GET", "HEAD"])


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


async def health() -> Response:
    """Say that the service is running."""
    return json_answer({"status": "ok"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    path = request.url.path
    of_router = {
        "Not Found": f"there is no {path}; /docs lists what there is",
        "Method Not Allowed": f"{path} does not take {request.method}",
    }
    message = of_router.get(error.detail, error.detail)
    return error_answer(message, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_answer(f"{first['loc'][-1]}: {first['msg']}", 422)


async def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=DISCONNECTED)


async def _failed(_: Request, __: Exception) -> Response:
    return error_answer("the service failed; see its log", 500)
