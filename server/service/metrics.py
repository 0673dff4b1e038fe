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
_ITEMS = tuple(2**power for power in range(11))


class Metrics:
    """Metrics of one service; several services in a process do not mix.

    `waiting` returns the number of items that are not answered yet.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        own = self._registry = CollectorRegistry()

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=buckets, registry=own)

        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self._requests = Counter(
            "utmp_requests", "Requests that were answered.", ("route", "status"), registry=own
        )
        about = "From the head of a request to the end of its answer."
        self._seconds = histogram("utmp_request_seconds", about, _SECONDS, "route")
        about = "Items that went through the model together."
        self._batches = histogram("utmp_batch_items", about, _ITEMS)
        about = "Seconds in the model, for each batch."
        self._model = histogram("utmp_batch_seconds", about, _SECONDS)
        self._items = Counter("utmp_items", "Items that were predicted.", registry=own)
        about = "Items that are not answered yet."
        Gauge("utmp_waiting_items", about, registry=own).set_function(waiting)

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
