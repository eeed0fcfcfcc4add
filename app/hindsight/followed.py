"""Windows of which it is known by now what followed: forecast again, and compared with that.

Shapes: B windows, L window, F features, n rows that followed, N calibrated steps, T targets, Q quantiles.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.asked.query import Followed, Query
from app.errors import InvalidError, Place
from app.forecasts.adaptive import Adaptive, Lesson, Outcomes
from app.forecasts.bands import Tables, base_of
from app.forecasts.catalogue import Meant
from app.forecasts.predictor import Choice, Predictor, Said
from app.ticket import Floats, ModelId
from models.intervals import Bounds, LevelError, StepsError, Table, miscoverage, name_of
from models.spec import Spec

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]


_LARGEST_ERROR = 1000.0
"""Standard deviations: one wild value must not drown all others in the sums, which only grow."""


class Asked(NamedTuple):
    """Which model, and how long to wait."""

    model: str | None
    version: str | None
    deadline_ms: int | None


@dataclass(frozen=True, slots=True)
class Compared:
    """What a model says of the windows, beside what came."""

    said: Said
    single: bool
    lengths: list[int]
    """[B], how many rows followed each."""
    truth: Floats
    """[B, n, T], NaN where it is not known and behind the rows that followed."""

    @property
    def forecast(self) -> Floats:
        """[B, n, T]"""
        return self.said.outputs[..., : self.truth.shape[2]]


@dataclass(frozen=True, slots=True)
class Surprises:
    """How unusual what came is to a model."""

    compared: Compared
    p_values: Doubles
    """[B, n, T], NaN where it is not known what came; likewise:"""
    bounds: Bounds
    miscoverage: float
    """What is outside of the intervals has a p-value of this or less."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How good the forecasts were."""

    compared: Compared
    outcomes: Outcomes
    lesson: Lesson | None
    """None where nobody knows what of it is new."""

    @property
    def errors(self) -> Doubles:
        """Forecast less actual [B, n, T], NaN where it is not known what came."""
        return self.compared.forecast.astype(np.float64) - self.compared.truth

    @property
    def known(self) -> Flags:
        """Which actuals [B, n, T] have intervals to compare with."""
        p_values = self.outcomes.p_values
        return np.zeros_like(self.outcomes.observed) if p_values is None else ~np.isnan(p_values)

    @property
    def learnable(self) -> Flags:
        """Which of those [B, n, T] adaptive intervals learn from: they do at the calibrated steps alone."""
        found = self.compared.said.spec.intervals
        calibrated = 0 if found is None else found.calibrated_steps
        return self.known & (np.arange(self.known.shape[1]) < calibrated)[:, None]

    @property
    def fresh(self) -> Flags:
        """Which of them count; all where nobody knows what is new."""
        return self.outcomes.observed if self.lesson is None else self.lesson.fresh

    def covered(self) -> dict[str, Flags]:
        """By level, which actuals [B, n, T] its interval held."""
        p_values = self.outcomes.p_values
        return {} if p_values is None else {name_of(level): p_values > miscoverage(level) for level in self.levels}

    @property
    def levels(self) -> list[float]:
        """Those that were measured when the model was made; none of a model without intervals."""
        found = self.compared.said.spec.intervals
        return [] if found is None else found.levels


class ActualsWatcher(Protocol):
    """Who keeps the counts (the metrics)."""

    def actuals(self, model: ModelId, target: str, ahead: str, count: int, absolute: float, squared: float) -> None:
        """So many actual values were posted; the sums of the absolute and of the squared errors of their forecasts."""

    def held(self, model: ModelId, target: str, ahead: str, intervals: tuple[str, str], inside: int, of: int) -> None:
        """Intervals, their level and `plain` or `adaptive`, held so many of these actual values."""


class Comparer:
    """Asks the model again, and looks at what came."""

    def __init__(
        self,
        predictor: Predictor,
        tables: Tables,
        adaptive: Adaptive,
        watcher: ActualsWatcher,
        *,
        most_rows: int,
    ) -> None:
        """At most so many rows that followed a window."""
        self._predictor = predictor
        self._tables = tables
        self._adaptive = adaptive
        self._watcher = watcher
        self._most_rows = most_rows

    async def surprises(self, followed: Followed, level: str, asked: Asked) -> Surprises:
        """At a level in percent; InvalidError also where the calibration is not enough for it."""
        model, spec, choice = self._chosen(followed, asked)
        table = await self._tables.of(model, spec, place="query.model")
        try:
            table.check([level], choice.steps)
        except LevelError as error:
            raise InvalidError(Place("query.level", str(error))) from error
        except StepsError as error:
            raise InvalidError(Place(_name(followed.query), str(error))) from error
        compared = await self._compared(followed, choice)
        p_values, bounds = await asyncio.to_thread(_surprising, table, compared, level)
        return Surprises(compared, p_values, bounds, miscoverage(level))

    async def judged(self, followed: Followed, asked: Asked) -> Judged:
        """And counted, and learnt from, where it is new."""
        model, spec, choice = self._chosen(followed, asked)
        table = None if spec.intervals is None else await self._tables.of(model, spec)
        compared = await self._compared(followed, choice)
        outcomes = Outcomes(_identities(compared.said), ~np.isnan(compared.truth))
        if table is not None:
            p_values = await asyncio.to_thread(_p_values, table, compared)
            outcomes = outcomes._replace(p_values=p_values, least=_least(table))
        judged = Judged(compared, outcomes, await self._adaptive.learn(model, spec, outcomes))
        _count(judged, self._watcher)
        return judged

    def _chosen(self, followed: Followed, asked: Asked) -> tuple[ModelId, Spec, Choice]:
        """The model, and how to ask this very one; InvalidError where the rows that followed are none of its."""
        model, spec, _ = self._predictor.meant(asked.model, asked.version)
        query, targets = followed.query, len(spec.targets)
        for index, rows in enumerate(followed.actual):
            if rows.shape[1] != targets:
                problem = f"{rows.shape[1]} numbers; the model forecasts {targets}: {', '.join(spec.targets)}"
                raise InvalidError(Place(f"{_name(query, index)}[0]", problem))
            if len(rows) > self._most_rows:
                raise InvalidError(Place(_name(query, index), f"{len(rows)} rows; at most {self._most_rows} are taken"))
        steps = max(len(rows) for rows in followed.actual)
        return model, spec, Choice(Meant(model, spec), steps, "none", asked.deadline_ms)

    async def _compared(self, followed: Followed, choice: Choice) -> Compared:
        said = await self._predictor.again(followed.query, choice)
        truth = np.full((len(followed.actual), choice.steps, len(said.spec.targets)), np.nan, np.float32)
        for index, rows in enumerate(followed.actual):
            truth[index, : len(rows)] = rows
        return Compared(said, followed.query.single, [len(rows) for rows in followed.actual], truth)


def _count(judged: Judged, watcher: ActualsWatcher) -> None:
    """What is new, by target and how far ahead."""
    said, fresh = judged.compared.said, judged.fresh
    ahead = {
        "first": slice(0, 1),
        "pass": slice(1, said.spec.horizon),
        "beyond": slice(max(1, said.spec.horizon), None),
    }
    targets = [feature for feature in said.spec.features if feature.role == "target"]
    most = np.array([_LARGEST_ERROR * feature.statistics.scale for feature in targets])
    errors = np.where(fresh, np.clip(judged.errors, -most, most), 0.0)
    known = judged.known & fresh
    covers = {(level, "plain"): (flags, known) for level, flags in judged.covered().items()}
    if judged.lesson is not None:
        # Beyond the calibrated steps there may be intervals, yet none that learns.
        learnt = judged.learnable & fresh
        pairs = zip(judged.levels, judged.lesson.inside, strict=True)
        covers |= {(name_of(level), "adaptive"): (flags, learnt) for level, flags in pairs}
    for name, rows in ahead.items():
        for index, target in enumerate(said.spec.targets):
            cells = (slice(None), rows, index)
            if not (count := int(fresh[cells].sum())):
                continue
            error = errors[cells]
            watcher.actuals(said.model, target, name, count, float(np.abs(error).sum()), float(np.square(error).sum()))
            for intervals, (flags, held) in covers.items():
                if of := int(held[cells].sum()):
                    watcher.held(said.model, target, name, intervals, int((flags & held)[cells].sum()), of)


def _name(query: Query, index: int = 0) -> str:
    """What the body calls the rows that followed a window."""
    return "actual" if query.single else f"actuals[{index}]"


def _surprising(table: Table, compared: Compared, level: str) -> tuple[Doubles, Bounds]:
    said = compared.said
    base = base_of(table, said.spec, said.layout.windows, said.outputs)
    (bounds,) = table.bounds(base, [level])
    return table.p_values(base, compared.truth), bounds


def _p_values(table: Table, compared: Compared) -> Doubles:
    """[B, n, T], NaN also at steps beyond those that have intervals."""
    said, truth = compared.said, compared.truth
    steps = truth.shape[1] if table.extrapolates else min(truth.shape[1], table.steps)
    base = base_of(table, said.spec, said.layout.windows, said.outputs[:, :steps])
    found = np.full(truth.shape, np.nan)
    found[:, :steps] = table.p_values(base, truth[:, :steps])
    return found


def _least(table: Table) -> Doubles:
    """Of an actual that no interval holds, by calibrated step and target [N, T]."""
    return len(table.ranks.scores) / (table.ranks.counts[: table.steps] + 1)


def _identities(said: Said) -> list[bytes]:
    """A name of 16 bytes for each window, of its values and, where it is known, its time: not of the rows ahead, of
    which more may be given the next time.
    """
    windows, last = said.layout.windows, said.layout.last
    stamps = [b""] * len(windows) if last is None else [time.tobytes() for time in last]
    return [
        hashlib.blake2b(window.tobytes() + stamp, digest_size=16).digest()
        for window, stamp in zip(windows, stamps, strict=True)
    ]
