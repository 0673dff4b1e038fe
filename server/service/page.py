"""The page, and the documentation of the API: files that need nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Response

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

#: The browser loads and asks only what this service serves; no other page may frame it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    """Return a route for each file; they need no token, since they hold nothing of the model."""
    router = APIRouter(include_in_schema=False)
    folder = files("server.service") / "page"
    for path, (name, kind) in FILES.items():
        file = Response((folder / name).read_bytes(), headers=_HEADERS, media_type=kind)
        router.add_api_route(path, _giver(file), methods=["GET", "HEAD"])
    return router


def _giver(file: Response) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return file

    return give
