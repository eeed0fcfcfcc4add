"""From a request in words to an answer in numbers: which model, valid for it, in the cache, else submit.

Shapes: B windows, L window, F features, H steps a pass, N steps, P passes, K known-future covariates, T targets,
R attention rows a pass, A = P * R attention rows.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from app.cache import Answer, Cache, CacheWatcher, key_of
from app.catalogue import Catalogue
from app.engine import Engine, Outcome
from app.errors import FailedError, ForetellError, InvalidError, NotFiniteError, Place
from app.flights import Flights, Tell
from app.frames import Order
from app.ticket import Floats, ModelId, Times
from models.spec import Spec

log = logging.getLogger(__name__)

AttentionChoice = Literal["all", "last", "none"]

_MICROSECONDS = 1_000_000
"""In a second."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a body says: its windows [B, L, F], and the known future [B, N, K] and the start where it gives them."""

    windows: Floats
    future: Floats | None
    start: Times | None
    """[B], epoch microseconds of each window's first row."""
    single: bool
    """Whether it was one window, so that the answer is one forecast and not a list."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the options say. None is whatever the service's default is."""

    steps: int
    model: str | None = None
    version: str | None = None
    attention: AttentionChoice = "all"
    deadline_ms: int | None = None


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    steps: int
    deadline_ms: int
    answer_numbers: int


class Computed(NamedTuple):
    """A model's answer and what it cost."""

    answer: Answer
    queued_s: float
    device_s: float


class Job(NamedTuple):
    """A query made ready for a model: windows [B, L, F], known future [B, P * H, K] in whole passes.

    `time` [B] is that of each window's last row in epoch seconds; zeros where the model has no clock.
    """

    model: ModelId
    spec: Spec
    windows: Floats
    time: Times
    known: Floats
    steps: int
    attention: bool
    patience_s: float


class Predictor:
    """The one way from a query to a forecast."""

    def __init__(
        self, catalogue: Catalogue, engine: Engine, cache: Cache | None, watcher: CacheWatcher, limits: Limits
    ) -> None:
        self._catalogue = catalogue
        self._engine = engine
        self._cache = cache
        self._watcher = watcher
        self._limits = limits
        self._flights: Flights[Computed] = Flights()

    def check(self) -> None:
        """Refuse before the body is parsed; where the queue is full, also what the cache might have had."""
        self._engine.check()

    async def forecast(self, query: Query, choice: Choice) -> Forecast:
        """Answer a query; any ForetellError but those of HTTP itself."""
        job = self._job(query, choice)
        computed, cache = await self._computed(job)
        return Forecast(
            job.model,
            job.spec,
            computed.answer.forecast,
            _chosen(computed.answer.attention, choice.attention),
            choice.attention != "none",
            cache,
            computed.queued_s,
            computed.device_s,
        )

    def _job(self, query: Query, choice: Choice) -> Job:
        model, spec = self._catalogue.resolve(choice.model, choice.version)
        if choice.steps > self._limits.steps:
            raise InvalidError(Place("query.steps", f"{choice.steps} is above the ceiling of {self._limits.steps}"))
        if choice.deadline_ms is not None and choice.deadline_ms > self._limits.deadline_ms:
            raise InvalidError(Place("query.deadline_ms", f"at most {self._limits.deadline_ms}"))
        _check_windows(query, spec, most=self._engine.queue_rows)
        time = _time(query, spec)
        known = _known(query, spec, choice.steps)
        attention = choice.attention != "none" and spec.attention_rows > 0
        _check_size(query, spec, choice.steps, attention=attention, most=self._limits.answer_numbers)
        patience_s = (choice.deadline_ms or self._limits.deadline_ms) / 1000
        return Job(model, spec, query.windows, time, known, choice.steps, attention, patience_s)

    async def _computed(self, job: Job) -> tuple[Computed, Literal["hit", "miss"] | None]:
        if self._cache is None:
            return await self._flights.join(None, partial(self._start, job, None), job.patience_s), None
        key = key_of(job.model, job.windows, job.time, job.known, job.steps, attention=job.attention)
        kept = _kept(await self._cache.get(key), job)
        if kept is not None:
            self._watcher.cached("hit")
            return Computed(kept, 0.0, 0.0), "hit"
        self._watcher.cached("miss")
        return await self._flights.join(key, partial(self._start, job, key), job.patience_s), "miss"

    def _start(self, job: Job, key: str | None, tell: Tell[Computed]) -> Callable[[], None]:
        order = Order(
            digest=job.model.digest,
            windows=job.windows,
            time=job.time,
            known=job.known,
            passes=math.ceil(job.steps / job.spec.horizon),
            attention=job.attention,
        )
        return self._engine.submit(order, partial(self._finish, job, key, tell))

    def _finish(self, job: Job, key: str | None, tell: Tell[Computed], outcome: Outcome | ForetellError) -> None:
        if isinstance(outcome, ForetellError):
            tell(outcome)
            return
        try:
            answer = _answer(outcome.numbers, job)
            _check_finite(answer.forecast, job)
        except ForetellError as error:
            tell(error)
        except Exception:  # or it would break the connection, and with it everybody else's order
            log.exception("an answer of %s cannot be read", job.model)
            tell(FailedError("the model's answer cannot be read"))
        else:
            if key is not None and self._cache is not None:
                self._cache.put(key, answer.pack())
            tell(Computed(answer, outcome.queued_s, outcome.device_s))


def _kept(packed: bytes | None, job: Job) -> Answer | None:
    """The answer that a cache kept; None where it is none to this job: somebody else's bytes are as good as none."""
    try:
        kept = None if packed is None else Answer.unpack(packed)
    except ValueError:
        return None
    if kept is None or kept.forecast.shape != (len(job.windows), job.steps, len(job.spec.targets)):
        return None
    shape = None if kept.attention is None else kept.attention.shape
    wanted = (len(job.windows), _attention_rows(job), job.spec.window) if job.attention else None
    return kept if shape == wanted and np.isfinite(kept.forecast).all() else None


def _answer(numbers: Floats, job: Job) -> Answer:
    """Cut to the steps that were asked for: passes are whole."""
    spec, windows = job.spec, len(job.windows)
    passes = math.ceil(job.steps / spec.horizon)
    split = windows * passes * spec.horizon * len(spec.targets)
    forecast = numbers[:split].reshape(windows, passes * spec.horizon, len(spec.targets))[:, : job.steps]
    if not job.attention:
        return Answer(forecast, None)
    weights = numbers[split:].reshape(windows, passes * spec.attention_rows, spec.window)
    return Answer(forecast, weights[:, : _attention_rows(job)])


def _attention_rows(job: Job) -> int:
    """A for the steps that were asked for."""
    return math.ceil(job.steps * job.spec.attention_rows / job.spec.horizon)


def _chosen(attention: Floats | None, choice: AttentionChoice) -> Floats | None:
    return attention[:, -1:] if attention is not None and choice == "last" else attention


def _check_windows(query: Query, spec: Spec, *, most: int) -> None:
    place = "window" if query.single else "windows[0]"
    windows, rows, columns = query.windows.shape
    if columns != len(spec.features):
        names = ", ".join(spec.columns)
        raise InvalidError(Place(f"{place}[0]", f"{columns} numbers; the model takes {len(spec.features)}: {names}"))
    if rows != spec.window:
        raise InvalidError(Place(place, f"{rows} rows; the model takes exactly {spec.window}"))
    if windows > most:
        raise InvalidError(Place("windows", f"{windows} windows; a request may have at most {most}"))


def _check_size(query: Query, spec: Spec, steps: int, *, attention: bool, most: int) -> None:
    """An answer is written on the event loop: a small request must not make one of gigabytes."""
    weights = math.ceil(steps * spec.attention_rows / spec.horizon) * spec.window if attention else 0
    numbers = len(query.windows) * (steps * len(spec.targets) + weights)
    if numbers > most:
        hint = "; attention=none makes it smaller" if attention else ""
        raise InvalidError(Place("query.steps", f"the answer would have {numbers} numbers, of at most {most}{hint}"))


def _time(query: Query, spec: Spec) -> Times:
    """Epoch seconds of each window's last row [B]; zeros where the model has no clock."""
    if not spec.clock:
        if query.start is not None:
            raise InvalidError(Place("start", "the model has no clock"))
        return np.zeros(len(query.windows), np.int64)
    if query.start is None:
        raise InvalidError(Place("start", "needed: the time of the first row, since the model has a clock"))
    length = (spec.window - 1) * spec.frequency
    return (query.start + length // timedelta(microseconds=1)) // _MICROSECONDS


def _known(query: Query, spec: Spec, steps: int) -> Floats:
    """The known future [B, P * H, K]: what is given, and where that ends within a pass, as in its last row."""
    passes = math.ceil(steps / spec.horizon)
    names, windows = spec.known, len(query.windows)
    if not names:
        if query.future is not None:
            raise InvalidError(Place("future", "the model has no known-future covariates"))
        return np.empty((windows, passes * spec.horizon, 0), np.float32)
    if query.future is None:
        raise InvalidError(Place("future", f"needed: {steps} rows of {', '.join(names)}"))
    given, rows, columns = query.future.shape
    if columns != len(names):
        raise InvalidError(
            Place("future", f"{columns} numbers a row; the model takes {len(names)}: {', '.join(names)}")
        )
    if given != windows:
        raise InvalidError(Place("future", f"for {given} windows, but there are {windows}"))
    if rows < steps:
        raise InvalidError(Place("future", f"{rows} rows for {steps} steps: {steps - rows} are missing"))
    known = query.future[:, : passes * spec.horizon]
    return np.pad(known, ((0, 0), (0, passes * spec.horizon - known.shape[1]), (0, 0)), mode="edge")


def _check_finite(forecast: Floats, job: Job) -> None:
    if np.isfinite(forecast).all():
        return
    window, step, target = (int(index) for index in np.argwhere(~np.isfinite(forecast))[0])
    place = "window" if len(forecast) == 1 else f"windows[{window}]"
    name = job.spec.targets[target]
    raise NotFiniteError(Place(place, f"the model's forecast of {name} is not finite from step {step + 1} on"))
