"""All metrics, each with the reason for its labels and buckets. The one file that uses prometheus_client."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
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
    """The metrics of one application, in a registry of its own, so that tests can build ten applications.

    Where several processes serve, each is started with the library's variable that names a folder, keeps its figures
    there, and shows those of all of them: what a process counted outlives it.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, folder: Path | None = None) -> None:
        # The times at which counters were made would double the number of series and tell nothing.
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self._shown = registry
        if folder is not None:
            # Asking the system for the process's id at every count would take longer than counting.
            pid = os.getpid()
            values.ValueClass = values.MultiProcessValue(lambda: pid)
            self._shown = CollectorRegistry()
            multiprocess.MultiProcessCollector(self._shown, str(folder))
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
        self._waiting = Gauge(
            "foretell_waiting_rows",
            "Windows accepted and not yet answered.",
            ("device",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Counts that processes can add up and queries take over any time: shares, means and coverage are theirs to
        # divide (docs/watching.md).
        self._input_values = Counter(
            "foretell_input_values_total",
            "Values in the last rows of windows, by where they lie among those of the training rows.",
            (*of_model, "feature", "range"),
            registry=registry,
        )
        self._input_deviations = Counter(
            "foretell_input_deviations_total",
            "Distances of these from the mean of the training rows, in standard deviations.",
            (*of_model, "feature", "side"),
            registry=registry,
        )
        # By how far ahead: the first step, the rest of the first pass, what is forecast from forecasts. Each step by
        # itself would make hundreds of series for a target.
        of_actual = (*of_model, "target", "ahead")
        self._actuals = Counter(
            "foretell_actuals_total", "Actual values that clients posted.", of_actual, registry=registry
        )
        self._absolute = Counter(
            "foretell_actuals_absolute_error_total",
            "Absolute errors of their forecasts, in the target's unit.",
            of_actual,
            registry=registry,
        )
        self._squared = Counter(
            "foretell_actuals_squared_error_total", "The same, squared.", of_actual, registry=registry
        )
        self._held = Counter(
            "foretell_actuals_intervals_total",
            "Whether their intervals held them.",
            (*of_actual, "level", "intervals", "result"),
            registry=registry,
        )
        self._adaptive_errors = Counter(
            "foretell_adaptive_errors_total",
            "Times that what adaptive intervals learnt could not be read or written.",
            registry=registry,
        )
        # Looking a series up costs as much as counting in it.
        self._answers = cache(self._answers_of)
        self._queues = cache(lambda model: self._queue_s.labels(model.name, str(model.version)))
        for result in ("hit", "miss", "error"):
            self._cache.labels(result)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered, or its client hung up (499)."""
        count, duration = self._answers(method, route, status)
        count.inc()
        duration.observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was refused, by the slug of its problem."""
        self._rejected.labels(reason).inc()

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass."""
        self._queues(model).observe(seconds)

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass was done."""
        labels = (model.name, str(model.version))
        self._pass_s.labels(*labels).observe(seconds)
        self._pass_rows.labels(*labels).observe(rows)

    def cached(self, result: str) -> None:
        """The cache was asked: `hit`, `miss` or `error`."""
        self._cache.labels(result).inc()

    def waiting(self, device: str, rows: int) -> None:
        """So many windows are accepted and not yet answered."""
        self._waiting.labels(device).set(rows)

    def inputs(
        self, model: ModelId, values: Mapping[tuple[str, str], int], deviations: Mapping[tuple[str, str], float]
    ) -> None:
        """Values came, by feature and range; their distances from the mean, by feature and side."""
        of_model = (model.name, str(model.version))
        for labels, count in values.items():
            self._input_values.labels(*of_model, *labels).inc(count)
        for labels, distance in deviations.items():
            self._input_deviations.labels(*of_model, *labels).inc(distance)

    def actuals(self, model: ModelId, target: str, ahead: str, count: int, absolute: float, squared: float) -> None:
        """So many actual values were posted; the sums of the absolute and of the squared errors of their forecasts."""
        labels = (model.name, str(model.version), target, ahead)
        self._actuals.labels(*labels).inc(count)
        self._absolute.labels(*labels).inc(absolute)
        self._squared.labels(*labels).inc(squared)

    def held(self, model: ModelId, target: str, ahead: str, intervals: tuple[str, str], inside: int, of: int) -> None:
        """Intervals, their level and `plain` or `adaptive`, held so many of these actual values."""
        labels = (model.name, str(model.version), target, ahead, *intervals)
        self._held.labels(*labels, "inside").inc(inside)
        self._held.labels(*labels, "outside").inc(of - inside)

    def adaptive_failed(self) -> None:
        """What adaptive intervals learnt could not be read or written."""
        self._adaptive_errors.inc()

    def watch(self, versions: Callable[[], Iterable[VersionState]], processes: Callable[[], Mapping[str, int]]) -> None:
        """Read these when scraped: the versions, and the ids of the service's processes by name."""
        self._shown.register(_Versions(versions))
        self._shown.register(_Processes(processes))

    def exposition(self) -> bytes:
        """The text for Prometheus."""
        return generate_latest(self._shown)

    def _answers_of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(method, route, str(status)), self._request_s.labels(route)


def forget_process(pid: int, folder: Path) -> None:
    """A process has ended: what it counted stays, what it had at the moment goes."""
    multiprocess.mark_process_dead(pid, str(folder))


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


class _Processes(Collector):
    """Memory, CPU time and open files of each process, under the usual names."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for process, pid in self._processes().items():
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {"process": process}, sample.value)
        yield from families.values()
