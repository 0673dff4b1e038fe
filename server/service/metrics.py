"""Metrics of a service, for Prometheus.

Labels hold only known routes and statuses, never what a caller made up.
"""

import time
from collections.abc import Callable
from functools import partial

import prometheus_client as prometheus
from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ITEMS = tuple(2**power for power in range(11))


class Metrics:
    """Metrics of one service; several services in a process do not mix.

    `waiting` returns the number of items that are not answered yet.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        own = self._registry = prometheus.CollectorRegistry()
        counter = partial(prometheus.Counter, registry=own)
        histogram = partial(prometheus.Histogram, buckets=_SECONDS, registry=own)
        prometheus.ProcessCollector(registry=own)
        prometheus.PlatformCollector(registry=own)
        self._requests = counter(
            "utmp_requests", "Requests that were answered.", ["route", "status"]
        )
        about = "From the head of a request to the end of its answer."
        self._seconds = histogram("utmp_request_seconds", about, ["route"])
        about = "Items that went through the model together."
        self._batches = histogram("utmp_batch_items", about, buckets=_ITEMS)
        self._model = histogram("utmp_batch_seconds", "Seconds in the model, for each batch.")
        self._items = counter("utmp_items", "Items that were predicted.")
        about = "Items that are not answered yet."
        prometheus.Gauge("utmp_waiting_items", about, registry=own).set_function(waiting)

    def predicted(self, items: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(items)
        self._model.observe(seconds)
        self._items.inc(items)

    async def counts(self) -> Response:
        """Give the metrics, in the text format of Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(prometheus.generate_latest(self._registry), headers={"Content-Type": kind})

    def counting(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application to count every request, also unknown routes and failures."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()
            status = 500  # if nothing else is sent

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self._requests.labels(route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - began)

        return counted
