"""The page, and the documentation of the API: files that need nothing from elsewhere.

They hold nothing of the model, and need no token.
"""

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


def page_routes() -> APIRouter:
    """Return a route for each file."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in FILES.items():
        content = (files("server.service") / "page" / name).read_bytes()
        _add(router, path, Response(content, headers=_HEADERS, media_type=kind))
    return router


def _add(router: APIRouter, path: str, file: Response) -> None:
    async def give() -> Response:
        return file

    router.add_api_route(path, give, methods=["GET", "HEAD"])
