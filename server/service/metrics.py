"""What Prometheus is told of a service.

The labels are the routes and statuses that there are, never what a caller made up.
"""

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

#: Of a page that `Metrics.page` returns.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts of one service; several in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "utmp_requests",
            "Requests that were answered.",
            ("route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "utmp_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "utmp_batch_items",
            "Items that went through the model together.",
            buckets=_ITEMS,
            registry=self._registry,
        )
        self._model = Histogram(
            "utmp_batch_seconds",
            "Seconds in the model, for each batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._items = Counter("utmp_items", "Items that were predicted.", registry=self._registry)
        self._waiting = Gauge(
            "utmp_waiting_items", "Items asked and not yet answered.", registry=self._registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Tell, whenever somebody looks, how many items wait."""
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
        """Return all that was counted, in the text format of Prometheus."""
        return generate_latest(self._registry)
