"""Conformal prediction intervals: order statistics of a model's errors on windows that it has never seen.

Shapes: W calibration windows, B windows of a request, L window, N calibrated steps, M steps asked for, T targets,
S sides of a score, G ranks stored of each. Values are in the units of the data. Needs no torch.

An error becomes a score on each side of what it is measured from: how far the truth lay below, and how far above. With
the scores of n windows sorted, the k-th covers the next truth with a probability of at least k / (n + 1), if windows
are exchangeable (Vovk, Gammerman and Shafer, 2005; Lei et al., 2018; by step: Stankeviciute et al., 2021). Forecasts of
a series are so only nearly: what a table covers in fact is measured on later windows (`measured`).
"""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, ValidationError

from models.spec import Frozen, first_error

Single = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

Level = float | str
"""Percent, between 0 and 100; read as the decimal that it prints as: 99.9 is that and not the nearest binary."""

Method = Literal["conformal", "scaled", "cqr"]
"""What errors are measured from: the forecast; the same, in units of the window's volatility; or a pair of quantile
forecasts (Romano, Patterson and Candès, 2019)."""

Band = Literal["each", "path"]
"""Whether a level holds for each step by itself or for all steps of a target at once."""

_PERCENT = 10**7
_WHOLE = 100 * _PERCENT
"""A miscoverage of 1. Counted in these parts, ranks are exact: (n + 1) * (1 - 0.9 / 2) in floats is not."""

ADAPTIVE_RATE = 0.02
"""How fast adaptive miscoverages move: at every truth by so much of what it was off."""

_MOST_WINDOWS = 2**32
"""That a cell can count: in parts of a miscoverage they still fit into 64 bits."""
_BUDGET = 2**20
_CACHED = 64
"""Of a table's margins: clients ask for the same few levels, and nobody can fill the memory with others."""
_FLOOR = 0.01
"""Of the typical volatility: what a window that never moves is given."""
_OWED = 3
"""Misses that adaptive miscoverage can be below 0."""
_LARGEST = float(np.finfo(np.float32).max)

_MAGIC = b"intervals"
_FRAME = struct.Struct("<II")
"""Before the header: the CRC-32 of all that follows, and the header's length."""


class LevelError(ValueError):
    """A level that is none, or for which the calibration windows are too few."""


class StepsError(ValueError):
    """More steps than were calibrated."""


class Bounds(NamedTuple):
    """The ends of the intervals of one level, both included: [B, M, T] each."""

    lower: Single
    upper: Single


@dataclass(frozen=True, slots=True)
class Base:
    """What a model says of B windows, and what a method needs besides."""

    forecast: Floats
    """[B, M, T]"""
    low: Floats | None = None
    """[B, M, T] quantile forecasts, for `cqr`; likewise:"""
    high: Floats | None = None
    volatility: Floats | None = None
    """[B, T], for `scaled`: see the function of that name."""


def miscoverage(level: Level) -> float:
    """The share of truths that intervals of this level may miss; LevelError unless 0 < level < 100."""
    return _parts(level) / _WHOLE


def name_of(level: Level) -> str:
    """A level as short as it can be written: `80`, `97.5`. LevelError as of `miscoverage`."""
    _parts(level)
    text = f"{Decimal(str(level)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def windows_for(level: Level, *, symmetric: bool = False) -> int:
    """How many calibration windows a level takes at least; LevelError as of `miscoverage`."""
    return -(-(1 if symmetric else 2) * _WHOLE // _parts(level)) - 1


def volatility(rows: Floats, typical: Floats) -> NDArray[np.float64]:
    """How much each window [B, L, T] moves from row to row: the mean absolute difference [B, T], in the targets' units.

    Over the pairs of neighbours that are both observed (not NaN), plus a hundredth of `typical` [T], which is the same
    mean over the training rows: no window has a volatility of zero. A window without such a pair tells nothing and has
    the typical one; a small one would claim that nothing moves.
    """
    moves = np.abs(np.diff(rows.astype(np.float64), axis=1))
    seen = ~np.isnan(moves)
    pairs = seen.sum(1)
    mean = np.where(seen, moves, 0).sum(1) / np.maximum(pairs, 1)
    return np.where(pairs > 0, mean + _FLOOR * typical, typical)


class _Spacing(NamedTuple):
    """Which of the ranks `first` to n of each cell are stored, at positions 0 to `stored` - 1.

    All of them or, where those are too many, the outermost ones without a gap from `dense` on and before those `spaced`
    ones at even distances: high levels are the ones that are asked for.
    """

    first: Ints
    spaced: Ints
    dense: Ints
    stored: Ints

    @classmethod
    def of(cls, counts: Ints, sides: int, size: int) -> "_Spacing":
        """For n = `counts`. With two sides no level needs the lower half: there the other side is the nearer."""
        first = (counts + 2) // 2 if sides == 2 else np.ones_like(counts)
        ranks = counts - first + 1
        fits = ranks <= size
        outermost = np.where(fits, ranks, size // 2)
        return cls(first, np.where(fits, 0, size - size // 2), counts + 1 - outermost, np.minimum(ranks, size))

    def rank(self, position: Ints) -> Ints:
        """The rank at a position."""
        even = self.first + position * (self.dense - self.first) // np.maximum(self.spaced, 1)
        return np.where(position < self.spaced, even, self.dense + position - self.spaced)

    def position(self, rank: Ints) -> Ints:
        """Of the rank or, where that is not stored, of the next one outwards: wider, so that coverage holds."""
        even: Ints = -(-(rank - self.first) * self.spaced // np.maximum(self.dense - self.first, 1))
        return np.where(rank < self.dense, even, self.spaced + rank - self.dense)


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Order statistics of scores, cell by cell."""

    scores: Single
    """[S, G, N, T], rising along G and rounded up; where a cell has fewer, what follows is never read."""
    counts: Ints
    """[N, T]: n, the windows that each cell has scores of."""

    def rank(self, parts: Ints | int, rows: Ints) -> Ints:
        """ceil((n + 1) * (1 - a / S)) for cells of these rows [M], a in `parts` [M, T]; above n there is no score."""
        more = self.counts[rows] + 1
        return more - more * parts // (len(self.scores) * _WHOLE)

    def position(self, rank: Ints, rows: Ints) -> Ints:
        """Where the score of a rank [M, T] is; the nearest one where there is none."""
        spacing = self.spacing(rows)
        inside = np.clip(rank, spacing.first, np.maximum(self.counts[rows], spacing.first))
        return np.maximum(np.minimum(spacing.position(inside), spacing.stored - 1), 0)

    def margins(self, position: Ints, rows: Ints) -> NDArray[np.float64]:
        """The scores [S, ..., M, T] at positions [..., M, T]."""
        found = self.scores[:, position, rows[:, None], np.arange(self.counts.shape[1])]
        return found.astype(np.float64)

    def spacing(self, rows: Ints) -> _Spacing:
        """Which ranks are stored of the cells of these rows."""
        return _Spacing.of(self.counts[rows], *self.scores.shape[:2])

    def fewest(self, rows: Ints) -> int:
        """The n of the cell that has the fewest scores."""
        return int(self.counts[rows].min())


class _Cut(NamedTuple):
    """Where a level cuts the scores: positions [M, T], and the margins [S, M, T] there."""

    position: Ints
    margins: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """The intervals of one request, from position 0, the narrowest, outwards."""

    ranks: Ranks
    rows: Ints
    low: Floats
    """[B, M, T], as `high`: what margins are taken from."""
    high: Floats
    unit: Floats | None
    """[B, 1, T], what margins are in where it is not the unit of the data."""

    def around(self, margins: NDArray[np.float64]) -> Bounds:
        """From so far below to so far above; margins [S, ..., M, T], alike on both sides where S is 1."""
        below, above = margins[0], margins[-1]
        if self.unit is not None:
            below, above = below * self.unit, above * self.unit
        # Rounding keeps the order, and truths are single: none falls outside by it.
        return Bounds(_single(self.low - below), _single(self.high + above))

    def at(self, position: Ints) -> Bounds:
        """The intervals at positions [M, T] or [B, M, T]; further out for a cell whose sides cross there."""
        return self._beyond(self._inner(), position)

    def reach(self, truth: Floats) -> Ints:
        """The first position whose interval holds the truth [B, M, T]; one beyond the last where none does."""
        inner = self._inner()

        def holds(position: Ints) -> Flags:
            lower, upper = self._beyond(inner, position)
            return (lower <= truth) & (truth <= upper)

        return self._first(holds)

    def _inner(self) -> Ints:
        """The first position [B, M, T] at which the sides do not cross."""
        if self.low is self.high:
            return np.zeros(self.low.shape, np.int64)

        def in_order(position: Ints) -> Flags:
            lower, upper = self.around(self.ranks.margins(position, self.rows))
            return lower <= upper

        return self._first(in_order)

    def _beyond(self, inner: Ints, position: Ints) -> Bounds:
        # Where sides cross the interval is empty, and so is every one within it. The first that is not stands for all
        # of these: it holds more than they do, and lies inside of those further out, so that coverage stays and levels
        # nest. Where none is in order, the ends of the last change places.
        last = np.maximum(self.ranks.spacing(self.rows).stored - 1, 0)
        position = np.minimum(np.maximum(position, inner), last)
        lower, upper = self.around(self.ranks.margins(position, self.rows))
        return Bounds(np.minimum(lower, upper), np.maximum(lower, upper))

    def _first(self, holds: Callable[[Ints], Flags]) -> Ints:
        """By bisection, for what holds from some position of a cell on."""
        stored = self.ranks.spacing(self.rows).stored
        begin, end = np.zeros(self.low.shape, np.int64), np.broadcast_to(stored, self.low.shape)
        while (open_ := begin < end).any():
            middle = (begin + end) // 2
            found = holds(np.minimum(middle, np.maximum(stored - 1, 0)))
            begin = np.where(open_ & ~found, middle + 1, begin)
            end = np.where(open_ & found, middle, end)
        return begin


class _Header(Frozen):
    """What stands before the arrays of a packed table."""

    format: Literal["intervals/1"] = "intervals/1"
    method: Method
    steps: PositiveInt
    scores: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    """The shape of the scores of each step, [S, G, rows, T]."""
    path: PositiveInt
    """G of those of whole paths."""
    typical: bool
    limits: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All that intervals are made from. Frozen; what it keeps for itself are the margins of levels asked for before."""

    method: Method
    steps: int
    """N"""
    ranks: Ranks
    """Its rows are the steps, and one more for all beyond them where the table reaches there."""
    paths: Ranks
    """Of each window and target the largest |error| of the whole path, in units of `scale`; one row."""
    scale: Single
    """[rows, T]"""
    typical: Single | None
    """[T], for `scaled`: the volatility of the training rows."""
    limits: Single | None = None
    """[2, T], the least and the greatest that each target can be: no interval goes beyond; None where nobody said."""
    _cuts: dict[tuple[Level, Band, int], _Cut] = field(default_factory=dict, init=False, repr=False)

    @property
    def symmetric(self) -> bool:
        """Whether both ends are equally far away."""
        return len(self.ranks.scores) == 1

    @property
    def targets(self) -> int:
        """T"""
        return int(self.scale.shape[1])

    @property
    def extrapolates(self) -> bool:
        """Whether there are intervals beyond the calibrated steps: as wide as the widest of these on each side."""
        return len(self.scale) > self.steps

    def volatility(self, rows: Floats) -> NDArray[np.float64]:
        """Of windows [B, L, T], as it was in calibration: [B, T]; ValueError where the method has none."""
        if self.typical is None:
            raise ValueError(f"the method '{self.method}' takes no volatility")
        return volatility(rows, self.typical)

    def largest_level(self, steps: int, band: Band = "each") -> float:
        """The highest level that the calibration windows are enough for; 0 where they are for none. StepsError."""
        ranks, rows = self._cells(band, steps)
        parts = -(-len(ranks.scores) * _WHOLE // (ranks.fewest(rows) + 1))
        return max(0, _WHOLE - parts) / _PERCENT

    def check(self, levels: Sequence[Level], steps: int, band: Band = "each") -> None:
        """Raise what `bounds` would of so many steps at these levels."""
        for level in levels:
            self._cut(level, band, steps)

    def bounds(self, base: Base, levels: Sequence[Level], band: Band = "each") -> list[Bounds]:
        """Intervals [B, M, T] of each level, M steps as the forecast has.

        `each` covers a cell with the probability of the level: in y_(j) to y_(k) of n errors y, k is
        ceil((n + 1)(1 - a / 2)) and j floor((n + 1) a / 2), or k is ceil((n + 1)(1 - a)) of the absolute ones. `path`
        covers the N steps of a target all at once, so the first M of them too. No interpolation, no clamping: a
        LevelError where k > n, a StepsError beyond the calibrated steps unless the table extrapolates. Wider levels
        contain narrower ones.
        """
        laid = self._laid(base, band)
        return [self._within(self._of_level(laid, level, band)) for level in levels]

    def adaptive_bounds(self, base: Base, alpha: Floats) -> tuple[Bounds, Flags]:
        """Intervals of a miscoverage of its own for each cell, alpha [M, T], and where the scores are too few for it.

        There the widest interval stands, which misses more than alpha. An alpha of 0 or less asks for all, one of 1 or
        more for the narrowest, about the median error. LevelError where a cell has no score, StepsError as in `bounds`.
        """
        if np.isnan(alpha).any():
            raise ValueError("alpha: not a number")
        laid = self._laid(base, "each")
        fewest = self.ranks.fewest(laid.rows)
        if not fewest:
            raise LevelError("no level: a step has no calibration window")
        rank = self.ranks.rank(np.rint(np.clip(alpha, 0, 1) * _WHOLE).astype(np.int64), laid.rows)
        return self._within(laid.at(self.ranks.position(rank, laid.rows))), rank > self.ranks.counts[laid.rows]

    def p_values(self, base: Base, truth: Floats) -> NDArray[np.float64]:
        """How unusual the truth [B, M, T] is: the conformal p-value of each cell; NaN where the truth is.

        min(1, 2 min(p_lower, p_upper)) with p_upper = (1 + #{errors >= this one}) / (n + 1), and likewise below, or the
        latter of absolute errors. A truth is outside of the interval of a level exactly where p <= a, its
        `miscoverage`; where ranks were left out p is the larger for it. StepsError as in `bounds`.
        """
        laid = self._laid(base, "each")
        reach = laid.reach(truth)
        missed = self.ranks.spacing(laid.rows).rank(np.maximum(reach - 1, 0))
        more = self.ranks.counts[laid.rows] + 1
        p = np.where(reach > 0, len(self.ranks.scores) * (more - missed) / more, 1.0)
        return np.where(np.isnan(truth), np.nan, p)

    def pack(self) -> bytes:
        """As bytes: equal tables give equal ones."""
        header = _Header(
            method=self.method,
            steps=self.steps,
            scores=self.ranks.scores.shape,
            path=self.paths.scores.shape[1],
            typical=self.typical is not None,
            limits=self.limits is not None,
        )
        text = header.model_dump_json().encode()
        arrays: list[NDArray[Any]] = [self.ranks.scores, self.ranks.counts, self.paths.scores, self.paths.counts]
        arrays += [array for array in (self.scale, self.typical, self.limits) if array is not None]
        body = text + b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
        return _MAGIC + _FRAME.pack(zlib.crc32(body), len(text)) + body

    @classmethod
    def unpack(cls, packed: bytes) -> "Table":
        """The table again; ValueError for anything but what `pack` gave."""
        start = len(_MAGIC) + _FRAME.size
        if not packed.startswith(_MAGIC) or len(packed) < start:
            raise ValueError("not a table of intervals")
        checksum, length = _FRAME.unpack_from(packed, len(_MAGIC))
        if zlib.crc32(memoryview(packed)[start:]) != checksum:
            raise ValueError("a damaged table of intervals: the checksum differs")
        try:
            header = _Header.model_validate_json(packed[start : start + length])
        except ValidationError as error:
            raise ValueError(f"a table of intervals that this release does not read: {first_error(error)}") from error
        arrays = _Arrays(packed, start + length)
        table = cls._of(header, arrays)
        if arrays.left:
            raise ValueError("a table of intervals with something behind it")
        _check_unpacked(table)
        return table

    @classmethod
    def _of(cls, header: _Header, arrays: "_Arrays") -> "Table":
        sides, _, rows, targets = header.scores
        extrapolated = rows - header.steps
        if sides > 2 or extrapolated not in (0, 1) or header.typical != (header.method == "scaled"):
            raise ValueError("a table of intervals whose parts do not go together")
        return cls(
            header.method,
            header.steps,
            Ranks(arrays.single(*header.scores), arrays.whole(rows, targets)),
            Ranks(arrays.single(1, header.path, 1, targets), arrays.whole(1, targets)),
            arrays.single(rows, targets),
            arrays.single(targets) if header.typical else None,
            arrays.single(2, targets) if header.limits else None,
        )

    def _within(self, bounds: Bounds) -> Bounds:
        if self.limits is None:
            return bounds
        return Bounds(*(np.clip(end, *self.limits) for end in bounds))

    def _laid(self, base: Base, band: Band) -> _Laid:
        low, high, unit = _edges(base, self.method if band == "each" else _around_forecast(self.method))
        ranks, rows = self._cells(band, base.forecast.shape[1])
        return _Laid(ranks, rows, low, high, unit)

    def _cells(self, band: Band, steps: int) -> tuple[Ranks, Ints]:
        """The scores of a band, and which of their rows so many steps have."""
        if steps > self.steps and not self.extrapolates:
            raise StepsError(f"intervals are calibrated for {self.steps} steps; got {steps}")
        if band == "path":
            return self.paths, np.zeros(steps, np.int64)
        return self.ranks, self._rows(steps)

    def _rows(self, steps: int) -> Ints:
        return np.minimum(np.arange(steps), self.steps)

    def _of_level(self, laid: _Laid, level: Level, band: Band) -> Bounds:
        cut = self._cut(level, band, len(laid.rows))
        found = laid.around(cut.margins)
        # Only quantile forecasts can cross; the way around it is slow.
        if laid.low is laid.high or (found.lower <= found.upper).all():
            return found
        return laid.at(cut.position)

    def _cut(self, level: Level, band: Band, steps: int) -> _Cut:
        key = (level, band, steps)
        if key not in self._cuts:
            if len(self._cuts) >= _CACHED:
                self._cuts.clear()
            self._cuts[key] = self._new_cut(level, band, steps)
        return self._cuts[key]

    def _new_cut(self, level: Level, band: Band, steps: int) -> _Cut:
        parts = _parts(level)
        ranks, rows = self._cells(band, steps)
        least = windows_for(level, symmetric=len(ranks.scores) == 1)
        if ranks.fewest(rows) < least:
            enough = self.largest_level(steps, band)
            there = f"{ranks.fewest(rows)}{f', enough for {name_of(enough)}' if enough else ''}"
            raise LevelError(f"level {level} needs {least} calibration windows; there are {there}")
        position = ranks.position(ranks.rank(parts, rows), rows)
        margins = ranks.margins(position, rows)
        return _Cut(position, margins * self.scale[self._rows(steps)] if band == "path" else margins)


def calibrate(
    base: Base,
    truth: Floats,
    scale: Floats,
    *,
    method: Method = "conformal",
    symmetric: bool = False,
    typical: Floats | None = None,
    extrapolate: bool = False,
    limits: Sequence[tuple[float, float]] = (),
    budget: int = _BUDGET,
) -> Table:
    """A table from windows that neither training nor the choice of a model has seen.

    `truth` [W, N, T] is NaN where it was not observed; each cell counts its own windows, and only those observed from
    end to end tell of whole paths. `scale` [N, T] is the size of errors by step, above 0 and measured elsewhere, so
    that no step rules the path. With `symmetric` both ends of an interval are equally far away: half as many windows
    are enough for a level, but a biased forecast has wider intervals. `typical` [T] is what `volatility` takes, for
    `scaled`. With `extrapolate` steps beyond N have the widest margins of steps 1 to N; nothing is promised of what
    these cover. `limits` are the least and the greatest that each target can be, infinite where there is none; the
    p-value of a truth within them is as without. The table has at most `budget` numbers; where that is too few for all
    ranks, the outermost and some of the others. ValueError for what cannot be calibrated.
    """
    low, high, unit = _edges(base, method)
    _check(base, truth, scale, unit)
    if (typical is None) == (method == "scaled") or (typical is not None and not (typical > 0).all()):
        raise ValueError("typical: takes volatilities above 0 with the method 'scaled', and is for no other")
    _, steps, targets = truth.shape
    divisor: Floats | float = 1.0 if unit is None else unit[:, 0]
    single_scale = scale.astype(np.float32)
    counts = (~np.isnan(truth)).sum(0)
    sides = 1 if symmetric else 2
    size = (budget - 2 * (steps + 2) * targets) // (targets * (sides * (steps + 1) + 1))
    if size < 2:
        raise ValueError(f"budget: {budget} numbers are too few for {steps} steps of {targets} targets")

    found: list[Single] = []
    worst = np.zeros((1, *truth[:, 0].shape))
    for step in range(steps):
        real = truth[:, step].astype(np.float64)
        below, above = (low[:, step] - real) / divisor, (real - high[:, step]) / divisor
        scores = np.maximum(below, above)[None] if symmetric else np.stack([below, above])
        found.append(_stored(scores, counts[step], size))
        # Of a path that was not observed from end to end this stays NaN.
        error = np.abs(real - base.forecast[:, step]) / divisor
        worst = np.maximum(worst, error / single_scale[step])
    whole = (~np.isnan(worst)).sum(1)
    cells = Ranks(_padded(found), counts)
    if extrapolate:
        cells, single_scale = _with_widest(cells), np.vstack([single_scale, single_scale.max(0)])
    return Table(
        method,
        steps,
        cells,
        Ranks(_stored(worst, whole[0], size)[:, :, None], whole),
        single_scale,
        None if typical is None else typical.astype(np.float32),
        np.array(limits, np.float32).T if np.isfinite(np.array(limits)).any() else None,
    )


def adapted(alpha: Floats, covered: Floats, target: float, rate: float) -> NDArray[np.float64]:
    """The miscoverages to ask for next: alpha + rate * (target - missed), cell by cell (Gibbs and Candès, 2021).

    `covered` is 1 where the interval of `alpha` held the truth, 0 where it did not and NaN where the truth is not
    known, which changes nothing. Whatever the drift, the share of misses tends to `target`, as long as the widest
    interval misses less; rates from 0.005 to 0.05 are usual. Kept between 1, the narrowest interval, and a few misses
    below 0: at 0, where the widest one stands, misses would go unpaid and too few truths be covered, and without an end
    a long time of misses would take as long a time of cover to walk back.
    """
    moved = alpha + rate * (target - (1 - covered))
    return np.where(np.isnan(covered), alpha, np.clip(moved, -_OWED * rate, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What intervals of one level were on windows with a known truth; [M, T] but for the last. NaN where none is."""

    coverage: NDArray[np.float64]
    """The share of truths inside."""
    coverage_error: NDArray[np.float64]
    """Its standard error, from blocks of windows: neighbours overlap, and miss together."""
    width: NDArray[np.float64]
    """The mean, over the windows whose truth is known, in the target's unit; likewise:"""
    interval_score: NDArray[np.float64]
    """Width and 2 / a times what the truth lies outside by (Winkler, 1972; Gneiting and Raftery, 2007)."""
    path_coverage: NDArray[np.float64]
    """[T]: the share of fully observed paths that are inside at every step."""


def measured(bounds: Bounds, truth: Floats, level: Level, block: int) -> Measured:
    """Scores of intervals on consecutive windows [W, M, T]; blocks of as many of them as a window has steps ahead."""
    lower, upper = (end.astype(np.float64) for end in bounds)
    seen = ~np.isnan(truth)
    inside = (lower <= truth) & (truth <= upper)
    outside = np.maximum(np.maximum(lower - truth, truth - upper), 0)
    score = upper - lower + 2 / miscoverage(level) * outside
    whole, within = np.all(seen, axis=1), np.all(inside, axis=1)
    return Measured(
        _mean(inside, seen),
        _block_error(inside, seen, block),
        _mean(upper - lower, seen),
        _mean(score, seen),
        _mean(within, whole),
    )


def _parts(level: Level) -> int:
    """The miscoverage of a level, in parts of `_WHOLE`."""
    try:
        percent = Decimal(str(level))
    except InvalidOperation:
        raise LevelError(f"level {level} is not a number") from None
    if not (percent.is_finite() and 0 < percent < 100):
        raise LevelError(f"level {level} is not above 0 and below 100")
    parts = (100 - percent) * _PERCENT
    if parts != int(parts):
        raise LevelError(f"level {level} has more than 7 decimals")
    return int(parts)


def _edges(base: Base, method: Method) -> tuple[Floats, Floats, Floats | None]:
    """What margins are laid below and above, and what they are in units of, [B, 1, T]."""
    if method == "cqr":
        if base.low is None or base.high is None:
            raise ValueError("the method 'cqr' needs quantile forecasts")
        return base.low, base.high, None
    if method == "conformal":
        return base.forecast, base.forecast, None
    if base.volatility is None:
        raise ValueError("the method 'scaled' needs the windows' volatility")
    return base.forecast, base.forecast, base.volatility[:, None]


def _around_forecast(method: Method) -> Method:
    """How a method measures whole paths: around the forecast, whatever each step is around."""
    return "conformal" if method == "cqr" else method


def _check(base: Base, truth: Floats, scale: Floats, unit: Floats | None) -> None:
    if not truth.size or any(
        given is not None and given.shape != truth.shape for given in (base.forecast, base.low, base.high)
    ):
        raise ValueError("truth and forecasts: must be [W, N, T], alike, and not empty")
    if np.isinf(truth).any() or not all(
        np.isfinite(given).all() for given in (base.forecast, base.low, base.high) if given is not None
    ):
        raise ValueError("truth and forecasts: must be finite, but for a truth that is NaN where none was observed")
    if scale.shape != truth.shape[1:] or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("scale: must be [N, T], finite and above 0")
    if unit is not None and not (np.isfinite(unit) & (unit > 0)).all():
        raise ValueError("volatility: must be finite and above 0")


def _check_unpacked(table: Table) -> None:
    """ValueError for numbers with which there would be no intervals, or some that do not nest."""
    for ranks in (table.ranks, table.paths):
        rising = ranks.scores[:, 1:] >= ranks.scores[:, :-1]
        if not (rising.all() and (ranks.scores[:, 0] > -np.inf).all()):
            raise ValueError("scores: must rise")
        if not ((ranks.counts >= 0) & (ranks.counts <= _MOST_WINDOWS)).all():
            raise ValueError(f"counts: must be from 0 to {_MOST_WINDOWS}")
    for sizes in (table.scale, table.typical):
        if sizes is not None and not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError("scale and typical: must be finite and above 0")
    if table.limits is not None and not (table.limits[0] < table.limits[1]).all():
        raise ValueError("limits: the least must be less than the greatest")


def _stored(scores: NDArray[np.float64], counts: Ints, size: int) -> Single:
    """The order statistics [S, G, T] of [S, W, T] that are stored."""
    spacing = _Spacing.of(counts, len(scores), size)
    position = np.arange(max(1, spacing.stored.max()))[:, None]
    place = np.clip(spacing.rank(position) - 1, 0, scores.shape[1] - 1)
    found = np.take_along_axis(np.sort(scores, axis=1), place[None], axis=1)
    return np.where(position < spacing.stored, _rounded_up(found), np.float32(np.inf))


def _padded(steps: Sequence[Single]) -> Single:
    """[S, G, N, T] of N [S, G, T], whose G may differ."""
    longest = max(step.shape[1] for step in steps)
    return np.stack(
        [np.pad(step, ((0, 0), (0, longest - step.shape[1]), (0, 0)), constant_values=np.inf) for step in steps], axis=2
    )


def _with_widest(ranks: Ranks) -> Ranks:
    """With one more row that has, of each level and side, the largest score of all rows.

    Its n is the smallest of them, and K of it stands for K_h = ceil((n_h + 1) K / (n + 1)) of a row with n_h scores:
    every level that comes to K or less there comes to K_h or less here.
    """
    sides, size, steps, _ = ranks.scores.shape
    fewest = ranks.counts.min(0)
    rank = _Spacing.of(fewest, sides, size).rank(np.arange(size)[:, None])
    like = -(-(ranks.counts + 1) * np.minimum(rank, fewest)[:, None] // (fewest + 1))
    widest = ranks.margins(ranks.position(like, np.arange(steps)), np.arange(steps)).max(2, keepdims=True)
    scores = np.concatenate([ranks.scores, widest.astype(np.float32)], axis=2)
    return Ranks(scores, np.vstack([ranks.counts, fewest]))


def _rounded_up(values: NDArray[np.float64]) -> Single:
    single = values.astype(np.float32)
    return np.where(single < values, np.nextafter(single, np.float32(np.inf)), single)


def _single(values: Floats) -> Single:
    """Finite, whatever the forecast: no truth lies beyond the largest number."""
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)


def _mean(values: NDArray[Any], seen: Flags) -> NDArray[np.float64]:
    """Over windows, of those values that are seen."""
    count = seen.sum(0)
    total = np.where(seen, values, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _block_error(inside: Flags, seen: Flags, block: int) -> NDArray[np.float64]:
    """Of a ratio of sums over blocks; NaN where fewer than two have anything."""
    starts = np.arange(0, len(seen), block)
    hits, cases = (np.add.reduceat(flags.astype(np.float64), starts, axis=0) for flags in (inside & seen, seen))
    blocks, total = (cases > 0).sum(0), np.maximum(cases.sum(0), 1)
    squared = np.square(hits - cases * hits.sum(0) / total).sum(0)
    return np.where(blocks > 1, np.sqrt(squared * blocks / np.maximum(blocks - 1, 1)) / total, np.nan)


class _Arrays:
    """Reads one array after the other."""

    def __init__(self, packed: bytes, place: int) -> None:
        self._packed = packed
        self._place = place

    def single(self, *shape: int) -> Single:
        return self._next("<f4", shape).astype(np.float32)

    def whole(self, *shape: int) -> Ints:
        return self._next("<i8", shape).astype(np.int64)

    @property
    def left(self) -> int:
        """Bytes behind the last that was read."""
        return len(self._packed) - self._place

    def _next(self, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        if count * np.dtype(kind).itemsize > self.left:
            raise ValueError("a table of intervals that is cut short")
        found = np.frombuffer(self._packed, kind, count, self._place)
        self._place += found.nbytes
        return found.reshape(shape)
