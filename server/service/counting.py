"""Counts every request, also those that no route takes or that fail."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.service.metrics import Metrics


class Counting:
    """Middleware of ASGI.

    Parameters
    ----------
    app
        What answers.
    metrics
        What is told of it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # unless it is answered otherwise

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.perf_counter() - began)
