"""From a request in words to an answer in numbers: which model, valid for it, in the cache, else submit.

Shapes: B windows, L window, F features, H steps a pass, N steps, P passes, K known features, T targets, Q quantiles,
R attention rows a pass, A = P * R attention rows.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from app.asked.layout import Layout, lay_out
from app.asked.query import Query
from app.asked.sheet import Sheet, query_of
from app.errors import FailedError, ForetellError, InvalidError, NotReadyError, Place
from app.forecasts.bands import Bander, Banding, Intervals, Wanted
from app.forecasts.cache import Answer, Cache, CacheWatcher, key_of
from app.forecasts.catalogue import Catalogue, Meant, Version
from app.forecasts.drift import Drift
from app.forecasts.job import Computed, Job, answer_of, check_finite, order_of
from app.forecasts.shadow import Shadows
from app.forecasts.streaming import Stream
from app.link.engine import Engine, Outcome
from app.link.flights import Flights, Tell
from app.link.frames import Order
from app.spans import Span, current
from app.ticket import Floats, ModelId, Times
from models.spec import Spec

log = logging.getLogger(__name__)

_STAMP = 20
"""Numbers that a timestamp takes as long to write as."""

AttentionChoice = Literal["all", "last", "none"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the options say. None is whatever the service's default is."""

    meant: Meant
    """Which model and version, see `Predictor.meant`."""
    steps: int
    attention: AttentionChoice = "all"
    deadline_ms: int | None = None
    wanted: Wanted | None = None
    """The intervals, where there are to be any."""
    bulk: bool = False
    """Whether it gives way to requests that are not."""


@dataclass(slots=True)
class Forecast:
    """The answer: forecast [B, N, T], attention [B, rows, L] where it is wanted and the model has it."""

    model: ModelId
    spec: Spec
    forecast: Floats
    attention: Floats | None
    wants_attention: bool
    cache: Literal["hit", "miss"] | None
    queued_s: float = 0.0
    device_s: float = 0.0
    single: bool = True
    """Whether one window was asked about, and B is 1."""
    last: Times | None = None
    """[B], epoch microseconds of each window's last row; None where it is not known."""
    series: list[str] | None = None
    """[B], what the windows are called where they have names."""
    intervals: Intervals | None = None
    """None where none were asked for."""
    layout_s: float = 0.0
    """From the query to the order,"""
    cache_s: float = 0.0
    """and what it took to ask the cache."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    steps: int
    row_steps: int
    """Windows times steps."""
    deadline_ms: int
    answer_numbers: int


class _Kept(NamedTuple):
    """What the cache has of a job."""

    key: str | None
    """Under which name; None where there is no cache."""
    answer: Answer | None
    seconds: float
    """It took to ask."""


class Said(NamedTuple):
    """All that a model was given, and all that it says of it."""

    model: ModelId
    spec: Spec
    layout: Layout
    outputs: Floats
    """[B, N, T + Q * T]"""


class Predictor:
    """The one way from a query to a forecast."""

    def __init__(
        self,
        catalogue: Catalogue,
        engine: Engine,
        cache: Cache | None,
        watcher: CacheWatcher,
        drift: Drift,
        bander: Bander,
        shadows: Shadows,
        limits: Limits,
    ) -> None:
        self._catalogue = catalogue
        self._engine = engine
        self._cache = cache
        self._watcher = watcher
        self._drift = drift
        self._bander = bander
        self._shadows = shadows
        self._limits = limits
        self._flights: Flights[Computed] = Flights()

    def meant(self, model: str | None, version: str | None, client: Callable[[], str] | None = None) -> Meant:
        """Which version that is, to this client; errors as of `Catalogue.resolve`, and refusals of a full engine.

        To be asked before the body is parsed. Where the queue is full, what the cache might have had is refused, too.
        """
        try:
            meant = self._catalogue.resolve(model, version, client)
        except NotReadyError:
            # Nothing is, where the engine is gone; that says more.
            self._engine.check()
            raise
        self._engine.check(digest=meant.id.digest)
        return meant

    @property
    def row_steps(self) -> int:
        """How many windows times steps a query may ask for."""
        return self._limits.row_steps

    async def forecast(self, asked: Query | Sheet, choice: Choice, *, within_s: float | None = None) -> Forecast:
        """Answer a query, within so many seconds or what the choice says; any ForetellError but those of HTTP."""
        job, layout_s = self._noted(asked, choice)
        if within_s is not None:
            job = job._replace(patience_s=within_s)
        banding = await self._banding(job, choice)
        computed, cache, cache_s = await self._computed(job)
        forecast, attention = computed.answer
        if choice.meant.shadow is not None:
            self._shadow(choice.meant.shadow, asked, choice, forecast)
        targets = len(job.spec.targets)
        return Forecast(
            job.model,
            job.spec,
            forecast[:, :, :targets],
            _chosen(attention, choice.attention),
            choice.attention != "none",
            cache,
            computed.queued_s,
            computed.device_s,
            job.query.single,
            job.layout.last,
            job.query.series,
            None if banding is None else _around(banding, job, forecast),
            layout_s,
            cache_s,
        )

    async def stream(self, asked: Query | Sheet, choice: Choice) -> Stream:
        """Begin a forecast that is told as it is computed; errors as in `forecast`, but for those of computing it."""
        job, layout_s = self._noted(asked, choice)
        banding = await self._banding(job, choice)
        kept = await self._look_up(job)
        stream = Stream(job, banding, choice.attention, _result(kept), layout_s, kept.seconds)
        if kept.answer is not None:
            stream.end(Computed(kept.answer, 0.0, 0.0))
        else:
            order = _order(job)._replace(in_parts=True)
            span, tell = current.get(), stream.end
            if span is not None:
                tell = partial(_told, span, time.perf_counter(), job, tell)
            stream.call_off = self._engine.submit(order, partial(self._finish, job, kept.key, tell), stream.add)
        if choice.meant.shadow is not None:
            stream.then = partial(self._shadow, choice.meant.shadow, asked, choice)
        return stream

    async def again(self, query: Query, choice: Choice) -> Said:
        """What a model says of windows that were asked about before; errors as in `forecast`."""
        job = self._job(query, choice)
        computed, _, _ = await self._computed(job)
        return Said(job.model, job.spec, job.layout, computed.answer.forecast)

    def _noted(self, asked: Query | Sheet, choice: Choice) -> tuple[Job, float]:
        """What is to be done, noted for the drift, and the seconds that it took to lay out."""
        began = time.perf_counter()
        job = self._job(asked, choice)
        layout_s = time.perf_counter() - began
        if (span := current.get()) is not None:
            span.stage("layout", began)
        self._drift.saw(job.model, job.spec, job.layout.windows)
        return job, layout_s

    def _job(self, asked: Query | Sheet, choice: Choice) -> Job:
        model, spec, _ = choice.meant
        if choice.steps > self._limits.steps:
            raise InvalidError(Place("query.steps", f"{choice.steps} is above the ceiling of {self._limits.steps}"))
        if choice.deadline_ms is not None and choice.deadline_ms > self._limits.deadline_ms:
            raise InvalidError(Place("query.deadline_ms", f"at most {self._limits.deadline_ms}"))
        most = self._engine.queue_rows
        query = query_of(asked, spec, choice.steps, most=most) if isinstance(asked, Sheet) else asked
        layout = lay_out(query, spec, choice.steps, most=most)
        _check_work(layout, choice.steps, self._limits.row_steps)
        attention = choice.attention != "none" and spec.attention_rows > 0
        levels = len(choice.wanted.levels) if choice.wanted else 0
        _check_size(layout, spec, choice.steps, levels, attention=attention, most=self._limits.answer_numbers)
        patience_s = (choice.deadline_ms or self._limits.deadline_ms) / 1000
        return Job(model, spec, query, layout, choice.steps, attention, patience_s, choice.bulk)

    async def _computed(self, job: Job) -> tuple[Computed, Literal["hit", "miss"] | None, float]:
        kept = await self._look_up(job)
        if kept.answer is not None:
            return Computed(kept.answer, 0.0, 0.0), "hit", kept.seconds
        # Whoever is in a hurry must not wait for what gives way.
        flight = f"{kept.key} bulk" if kept.key is not None and job.bulk else kept.key
        span = current.get()
        began = 0.0 if span is None else time.perf_counter()
        try:
            computed = await self._flights.join(flight, partial(self._start, job, kept.key), job.patience_s)
        except ForetellError as error:
            if span is not None:
                _tell(span, began, job, error)
            raise
        if span is not None:
            _tell(span, began, job, computed)
        return computed, _result(kept), kept.seconds

    async def _banding(self, job: Job, choice: Choice) -> Banding | None:
        """What is needed for the intervals that are wanted; it may have to be read."""
        if choice.wanted is None:
            return None
        began = time.perf_counter()
        banding = await self._bander.ready(job.model, job.spec, choice.wanted, choice.steps)
        if (span := current.get()) is not None:
            span.stage("calibration", began)
        return banding

    async def _look_up(self, job: Job) -> _Kept:
        if self._cache is None:
            return _Kept(None, None, 0.0)
        began = time.perf_counter()
        windows, moments, known, _ = job.layout
        key = key_of(job.model, windows, moments, known, job.steps, attention=job.attention)
        answer = _kept(await self._cache.get(key), job)
        self._watcher.cached("miss" if answer is None else "hit")
        if (span := current.get()) is not None:
            span.stage("cache", began, hit=answer is not None)
        return _Kept(key, answer, time.perf_counter() - began)

    def _start(self, job: Job, key: str | None, tell: Tell[Computed]) -> Callable[[], None]:
        return self._engine.submit(_order(job), partial(self._finish, job, key, tell))

    def _shadow(self, version: Version, asked: Query | Sheet, choice: Choice, forecast: Floats) -> None:
        """Ask the candidate the same, behind everything else; who asked waits for none of it."""

        def order() -> tuple[Spec, Order]:
            if version.spec is None:
                raise NotReadyError("it has been unloaded")
            meant = Meant(version.id, version.spec)
            job = self._job(asked, replace(choice, meant=meant, attention="none", wanted=None, bulk=True))
            return job.spec, order_of(job)

        self._shadows.ask(choice.meant, version.id, order, forecast)

    def _finish(self, job: Job, key: str | None, tell: Tell[Computed], outcome: Outcome | ForetellError) -> None:
        if isinstance(outcome, ForetellError):
            tell(outcome)
            return
        try:
            answer = answer_of(outcome.numbers, job)
            check_finite(answer.forecast, job)
        except ForetellError as error:
            tell(error)
        except Exception:  # or it would break the connection, and with it everybody else's order
            log.exception("an answer of %s cannot be read", job.model)
            tell(FailedError("the model's answer cannot be read"))
        else:
            if key is not None and self._cache is not None:
                self._cache.put(key, answer.pack())
            tell(Computed(answer, outcome.queued_s, outcome.device_s, outcome.ran))


def _order(job: Job) -> Order:
    """What a device is asked, and for whom, where that is traced."""
    span = current.get()
    return order_of(job) if span is None else order_of(job)._replace(trace=span.context)


def _around(banding: Banding, job: Job, forecast: Floats) -> Intervals:
    began = time.perf_counter()
    intervals = banding.around(job.layout.windows, forecast)
    if (span := current.get()) is not None:
        span.stage("bands", began)
    return intervals


def _tell(span: Span, began: float, job: Job, result: Computed | ForetellError) -> None:
    """What came of an order that was given then."""
    of = {"windows": job.windows, "steps": job.steps}
    if isinstance(result, ForetellError):
        span.stage("compute", began, problem=result.slug, **of)
    else:
        span.computed(began, result.queued_s, result.ran, **of)


def _told(span: Span, began: float, job: Job, tell: Tell[Computed], result: Computed | ForetellError) -> None:
    """The same, and tell whoever waits for it."""
    _tell(span, began, job, result)
    tell(result)


def _check_work(layout: Layout, steps: int, most: int) -> None:
    windows = len(layout.windows)
    if windows * steps > most:
        raise InvalidError(Place("query.steps", f"{steps} for each of {windows} windows; together at most {most}"))


def _result(kept: _Kept) -> Literal["hit", "miss"] | None:
    if kept.key is None:
        return None
    return "miss" if kept.answer is None else "hit"


def _kept(packed: bytes | None, job: Job) -> Answer | None:
    """The answer that a cache kept; None where it is none to this job: somebody else's bytes are as good as none."""
    try:
        kept = None if packed is None else Answer.unpack(packed)
    except ValueError:
        return None
    windows = len(job.layout.windows)
    if kept is None or kept.forecast.shape != (windows, job.steps, job.spec.outputs):
        return None
    shape = None if kept.attention is None else kept.attention.shape
    wanted = (windows, job.attention_rows, job.spec.window) if job.attention else None
    return kept if shape == wanted and np.isfinite(kept.forecast).all() else None


def _chosen(attention: Floats | None, choice: AttentionChoice) -> Floats | None:
    return attention[:, -1:] if attention is not None and choice == "last" else attention


def stamping(last: Times | None, steps: int) -> int:
    """What the times of the rows ahead take to write, in numbers; windows that end together share theirs."""
    return 0 if last is None else _STAMP * steps * len(np.unique(last))


def _check_size(layout: Layout, spec: Spec, steps: int, levels: int, *, attention: bool, most: int) -> None:
    """An answer is written on the event loop: a small request must not make one of gigabytes."""
    weights = math.ceil(steps * spec.attention_rows / spec.horizon) * spec.window if attention else 0
    numbers = len(layout.windows) * (steps * (spec.outputs + 2 * levels * len(spec.targets)) + weights)
    stamps = stamping(layout.last, steps)
    if numbers + stamps > most:
        hints = [f"; timestamps count for {stamps} of them" if stamps else ""]
        hints += ["; attention=none makes it smaller" if attention else ""]
        problem = f"the answer would have {numbers + stamps} numbers, of at most {most}"
        raise InvalidError(Place("query.steps", problem + "".join(hints)))
