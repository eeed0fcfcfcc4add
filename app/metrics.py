"""All metrics, each with the reason for its labels and buckets. The one file that uses prometheus_client."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.ticket import ModelId

# A small network answers in about a millisecond and a long forecast in seconds: a factor of two to three between
# bounds from 200 µs to 30 s.
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
# Powers of two, since that is how batches are thought of.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class VersionState(Protocol):
    """What the metrics need of a version."""

    @property
    def id(self) -> ModelId:
        """Which one."""

    @property
    def state(self) -> str:
        """What has become of it."""


class Metrics:
    """The metrics of one application, in a registry of its own, so that tests can build ten applications."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # The times at which counters were made would double the number of series and tell nothing.
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        # By route template, never by path: a path is the client's to choose and would make labels without end.
        self._requests = Counter(
            "foretell_requests_total", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._request_s = Histogram(
            "foretell_request_seconds",
            "From the request's first byte to the answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        of_model = ("model", "version")
        self._queue_s = Histogram(
            "foretell_queue_seconds", "Waiting for the first pass.", of_model, buckets=_SECONDS, registry=registry
        )
        self._pass_s = Histogram(
            "foretell_pass_seconds", "One pass on the device.", of_model, buckets=_SECONDS, registry=registry
        )
        self._pass_rows = Histogram(
            "foretell_pass_rows", "Windows in one pass.", of_model, buckets=_ROWS, registry=registry
        )
        self._cache = Counter("foretell_cache_total", "Cache look-ups by result.", ("result",), registry=registry)
        # By kind of problem: a client's mistakes and our overload want different alarms.
        self._rejected = Counter("foretell_rejected_total", "Requests refused.", ("reason",), registry=registry)
        self._waiting = Gauge("foretell_waiting_rows", "Windows accepted and not yet answered.", registry=registry)
        for result in ("hit", "miss", "error"):
            self._cache.labels(result)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered, or its client hung up (499)."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was refused, by the slug of its problem."""
        self._rejected.labels(reason).inc()

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass."""
        self._queue_s.labels(model.name, str(model.version)).observe(seconds)

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass was done."""
        labels = (model.name, str(model.version))
        self._pass_s.labels(*labels).observe(seconds)
        self._pass_rows.labels(*labels).observe(rows)

    def cached(self, result: str) -> None:
        """The cache was asked: `hit`, `miss` or `error`."""
        self._cache.labels(result).inc()

    def watch(self, waiting_rows: Callable[[], int], versions: Callable[[], Iterable[VersionState]]) -> None:
        """Read these when scraped instead of being told of every change."""
        self._waiting.set_function(waiting_rows)
        self._registry.register(_Versions(versions))

    def exposition(self) -> bytes:
        """The text for Prometheus."""
        return generate_latest(self._registry)


class _Versions(Collector):
    """1 for the state that a version is in; states come and go, so they are made at the scrape."""

    def __init__(self, versions: Callable[[], Iterable[VersionState]]) -> None:
        self._versions = versions

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "foretell_model_state",
            "Published versions and their state.",
            labels=("model", "version", "digest", "state"),
        )
        for version in self._versions():
            family.add_metric((version.id.name, str(version.id.version), version.id.digest, version.state), 1)
        yield family
