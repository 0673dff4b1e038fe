"""Metrics of a service, for Prometheus.

Labels hold only known routes and statuses, never what a caller made up.
"""

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The text format that `Metrics.page` returns.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Metrics of one service; several services in a process do not mix."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self._requests = Counter(
            "utmp_requests", "Requests that were answered.", ("route", "status"), registry=own
        )
        self._seconds = Histogram(
            "utmp_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self._batches = Histogram(
            "utmp_batch_items",
            "Items that went through the model together.",
            buckets=_ITEMS,
            registry=own,
        )
        self._model = Histogram(
            "utmp_batch_seconds",
            "Seconds in the model, for each batch.",
            buckets=_SECONDS,
            registry=own,
        )
        self._items = Counter("utmp_items", "Items that were predicted.", registry=own)
        self._waiting = Gauge(
            "utmp_waiting_items", "Items that are not answered yet.", registry=own
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the number of waiting items from a function whenever the page is made."""
        self._waiting.set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def predicted(self, items: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(items)
        self._model.observe(seconds)
        self._items.inc(items)

    def page(self) -> bytes:
        """Return all metrics, in the text format of Prometheus."""
        return generate_latest(self._registry)


class Counting:
    """ASGI middleware that counts every request, also unknown routes and failures."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # if nothing else is sent

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
