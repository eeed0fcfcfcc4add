"""What a model's errors would have been: every window of a long series is forecast as the service does, and compared
with what came.

Shapes: R rows of a series, L window, F features, N steps, P passes, H steps a pass, T targets, Q quantiles, K known
ones, B windows of an order.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.asked.query import Series
from app.errors import DeadlineError, InvalidError, Place, QueueFullError
from app.link.engine import Done, Outcome
from app.link.flights import Flights
from app.link.frames import Order
from app.ticket import Floats, ModelId
from models.spec import Spec

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
Line = dict[str, object]
"""What is told of a backtest, as JSON takes it."""

Bounds = Callable[[Floats, Floats], Mapping[str, tuple[Floats, Floats]]]
"""Prediction intervals: of windows [B, L, F] with NaN where a value is missing, and what the model says of them
[B, N, T * (1 + Q)], the lower and the upper ends [B, N, T] by level."""

Submit = Callable[[Order, Done], Callable[[], None]]
"""app.link.engine.Engine.submit"""

_IN_FLIGHT = 4
"""Orders, so that the device always has the next."""
_ORDER_BYTES = 2**22
"""An order is put together on the event loop: this much takes it about a millisecond."""
_PROGRESS = 100
"""Lines of it at most."""
_LISTED = 100
"""Series at most whose own results are told."""
_NO_SPREAD = 1e-12
"""Of the training variance: what rounding leaves of the spread of a truth that never changes."""
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with which model."""

    model: ModelId
    spec: Spec
    series: Sequence[Series]
    steps: int
    """N"""
    stride: int
    """Rows from a window to the next."""
    bounds: Bounds | None = None
    deadline: float | None = None
    """Of the event loop's clock, in seconds."""


class Cut(NamedTuple):
    """The first rows of the windows of a series, and how many more there would be if nothing were missing."""

    starts: Indices
    skipped: int


class Backtest:
    """One backtest, made ready; InvalidError where there is no window."""

    def __init__(self, job: Job, submit: Submit, *, rows: int) -> None:
        """At most `rows` windows are on their way at a time."""
        self._job = job
        self._submit = submit
        self._cuts = [cut(one, job.spec, job.steps, job.stride) for one in job.series]
        self._rows = max(1, min(rows // _IN_FLIGHT, _ORDER_BYTES // _window_bytes(job)))
        self._flights: Flights[Outcome] = Flights()
        if not self.windows:
            raise InvalidError(Place("body", self._no_window()))

    @cached_property
    def windows(self) -> int:
        """How many there are to do."""
        return sum(len(one.starts) for one in self._cuts)

    async def lines(self) -> AsyncGenerator[Line, None]:
        """What is about to be done, how it goes, and at last the result; ForetellError where it cannot go on.

        Whoever closes it early calls off what is under way.
        """
        yield self._head()
        total = Result(self._job)
        parts = [Result(self._job) for _ in self._job.series[:_LISTED]] if self._job.series[0].name else []
        orders = self._orders()
        every = math.ceil(self.windows / _PROGRESS)
        told = 0
        under_way: deque[tuple[int, Indices, asyncio.Task[Floats]]] = deque()
        try:
            while True:
                while len(under_way) < _IN_FLIGHT and (asked := next(orders, None)) is not None:
                    number, starts = asked
                    task = asyncio.create_task(self._forecast(self._order(number, starts)))
                    under_way.append((number, starts, task))
                if not under_way:
                    break
                # In their order, so that equal backtests have equal sums.
                number, starts, task = under_way[0]
                outputs = await task
                under_way.popleft()
                answered = self._answered(number, starts, outputs)
                for result in (total, *parts[number : number + 1]):
                    result.add(answered)
                if total.done // every > told and total.done < self.windows:
                    told = total.done // every
                    yield {"done": total.done, "windows": self.windows, "mae": total.mean_errors()}
        finally:
            for _, _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in under_way), return_exceptions=True)
        listed = zip(self._job.series, parts, strict=False)
        by_series = [{"series": one.name, **part.told(mase=False)} for one, part in listed]
        yield {"result": {**total.told(mase=True), **({"series": by_series} if parts else {})}}

    def _head(self) -> Line:
        model, spec, job = self._job.model, self._job.spec, self._job
        return {
            "model": model.name,
            "version": model.version,
            "digest": model.digest,
            "targets": spec.targets,
            "steps": job.steps,
            "stride": job.stride,
            "series": len(job.series),
            "windows": self.windows,
            "skipped": sum(one.skipped for one in self._cuts),
        }

    def _no_window(self) -> str:
        spec, steps = self._job.spec, self._job.steps
        longest = max((len(one.values) for one in self._job.series), default=0)
        needed = spec.window + steps
        if longest < needed:
            return f"no window: one takes {spec.window} rows and {steps} ahead, the longest series has {longest}"
        return f"no window: in each of the {needed} rows that one takes something is missing that the model needs"

    def _orders(self) -> Iterator[tuple[int, Indices]]:
        """Number of the series, and the windows of it that go together."""
        for number, (starts, _) in enumerate(self._cuts):
            for begin in range(0, len(starts), self._rows):
                yield number, starts[begin : begin + self._rows]

    def _order(self, number: int, starts: Indices) -> Order:
        spec, series = self._job.spec, self._job.series[number]
        windows, ahead = self._rows_of(series, starts)
        passes = _passes(self._job)
        known = ahead[:, :, [index for index, feature in enumerate(spec.features) if feature.is_known]]
        missing = passes * spec.horizon - self._job.steps
        return Order(
            digest=self._job.model.digest,
            windows=windows,
            time=_times(series, spec, starts),
            known=np.pad(known, ((0, 0), (0, missing), (0, 0)), mode="edge"),
            passes=passes,
            attention=False,
            bulk=True,
        )

    def _rows_of(self, series: Series, starts: Indices) -> tuple[Floats, Floats]:
        """Windows [B, L, F], and the rows ahead of them [B, N, F]."""
        length = self._job.spec.window
        rows = np.lib.stride_tricks.sliding_window_view(series.values, length + self._job.steps, 0)[starts]
        rows = np.ascontiguousarray(rows.transpose(0, 2, 1))
        return np.ascontiguousarray(rows[:, :length]), rows[:, length:]

    async def _forecast(self, order: Order) -> Floats:
        """All numbers of the answer; waits where others have filled the queue of bulk work."""
        while True:
            try:
                outcome = await self._flights.join(None, partial(self._submit, order), self._patience_s())
            except QueueFullError as error:
                await asyncio.sleep(min(float(error.headers["Retry-After"]), self._patience_s()))
            else:
                return outcome.numbers

    def _patience_s(self) -> float:
        if self._job.deadline is None:
            return math.inf
        left_s = self._job.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineError("the deadline passed before the backtest was done")
        return left_s

    def _answered(self, number: int, starts: Indices, numbers: Floats) -> "Answered":
        spec, targets = self._job.spec, len(self._job.spec.targets)
        outputs = numbers.reshape(len(starts), -1, spec.outputs)[:, : self._job.steps]
        windows, ahead = self._rows_of(self._job.series[number], starts)
        columns = [index for index, feature in enumerate(spec.features) if feature.role == "target"]
        return Answered(windows, outputs, outputs[:, :, :targets], windows[:, :, columns], ahead[:, :, columns])


def cut(series: Series, spec: Spec, steps: int, stride: int) -> Cut:
    """The windows of a series: L rows that the service would take as they are (app/asked/layout.py), whose targets and
    known values ahead are all there.

    Where the model takes shorter windows, leading rows of nothing count as not given.
    """
    length = spec.window
    count = len(series.values) - length - steps + 1
    if count <= 0:
        return Cut(np.zeros(0, np.int64), 0)
    starts = np.arange(0, count, stride)
    end = starts + length
    first = _first_given(series, spec, starts)
    fits = end - first >= spec.fewest
    limit = 0 if spec.gaps == "refuse" else spec.gaps.limit
    # Column by column, since such an array of all of them may be larger than the series.
    for feature, values in zip(spec.features, series.values.T, strict=True):
        missing = np.isnan(values)
        before, far = _summed(missing), _summed(_runs(missing) > limit)
        fits &= (before[end] - before[first] < end - first) & (far[end] == far[np.minimum(first + limit, end)])
        if feature.role == "target" or feature.is_known:
            fits &= before[end + steps] == before[end]
    return Cut(starts[fits], int(len(starts) - fits.sum()))


def _first_given(series: Series, spec: Spec, starts: Indices) -> Indices:
    """The first row of each window that counts as given; the one after it where there is none."""
    if spec.shortest is None:
        return starts
    given = np.zeros(len(series.values), np.bool_)
    for feature, values in zip(spec.features, series.values.T, strict=True):
        if feature.role != "static":
            given |= ~np.isnan(values)
    places = np.where(given, np.arange(len(given)), len(given))
    return np.minimum(np.minimum.accumulate(places[::-1])[::-1][starts], starts + spec.window)


def _runs(missing: Flags) -> Indices:
    """Of each row [R], how many missing values in a row end with it; 0 where there is a value."""
    rows = np.arange(1, len(missing) + 1)
    return rows - np.maximum.accumulate(np.where(missing, 0, rows))


def _summed(marked: Flags) -> Indices:
    """[R + 1]: how many rows before each are marked."""
    return np.concatenate([[0], np.cumsum(marked)])


def _passes(job: Job) -> int:
    return math.ceil(job.steps / job.spec.horizon)


def _window_bytes(job: Job) -> int:
    """What a window and its answer take."""
    spec = job.spec
    ahead = _passes(job) * spec.horizon * (len(spec.known) + spec.outputs)
    return 4 * (spec.window * len(spec.features) + ahead)


def _times(series: Series, spec: Spec, starts: Indices) -> Indices:
    """Epoch seconds of the last row of windows [B]; zeros where the model has no clock."""
    if not spec.clock or series.start is None:
        return np.zeros(len(starts), np.int64)
    return (series.start + (starts + spec.window - 1) * (spec.frequency // _MICROSECOND)) // 1_000_000


class Answered(NamedTuple):
    """Windows, what the model said of them, and what came."""

    windows: Floats
    """[B, L, F]"""
    outputs: Floats
    """[B, N, T * (1 + Q)]"""
    forecast: Floats
    """[B, N, T]"""
    given: Floats
    """[B, L, T], the targets of the windows."""
    truth: Floats
    """[B, N, T]"""


class Result:
    """Errors of the model, of the last season gone on with, and of intervals, over all windows so far."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.done = 0
        """Windows"""
        self._not_finite = 0
        self._errors = Errors(job.spec, job.steps)
        self._naive = Errors(job.spec, job.steps) if job.spec.metrics.season <= job.spec.window else None
        self._covers: dict[str, Coverage] = {}

    def add(self, answered: Answered) -> None:
        """Some more windows. Of one whose forecast is not finite, which no client would get, nothing else counts."""
        finite = np.asarray(np.isfinite(answered.outputs).all((1, 2)))
        self.done += len(finite)
        self._not_finite += int(len(finite) - finite.sum())
        if not finite.any():
            return
        kept = Answered(*(array[finite] for array in answered))
        self._errors.add(kept.forecast, kept.truth)
        if self._naive is not None:
            season = self._job.spec.metrics.season
            places = self._job.spec.window - season + np.arange(self._job.steps) % season
            self._naive.add(kept.given[:, places], kept.truth)
        if self._job.bounds is not None:
            for level, (lower, upper) in self._job.bounds(kept.windows, kept.outputs).items():
                found = self._covers.setdefault(level, Coverage(float(level), kept.truth.shape[1:]))
                found.add(lower, upper, kept.truth)

    def mean_errors(self) -> dict[str, float | None]:
        """The MAE of each target so far, the mean of all steps."""
        return self._errors.means()

    def told(self, *, mase: bool) -> Line:
        """All of it; `mase` only of all series, whose naive error in training is the only one that is known."""
        naive = {} if self._naive is None else {"seasonal_naive": self._naive.told(mase=mase)}
        targets = self._job.spec.targets
        covers = {level: found.told(targets) for level, found in self._covers.items()}
        intervals = {} if self._job.bounds is None else {"intervals": covers}
        return {
            "windows": self.done,
            "not_finite": self._not_finite,
            "model": self._errors.told(mase=mase),
            "baselines": naive,
            **intervals,
        }


class Errors:
    """Sums by step and target, in double precision, as the offline evaluation has them."""

    def __init__(self, spec: Spec, steps: int) -> None:
        self._targets = [feature for feature in spec.features if feature.role == "target"]
        self._scale = np.array([feature.statistics.scale for feature in self._targets])
        self._mean = np.array([feature.statistics.mean for feature in self._targets])
        self._naive_errors = [_naive_error(spec, name) for name in spec.targets]
        self._count, self._absolute, self._squared, self._signed, self._truth, self._truth_squared = np.zeros(
            (6, steps, len(self._targets))
        )

    def add(self, forecast: Floats, truth: Floats) -> None:
        """Two [B, N, T]; what is missing (NaN) in the forecast counts for nothing."""
        given, wanted = forecast.astype(np.float64), truth.astype(np.float64)
        seen = ~np.isnan(given)
        error = np.where(seen, given - wanted, 0)
        # About the mean, so that the squares of a series far from zero keep their digits.
        centred = np.where(seen, (wanted - self._mean) / self._scale, 0)
        self._count += seen.sum(0)
        self._absolute += np.abs(error).sum(0)
        self._squared += np.square(error).sum(0)
        self._signed += error.sum(0)
        self._truth += centred.sum(0)
        self._truth_squared += np.square(centred).sum(0)

    def means(self) -> dict[str, float | None]:
        """The mean absolute error of each target, all steps together."""
        found = _listed(_mean(self._absolute.sum(0), self._count.sum(0)))
        return {target.name: error for target, error in zip(self._targets, found, strict=True)}

    def told(self, *, mase: bool) -> dict[str, Line]:
        """By target, then by metric, one number a step; None where a metric has none."""
        return {target.name: self._of(index, mase=mase) for index, target in enumerate(self._targets)}

    def _of(self, target: int, *, mase: bool) -> Line:
        count = self._count[:, target]
        mae, mse = _mean(self._absolute[:, target], count), _mean(self._squared[:, target], count)
        truth, squared = _mean(self._truth[:, target], count), _mean(self._truth_squared[:, target], count)
        spread = squared - np.square(truth)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(spread > _NO_SPREAD, 1 - mse / self._scale[target] ** 2 / spread, np.nan)
        naive_error = self._naive_errors[target]
        scaled = {"mase": _listed(mae / naive_error) if naive_error else None} if mase else {}
        return {
            "n": count.astype(int).tolist(),
            "mae": _listed(mae),
            "rmse": _listed(np.sqrt(mse)),
            "bias": _listed(_mean(self._signed[:, target], count)),
            "r2": _listed(r2),
            **scaled,
        }


class Coverage:
    """Sums of the intervals of a level (percent) by step and target [N, T]."""

    def __init__(self, level: float, shape: tuple[int, ...]) -> None:
        self._miss = 1 - level / 100
        self._count, self._inside, self._width, self._score = np.zeros((4, *shape))

    def add(self, lower: Floats, upper: Floats, truth: Floats) -> None:
        """Three [B, N, T]. A miss costs 2 / alpha times how far outside it is (Winkler, 1972)."""
        low, high, real = (array.astype(np.float64) for array in (lower, upper, truth))
        self._count += len(real)
        self._inside += ((low <= real) & (real <= high)).sum(0)
        self._width += (high - low).sum(0)
        outside = np.maximum(np.maximum(low - real, real - high), 0)
        self._score += (high - low + 2 / self._miss * outside).sum(0)

    def told(self, targets: Sequence[str]) -> dict[str, Line]:
        """By target, one number a step."""
        found = {
            "coverage": _mean(self._inside, self._count),
            "width": _mean(self._width, self._count),
            "winkler": _mean(self._score, self._count),
        }
        return {
            name: {metric: _listed(values[:, index]) for metric, values in found.items()}
            for index, name in enumerate(targets)
        }


def _naive_error(spec: Spec, target: str) -> float | None:
    """The mean absolute error of the seasonal-naive forecast on the training rows; None where nobody knows it."""
    scores = spec.metrics.model[target]
    pairs = zip(scores.mae, scores.mase, strict=True)
    return next((mae / mase for mae, mase in pairs if mase), None)


def _mean(total: Doubles, count: Doubles) -> Doubles:
    with np.errstate(invalid="ignore"):
        return total / count


def _listed(values: Doubles) -> list[float | None]:
    """As JSON takes it: no NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
