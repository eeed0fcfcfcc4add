"""All metrics, each with the reason for its labels and buckets."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from app.apart import apart
from app.costs import Cost, Figures, Tallies, Tally
from app.counts import Ledger, Lifetimes, Together, VersionState, served
from app.ticket import ModelId

log = logging.getLogger(__name__)

# A small network answers in about a millisecond and a long forecast in seconds: a factor of two to three between
# bounds from 200 µs to 30 s.
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
# Powers of two, since that is how batches are thought of.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_REQUEST_SECONDS = "foretell_model_request_seconds"
_WINDOWS = "foretell_model_windows"
_STAGE_SECONDS = "foretell_model_stage_seconds"
_LAST = "foretell_model_last_request_timestamp_seconds"
_BATCHES = "foretell_pass_rows"
_OF_FIGURES = (_REQUEST_SECONDS, _WINDOWS, _STAGE_SECONDS, _LAST, _BATCHES)

_SWEEP_S = 1.0
"""So often a process looks which versions are served: all of them drop the figures of one within this."""


class Metrics:
    """The metrics of one application, in a registry of its own, so that tests can build ten applications.

    Where several processes serve, each is started with the library's variable that names a folder, keeps its figures
    there, and shows those of all of them: what a process counted outlives it.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, folder: Path | None = None, lifetimes: Lifetimes | None = None) -> None:
        # The times at which counters were made would double the number of series and tell nothing.
        disable_created_metrics()
        registry = CollectorRegistry()
        self._counted: Collector = registry
        self._live = CollectorRegistry()
        """What is read from the application when it is asked for."""
        self._turn = asyncio.Lock()
        self._ledger: Ledger | None = None
        self._lifetimes = lifetimes or Lifetimes()
        self._served: Callable[[], Iterable[ModelId]] | None = None
        values.ValueClass = values.MutexValue
        if folder is not None:
            self._counted = Together(folder, self._lifetimes.keeps)
            try:
                self._ledger = Ledger(folder, os.getpid())
            except OSError as error:
                # A service without figures is better than none.
                log.error("what this process counts is not shown: no room in %s (%s)", folder, error.strerror)  # noqa: TRY400  no bug
            else:
                values.ValueClass = self._ledger.figure
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
        self._pass_rows = Histogram(_BATCHES, "Windows in one pass.", of_model, buckets=_ROWS, registry=registry)
        self._out_of_memory = Counter(
            "foretell_out_of_memory_total",
            "Passes that did not fit into the device's memory and ran again in halves.",
            of_model,
            registry=registry,
        )
        # Whole requests by what became of them: from the cache they take no time to speak of, and failures are quick or
        # very slow.
        self._model_s = Histogram(
            _REQUEST_SECONDS,
            "Requests for forecasts of a model, from the first byte to the answer's last.",
            (*of_model, "result"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._model_windows = Counter(
            f"{_WINDOWS}_total",
            "Windows that these forecast from, by where the forecasts came from.",
            (*of_model, "source"),
            registry=registry,
        )
        self._model_stages = Counter(
            f"{_STAGE_SECONDS}_total",
            "What took these so long, where they were answered.",
            (*of_model, "stage"),
            registry=registry,
        )
        self._model_last = Gauge(
            _LAST,
            "When the last of them was answered.",
            of_model,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._tallies = Tallies(_SECONDS, self._asked)
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
        self._connections = Gauge(
            "foretell_connections", "Open connections of clients.", registry=registry, multiprocess_mode="livesum"
        )
        # By what the client did, or did not: limits that are too low and attacks look different.
        self._cut = Counter(
            "foretell_connections_cut_total",
            "Connections that the service ended or refused of its own accord.",
            ("reason",),
            registry=registry,
        )
        # The file of keys bounds the names.
        self._key_requests = Counter(
            "foretell_key_requests_total",
            "Requests by key and what became of them.",
            ("key", "result"),
            registry=registry,
        )
        of_shadow = (*of_model, "shadow")
        self._shadowed = Counter(
            "foretell_shadow_requests_total",
            "Requests that a candidate was asked too, by what came of it.",
            (*of_shadow, "result"),
            registry=registry,
        )
        self._shadow_values = Counter(
            "foretell_shadow_values_total",
            "Values that were compared with a candidate's.",
            (*of_shadow, "target"),
            registry=registry,
        )
        self._shadow_difference = Counter(
            "foretell_shadow_difference_total",
            "How far these were apart, in the target's unit.",
            (*of_shadow, "target"),
            registry=registry,
        )
        self._spans = Counter(
            "foretell_spans_total",
            "Spans of traces, by whether they were sent, found the queue full or could not be sent.",
            ("result",),
            registry=registry,
        )
        # Looking a series up costs as much as counting in it.
        self._answers = cache(self._answers_of)
        self._uses = cache(self._key_requests.labels)
        self._queues = cache(lambda model: self._queue_s.labels(model.name, str(model.version)))
        self._of_versions: tuple[MetricWrapperBase, ...] = (
            *(self._queue_s, self._pass_s, self._pass_rows, self._out_of_memory),
            *(self._model_s, self._model_windows, self._model_stages, self._model_last),
            *(self._input_values, self._input_deviations),
            *(self._actuals, self._absolute, self._squared, self._held),
        )
        self._of_shadows: tuple[MetricWrapperBase, ...] = (
            self._shadowed,
            self._shadow_values,
            self._shadow_difference,
        )
        for result in ("hit", "miss", "error"):
            self._cache.labels(result)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered, or its client hung up (499)."""
        count, duration = self._answers(method, route, status)
        count.inc()
        duration.observe(seconds)

    def asked(self, cost: Cost, status: int, seconds: float) -> None:
        """A request for a forecast was answered. It is shown soon after."""
        self._tallies.add(cost, status, seconds)

    def settle(self) -> None:
        """Show what this process has counted and not shown yet."""
        self._tallies.settle()

    def rejected(self, reason: str) -> None:
        """A request was refused, by the slug of its problem."""
        self._rejected.labels(reason).inc()

    def connections(self, count: int) -> None:
        """So many are open."""
        self._connections.set(count)

    def cut(self, reason: str) -> None:
        """A connection was ended or refused of our own accord."""
        self._cut.labels(reason).inc()

    def key_used(self, name: str, result: str) -> None:
        """A key was used, by its name: the request was `admitted`, `forbidden` or `over-quota`."""
        self._uses(name, result).inc()

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass."""
        self._queues(model).observe(seconds)

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass was done."""
        labels = (model.name, str(model.version))
        self._pass_s.labels(*labels).observe(seconds)
        self._pass_rows.labels(*labels).observe(rows)

    def out_of_memory(self, model: ModelId) -> None:
        """A pass did not fit into the device's memory."""
        self._out_of_memory.labels(model.name, str(model.version)).inc()

    def cached(self, result: str) -> None:
        """The cache was asked: `hit`, `miss` or `error`."""
        self._cache.labels(result).inc()

    def spans(self, result: str, count: int) -> None:
        """So many spans were `sent`, or were lost: the queue was `full`, or the collector has `failed`."""
        self._spans.labels(result).inc(count)

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

    def shadowed(self, model: ModelId, shadow: int, result: str) -> None:
        """A candidate was asked what a version was asked."""
        self._shadowed.labels(model.name, str(model.version), str(shadow), result).inc()

    def differed(self, model: ModelId, shadow: int, target: str, values: int, difference: float) -> None:
        """So many values of a target, and the sum of how far the two were apart."""
        labels = (model.name, str(model.version), str(shadow), target)
        self._shadow_values.labels(*labels).inc(values)
        self._shadow_difference.labels(*labels).inc(difference)

    def watch(
        self,
        versions: Callable[[], Iterable[VersionState]],
        aliases: Callable[[], Iterable[tuple[str, str, int, int]]],
        processes: Callable[[], Mapping[str, int]],
        ready: Callable[[], bool],
        followed: Callable[[], bool],
    ) -> None:
        """Read these when scraped: the versions; the aliases by model and name, with what each stands for and what
        answers for it; the ids of the service's processes by name; whether it may get requests; and whether the
        store can be read.
        """
        self.follow(lambda: served(versions()))
        self._live.register(_Versions(versions))
        self._live.register(_Aliases(aliases))
        self._live.register(_Processes(processes))
        self._live.register(
            _Flag("foretell_ready", "Whether the service may get requests, as /health/ready says.", ready)
        )
        said = "Whether the store's index was there and whole at the last look; what is loaded serves on without it."
        self._live.register(_Flag("foretell_store_followed", said, followed))

    def follow(self, models: Callable[[], Iterable[ModelId]]) -> None:
        """These are the models that are served; figures of others go in time, where `sweep` is called."""
        self._served = models

    def sweep(self) -> None:
        """Forget the figures of versions that have not been served for a while; from any one thread."""
        if self._served is None:
            return
        over = self._lifetimes.follow(self._served())
        if not over:
            return
        for name, version in over:
            for metric in self._of_versions:
                metric.remove_by_labels({"model": name, "version": version})
            for metric in self._of_shadows:
                metric.remove_by_labels({"model": name, "version": version})
                metric.remove_by_labels({"model": name, "shadow": version})
        self._queues.cache_clear()
        if self._ledger is not None:
            self._ledger.keep(partial(self._lifetimes.keeps, over=over))

    async def keep_swept(self) -> None:
        """Sweep for ever, in an application."""
        while True:
            self._try_to_sweep()
            await asyncio.sleep(_SWEEP_S)

    def sweep_for_ever(self) -> None:
        """The same in a thread, of a process without an event loop."""
        while True:
            self._try_to_sweep()
            time.sleep(_SWEEP_S)

    def _try_to_sweep(self) -> None:
        try:
            self.sweep()
        except OSError as error:
            log.warning("figures of versions that are gone stay for now: %s", error.strerror)
        except Exception:  # nobody waits for it, and the next time it may go well
            log.exception("figures of versions that are gone stay for now")

    async def exposition(self) -> bytes:
        """The text for Prometheus."""
        live: list[Metric] = []

        def text() -> bytes:
            return generate_latest(_Families([*self._counted.collect(), *live]))

        async with self._beside():
            live += self._live.collect()
            return await apart(text)

    async def figures(self) -> dict[tuple[str, str], Figures]:
        """Of every model and version that was asked for, what all processes have counted."""
        async with self._beside():
            return await apart(self._read)

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        """To read all figures takes half a second where there are hundreds of versions, so it is done beside the event
        loop, one reader at a time, but for one who leaves: what was begun for it still ends.
        """
        async with self._turn:
            self.settle()
            self._try_to_sweep()  # a version may be new
            yield

    def _read(self) -> dict[tuple[str, str], Figures]:
        found: dict[tuple[str, str], Figures] = {}
        for family in self._counted.collect():
            for sample in family.samples if family.name in _OF_FIGURES else ():
                version = (sample.labels["model"], sample.labels["version"])
                _note(found.setdefault(version, Figures()), sample.name, sample.labels, sample.value)
        return found

    def _asked(self, model: ModelId, tally: Tally) -> None:
        of_model = (model.name, str(model.version))
        for result, requests in tally.results.items():
            if any(requests.buckets):
                series = self._model_s.labels(*of_model, result)
                # As `observe` does, for many at once.
                series._sum.inc(requests.seconds)  # noqa: SLF001  no other way to tell many
                for bucket, count in zip(series._buckets, requests.buckets, strict=True):  # noqa: SLF001  the same
                    if count:
                        bucket.inc(count)
        for result, windows in tally.windows.items():
            if windows:
                self._model_windows.labels(*of_model, result).inc(windows)
        for stage, seconds in tally.stages.items():
            if seconds:
                self._model_stages.labels(*of_model, stage).inc(seconds)
        self._model_last.labels(*of_model).set(tally.last)

    def _answers_of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(method, route, str(status)), self._request_s.labels(route)


def _note(figures: Figures, name: str, labels: Mapping[str, str], value: float) -> None:
    """A sample of what `_OF_FIGURES` names."""
    if name == f"{_REQUEST_SECONDS}_count":
        figures.requests[labels["result"]] = int(value)
    elif name == f"{_REQUEST_SECONDS}_sum":
        figures.seconds[labels["result"]] = value
    elif name == f"{_WINDOWS}_total":
        figures.windows[labels["source"]] = int(value)
    elif name == f"{_STAGE_SECONDS}_total":
        figures.stages[labels["stage"]] = value
    elif name == f"{_BATCHES}_count":
        figures.passes = int(value)
    elif name == _LAST:
        figures.last = value


class _Families(Collector):
    """What has been collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


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


class _Aliases(Collector):
    """What every alias stands for, and what answers: where the two differ, somebody has to look."""

    def __init__(self, aliases: Callable[[], Iterable[tuple[str, str, int, int]]]) -> None:
        self._aliases = aliases

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ("model", "alias")
        stands = GaugeMetricFamily("foretell_alias_version", "The version that an alias stands for.", labels=labels)
        serves = GaugeMetricFamily(
            "foretell_alias_serving_version", "The version that answers for it; 0 is none.", labels=labels
        )
        for name, alias, version, serving in self._aliases():
            stands.add_metric((name, alias), version)
            serves.add_metric((name, alias), serving)
        yield stands
        yield serves


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


class _Flag(Collector):
    """Something that holds, or does not."""

    def __init__(self, name: str, said: str, holds: Callable[[], bool]) -> None:
        self._name = name
        self._said = said
        self._holds = holds

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._said, value=float(self._holds()))
