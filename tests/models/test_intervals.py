"""Intervals: that ranks are exact, levels nest, p-values say the same as intervals, and bytes are read back."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.intervals import (
    Band,
    Base,
    Bounds,
    Floats,
    LevelError,
    Method,
    StepsError,
    Table,
    adapted,
    calibrate,
    measured,
    miscoverage,
    volatility,
)

LEVELS = (0.01, 1, 10, 33.3, 50, 66.7, 80, 90, 95, 97.5, 99, 99.9)
METHODS: tuple[Method, ...] = ("conformal", "scaled", "cqr")


@dataclass(frozen=True)
class Case:
    """Random windows to calibrate on, others to ask for, and how to calibrate."""

    seed: int
    windows: int
    steps: int
    targets: int
    method: Method
    symmetric: bool
    extrapolate: bool
    missing: float
    coarse: bool
    """Small whole numbers, so that scores are often equal."""
    numbers: int = 2**20

    def drawn(self, kind: int, windows: int, steps: int) -> tuple[Base, Floats]:
        """Windows and their truth; quantile forecasts so near to each other that intervals around them cross."""
        rng = np.random.default_rng((self.seed, kind))
        shape = (windows, steps, self.targets)
        truth, forecast = (rng.normal(10, 3, shape) for _ in range(2))
        low, high = forecast - rng.exponential(2, shape), forecast + rng.exponential(2, shape)
        truth, forecast, low, high = (
            np.round(values).astype(np.float32) if self.coarse else values.astype(np.float32)
            for values in (truth, forecast, low, high)
        )
        truth[rng.random(shape) < self.missing] = np.nan
        return Base(forecast, low, high, rng.uniform(0.5, 2, (windows, self.targets))), truth

    def table(self) -> Table:
        base, truth = self.drawn(0, self.windows, self.steps)
        return calibrate(
            base,
            truth,
            np.arange(1, 1 + self.steps)[:, None] * np.ones(self.targets),
            method=self.method,
            symmetric=self.symmetric,
            typical=np.ones(self.targets) if self.method == "scaled" else None,
            extrapolate=self.extrapolate,
            budget=self.numbers,
        )

    def asked(self) -> tuple[Base, Floats]:
        """Of fewer steps than were calibrated, of as many, or of more where the table extrapolates."""
        return self.drawn(1, 4, max(1, self.steps + self.seed % 3 - (1 if self.extrapolate else 2)))


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32),
    windows=st.integers(1, 60),
    steps=st.integers(1, 4),
    targets=st.integers(1, 2),
    method=st.sampled_from(METHODS),
    symmetric=st.booleans(),
    extrapolate=st.booleans(),
    missing=st.sampled_from([0, 0, 0.2]),
    coarse=st.booleans(),
)


def tight(case: Case, factor: int) -> Case:
    """With room for a few ranks alone."""
    return replace(case, numbers=factor * (case.steps + 2) * case.targets)


def of_errors(*errors: float, symmetric: bool = False, budget: int = 2**20) -> Table:
    """Of one step and target, whose forecast is 0."""
    truth = np.array(errors, dtype=np.float32)[:, None, None]
    return calibrate(Base(np.zeros_like(truth)), truth, np.ones((1, 1)), symmetric=symmetric, budget=budget)


def ends(table: Table, level: float | str) -> tuple[float, float]:
    """Of the interval around 0."""
    found = table.bounds(Base(np.zeros((1, 1, 1), np.float32)), [level])[0]
    return found.lower.item(), found.upper.item()


def available(table: Table, steps: int, band: Band = "each") -> list[float]:
    return [level for level in LEVELS if level <= table.largest_level(steps, band)]


def inside(bounds: Bounds, truth: Floats) -> np.ndarray[Any, Any]:
    return (bounds.lower <= truth) & (truth <= bounds.upper)


def test_nine_windows_are_enough_for_ninety_percent_of_absolute_errors() -> None:
    """k = ceil(10 * 0.9) = 9: the largest of nine; with eight there is no ninth, and nothing else stands in."""
    errors = [1.0, -2, 3, -4, 5, -6, 7, -8, 9]

    assert ends(of_errors(*errors, symmetric=True), 90) == (-9, 9)
    with pytest.raises(LevelError, match="level 90 needs 9 calibration windows; there are 8"):
        ends(of_errors(*errors[:8], symmetric=True), 90)


@pytest.mark.parametrize(
    ("level", "both", "one"),
    [(80, 9, 4), (90, 19, 9), (95, 39, 19), ("97.5", 79, 39), (97.5, 79, 39), (99, 199, 99), (99.9, 1999, 999)],
)
def test_a_level_is_there_from_the_smallest_number_of_windows_on(level: float | str, both: int, one: int) -> None:
    """Signed errors need about twice as many as absolute ones; one window fewer is refused by name."""
    for least, symmetric in ((both, False), (one, True)):
        errors = np.arange(1, least + 1)

        assert ends(of_errors(*errors, symmetric=symmetric), level) == (-least if symmetric else 1, least)
        assert of_errors(*errors, symmetric=symmetric).largest_level(1) == float(level)
        assert of_errors(*errors[1:], symmetric=symmetric).largest_level(1) < float(level)
        with pytest.raises(LevelError, match=f"level {level} needs {least} calibration windows; there are {least - 1}"):
            ends(of_errors(*errors[1:], symmetric=symmetric), level)


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranks_are_those_of_exact_arithmetic(symmetric: bool) -> None:
    """For each n and level the j-th and k-th error, counted in fractions; a level is refused where there is none."""
    for n in (*range(1, 45), 99, 199, 200):
        table = of_errors(*range(1, n + 1), symmetric=symmetric)
        for level in (0.1, 7, 20, 50, 60, 68.27, 70, 80, 85, 90, 95, 97.5, 99):
            a = 1 - Fraction(str(level)) / 100
            k = math.ceil((n + 1) * (1 - a if symmetric else 1 - a / 2))
            j = -k if symmetric else math.floor((n + 1) * a / 2)
            if k > n:
                assert table.largest_level(1) < level
                with pytest.raises(LevelError):
                    ends(table, level)
            else:
                assert ends(table, level) == (j, k)


@pytest.mark.parametrize("level", [0, 100, -5, 101, "nan", math.nan, math.inf, "many", "", "90.00000001"])
def test_what_is_no_level_is_refused(level: float | str) -> None:
    """A level is a percentage of at most seven decimals, between 0 and 100."""
    with pytest.raises(LevelError, match="level"):
        ends(of_errors(*range(100)), level)


def test_a_miscoverage_is_the_nearest_number_to_its_decimal() -> None:
    """So that it may be compared with a p-value, which is the nearest number to a fraction."""
    assert [miscoverage(level) for level in (90, 97.5, 99.9, "99.9")] == [0.1, 0.025, 0.001, 0.001]


@pytest.mark.parametrize("band", ["each", "path"])
@given(case=cases)
def test_levels_nest_and_never_cross(band: Band, case: Case) -> None:
    """A higher level lies around a lower one in each cell, for all methods, stored ranks and steps."""
    for kept in (case, tight(case, 8)):
        table, (base, _) = kept.table(), case.asked()
        found = table.bounds(base, available(table, base.forecast.shape[1], band), band)

        for bounds in found:
            assert bounds.lower.dtype == bounds.upper.dtype == np.float32
            assert (bounds.lower <= bounds.upper).all()
        for inner, outer in pairwise(found):
            assert (outer.lower <= inner.lower).all()
            assert (inner.upper <= outer.upper).all()


@given(case=cases)
def test_p_values_agree_with_intervals(case: Case) -> None:
    """The truth is outside of the interval of a level exactly where its p-value is at most the level's a."""
    for kept in (case, tight(case, 10)):
        table, (base, truth) = kept.table(), case.asked()
        p = table.p_values(base, truth)

        assert (np.isnan(p) == np.isnan(truth)).all()
        for level in available(table, base.forecast.shape[1]):
            outside = ~inside(table.bounds(base, [level])[0], truth) & ~np.isnan(truth)
            assert (outside == (p <= miscoverage(level))).all()


@given(case=cases)
def test_ranks_left_out_only_widen(case: Case) -> None:
    """With few ranks stored each interval holds that of all, p-values are no smaller, and levels are the same."""
    if case.method == "cqr":
        # Beyond the calibrated steps, where few ranks have the wider scores, sides may cross with all ranks alone.
        case = replace(case, extrapolate=False)
    few, all_of_them, (base, truth) = tight(case, 8).table(), case.table(), case.asked()
    steps = base.forecast.shape[1]
    levels = available(all_of_them, steps)

    assert few.largest_level(steps) == all_of_them.largest_level(steps)
    for wide, narrow in zip(few.bounds(base, levels), all_of_them.bounds(base, levels), strict=True):
        assert (wide.lower <= narrow.lower).all()
        assert (narrow.upper <= wide.upper).all()
    assert not (few.p_values(base, truth) < all_of_them.p_values(base, truth)).any()
    assert few.ranks.scores.size <= 8 * (case.steps + 2) * case.targets


def test_the_outermost_ranks_are_all_kept() -> None:
    """High levels are exact although most ranks are left out; a low one is the next that is kept, further out."""
    table = of_errors(*range(1, 2000), budget=200)

    assert [ends(table, level) for level in (99.9, 99.8, 99.5)] == [(1, 1999), (2, 1998), (5, 1995)]
    lower, upper = ends(table, 50)
    assert (450 < lower <= 500, 1500 <= upper < 1550) == (True, True)
    assert table.ranks.scores.size + table.paths.scores.size < 200


@given(case=cases)
def test_each_cell_counts_its_own_windows(case: Case) -> None:
    """Where truths are missing, a cell has the bounds of a table of the windows that it was observed in."""
    base, truth = case.drawn(0, case.windows, case.steps)
    table = calibrate(base, truth, np.ones(truth.shape[1:]), symmetric=case.symmetric)
    levels = available(table, case.steps)
    asked, _ = case.drawn(1, 2, case.steps)
    found = table.bounds(asked, levels)

    for step, target in np.ndindex(truth.shape[1:]):
        seen = ~np.isnan(truth[:, step, target])
        cell = (slice(None), slice(step, step + 1), slice(target, target + 1))
        if seen.any():
            alone = calibrate(
                Base(base.forecast[cell][seen]), truth[cell][seen], np.ones((1, 1)), symmetric=case.symmetric
            )
            for mine, wanted in zip(found, alone.bounds(Base(asked.forecast[cell]), levels), strict=True):
                assert (mine.lower[cell] == wanted.lower).all()
                assert (mine.upper[cell] == wanted.upper).all()
        else:
            assert levels == []


def test_a_level_needs_windows_at_each_step_that_is_asked_for() -> None:
    """A step observed too seldom refuses the levels of forecasts that reach it, and of no others."""
    truth = np.ones((19, 3, 2), np.float32)
    truth[:2, 2, 1] = np.nan
    table = calibrate(Base(np.zeros_like(truth)), truth, np.ones((3, 2)))

    table.bounds(Base(np.zeros((1, 2, 2), np.float32)), [90])
    with pytest.raises(LevelError, match="level 90 needs 19 calibration windows; there are 17"):
        table.bounds(Base(np.zeros((1, 3, 2), np.float32)), [90])
    assert [table.largest_level(steps) for steps in (2, 3)] == [90, 88.8888888]
    with pytest.raises(LevelError, match="level 95 needs 19 calibration windows; there are 17"):
        table.bounds(Base(np.zeros((1, 2, 2), np.float32)), [95], "path")


@pytest.mark.parametrize("method", METHODS)
def test_rounding_leaves_no_calibration_window_out(method: Method) -> None:
    """Scores are stored in single precision, and yet the widest interval holds each truth that it was made from."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(199, 3, 2)).astype(np.float32)
    forecast = (1000 * rng.normal(size=truth.shape)).astype(np.float32)
    base = Base(forecast, forecast - 1, forecast + 1, rng.uniform(1, 2, (199, 2)))
    typical = np.ones(2) if method == "scaled" else None
    table = calibrate(base, truth, np.full((3, 2), 0.7), method=method, typical=typical)

    for found in (*table.bounds(base, [99]), *table.bounds(base, [table.largest_level(3, "path")], "path")):
        assert inside(found, truth).all()


def test_scaled_errors_are_in_units_of_the_volatility() -> None:
    """An error of twice the volatility counts 2, and becomes twice the volatility of the window that is asked for."""
    base = Base(np.full((4, 1, 1), 10, np.float32), volatility=np.array([[1.0], [2], [4], [8]]))
    truth = np.array([12, 6, 22, 2], np.float32).reshape(4, 1, 1)
    table = calibrate(
        base, truth, np.ones((1, 1)), method="scaled", symmetric=True, typical=np.ones(1, dtype=np.float32)
    )
    asked = Base(np.zeros((2, 1, 1), np.float32), volatility=np.array([[1.0], [10]]))

    # Errors of 2, 2, 3 and 1 volatilities.
    for found in (*table.bounds(asked, [80]), *table.bounds(asked, [80], "path")):
        assert found.upper.ravel().tolist() == [3, 30]
        assert found.lower.ravel().tolist() == [-3, -30]
    assert table.bounds(asked, [60])[0].upper.ravel().tolist() == [2, 20]
    with pytest.raises(ValueError, match="'scaled' needs the windows' volatility"):
        table.bounds(Base(asked.forecast), [80])


def test_quantile_forecasts_are_moved_each_by_its_own_errors() -> None:
    """The lower one by the j-th error below it, the upper one by the k-th above, inwards where they were too wide."""
    truth = np.zeros((4, 1, 1), np.float32)
    low, high = -np.array([5, 4, 3, 6], np.float32), np.array([1, 2, 3, -1], np.float32)
    base = Base(truth, low[:, None, None], high[:, None, None])
    table = calibrate(base, truth, np.ones((1, 1)), method="cqr")
    asked = Base(*(np.full((1, 1, 1), value, np.float32) for value in (0, -10, 10)))

    # Errors from `low` are 3 4 5 6, from `high` -3 -2 -1 1; of four j = 1, k = 4 and j = 2, k = 3.
    outer, inner = table.bounds(asked, [60, 20])
    assert (outer.lower.item(), outer.upper.item()) == (-7, 11)
    assert (inner.lower.item(), inner.upper.item()) == (-6, 9)
    with pytest.raises(ValueError, match="'cqr' needs quantile forecasts"):
        table.bounds(Base(asked.forecast), [60])


def test_an_interval_that_would_cross_is_the_next_that_does_not() -> None:
    """Quantile forecasts nearer to each other than errors move them inwards: the level's interval would be empty."""
    truth = np.zeros((4, 1, 1), np.float32)
    low, high = -np.array([5, 4, 3, 6], np.float32), np.array([1, 2, 3, -1], np.float32)
    table = calibrate(Base(truth, low[:, None, None], high[:, None, None]), truth, np.ones((1, 1)), method="cqr")
    asked = Base(
        *(np.full((3, 1, 1), 0, np.float32) for _ in range(2)), np.array([9, 3, 0], np.float32).reshape(3, 1, 1)
    )

    outer, inner = table.bounds(asked, [60, 20])

    assert list(zip(outer.lower.ravel(), outer.upper.ravel(), strict=True)) == [(3, 10), (3, 4), (1, 3)]
    assert list(zip(inner.lower.ravel(), inner.upper.ravel(), strict=True)) == [(4, 8), (3, 4), (1, 3)]


def test_a_path_is_measured_by_its_worst_step() -> None:
    """The largest error in units of the steps' scale, over paths that were observed from end to end."""
    truth = np.array([[1, 2], [3, -1], [0, 8], [-2, 0], [9, np.nan]], np.float32)[:, :, None]
    base = Base(np.zeros_like(truth))
    table = calibrate(base, truth, np.array([[1.0], [2]]))

    # The worst are 1, 3, 4 and 2; the fifth path was not seen to its end.
    found = table.bounds(Base(np.full((1, 2, 1), 100, np.float32)), [80, 60], "path")

    assert [bounds.lower.ravel().tolist() for bounds in found] == [[96, 92], [97, 94]]
    assert [bounds.upper.ravel().tolist() for bounds in found] == [[104, 108], [103, 106]]
    assert table.largest_level(2, "path") == 80
    with pytest.raises(LevelError, match="level 81 needs 5 calibration windows; there are 4"):
        table.bounds(base, [81], "path")


def test_a_path_is_laid_around_the_forecast_whatever_the_quantile_forecasts_are() -> None:
    """With those of `cqr` as without."""
    case = Case(3, 40, 3, 2, "cqr", symmetric=False, extrapolate=False, missing=0.1, coarse=False)
    base, _ = case.asked()

    with_them, without = (
        kept.table().bounds(base, [50, 80], "path") for kept in (case, replace(case, method="conformal"))
    )

    assert np.array_equal(with_them, without)


def test_steps_beyond_the_calibrated_ones_are_refused() -> None:
    """With how many there are; p-values and levels too."""
    table, many = of_errors(*range(100)), np.zeros((1, 2, 1), np.float32)

    for asks in (
        lambda: table.bounds(Base(many), [80]),
        lambda: table.bounds(Base(many), [80], "path"),
        lambda: table.p_values(Base(many), many),
        lambda: table.adaptive_bounds(Base(many), np.full((2, 1), 0.1)),
        lambda: table.largest_level(2),
    ):
        with pytest.raises(StepsError, match="calibrated for 1 steps; got 2"):
            asks()


def test_steps_beyond_have_the_widest_margins_where_the_table_extrapolates() -> None:
    """On each side those of the step that has them, level by level."""
    rng = np.random.default_rng(1)
    truth = (rng.normal(size=(99, 3, 2)) * [[1], [5], [2]] + [[0], [0], [9]]).astype(np.float32)
    table = calibrate(Base(np.zeros_like(truth)), truth, np.array([[1.0], [5], [2]]) * np.ones(2), extrapolate=True)

    for level in (50, 80, 98):
        (found,) = table.bounds(Base(np.zeros((1, 6, 2), np.float32)), [level])
        assert (found.lower[:, 3:] == found.lower[:, :3].min(1, keepdims=True)).all()
        assert (found.upper[:, 3:] == found.upper[:, :3].max(1, keepdims=True)).all()
    (path,) = table.bounds(Base(np.zeros((1, 6, 2), np.float32)), [90], "path")
    assert (path.upper[:, 3:] == path.upper[:, 1:2]).all()


@given(case=cases)
def test_steps_beyond_are_no_narrower_than_any(case: Case) -> None:
    """Also where cells have different numbers of windows, and where ranks were left out."""
    table = tight(replace(case, extrapolate=True, method="conformal"), 12).table()
    base = Base(np.zeros((1, case.steps + 2, case.targets), np.float32))

    for found in table.bounds(base, available(table, case.steps)):
        assert (found.lower[:, -1] <= found.lower.min(1)).all()
        assert (found.upper[:, -1] >= found.upper.max(1)).all()


def test_p_values_are_those_of_the_definition() -> None:
    """min(1, 2 min(p_lower, p_upper)) by counting errors, also where some are equal."""
    errors = np.array([-3, -1, -1, 0, 2, 2, 2, 5, 9], np.float32)
    asked = np.arange(-4, 11, 0.5).astype(np.float32)

    p = of_errors(*errors).p_values(Base(np.zeros((30, 1, 1), np.float32)), asked[:, None, None]).ravel()

    above, below = ((1 + np.sum(sign * errors >= sign * asked[:, None], 1)) / 10 for sign in (1, -1))
    assert p.tolist() == np.minimum(1, 2 * np.minimum(above, below)).tolist()


def test_adaptive_bounds_of_one_alpha_are_those_of_its_level() -> None:
    """And each cell has its own; asked for more than there is, the widest stands in and is marked."""
    rng = np.random.default_rng(1)
    for symmetric in (False, True):
        truth = rng.normal(size=(39, 2, 1)).astype(np.float32)
        table = calibrate(Base(np.zeros_like(truth)), truth, np.ones((2, 1)), symmetric=symmetric)
        base = Base(np.zeros((3, 2, 1), np.float32))
        eighty, ninety = table.bounds(base, [80, 90])

        found, clipped = table.adaptive_bounds(base, np.array([[0.2], [0.1]]))
        assert (found.lower[:, 0] == eighty.lower[:, 0]).all()
        assert (found.upper[:, 1] == ninety.upper[:, 1]).all()
        assert clipped.tolist() == [[False], [False]]

        smallest = miscoverage(table.largest_level(2))
        assert not table.adaptive_bounds(base, np.full((2, 1), smallest))[1].any()
        assert table.adaptive_bounds(base, np.full((2, 1), smallest - 1e-3))[1].all()

        found, clipped = table.adaptive_bounds(base, np.array([[-0.5], [2.0]]))
        (widest,) = table.bounds(base, [table.largest_level(2)])
        assert (found.lower[:, 0] == widest.lower[:, 0]).all()
        assert (found.upper[:, 0] == widest.upper[:, 0]).all()
        assert clipped.tolist() == [[True], [False]]
        width = found.upper[0, 1] - found.lower[0, 1]
        assert width == (2 * np.abs(truth[:, 1]).min() if symmetric else 0)
    with pytest.raises(ValueError, match="alpha: not a number"):
        table.adaptive_bounds(base, np.array([[np.nan], [0.1]]))


def test_no_alpha_can_be_had_of_a_step_without_windows() -> None:
    """There is not even a widest interval."""
    truth = np.ones((9, 2, 1), np.float32)
    truth[:, 1] = np.nan
    table = calibrate(Base(np.zeros_like(truth)), truth, np.ones((2, 1)))

    with pytest.raises(LevelError, match="a step has no calibration window"):
        table.adaptive_bounds(Base(np.zeros((1, 2, 1), np.float32)), np.full((2, 1), 0.1))
    assert table.largest_level(2) == 0
    assert table.p_values(Base(np.zeros((1, 2, 1), np.float32)), np.full((1, 2, 1), 5.0)).ravel().tolist() == [0.2, 1]


def test_alpha_rises_when_covered_and_falls_when_missed() -> None:
    """By the rate, from three misses below 0 up to 1; an unknown truth moves nothing."""
    alpha = np.array([0.1, 0.1, 0.1, 0.001, -0.029, 0.9999])

    found = adapted(alpha, np.array([1, 0, np.nan, 0, 0, 1]), 0.1, 0.01)

    assert found == pytest.approx([0.101, 0.091, 0.1, -0.008, -0.03, 1])


def test_volatility_is_the_mean_step_between_observed_rows() -> None:
    """With a hundredth of the typical one; a window without two rows in a row has the typical one."""
    nan = math.nan
    rows = np.array([[1, 3, 2, 6], [nan, nan, 2, 5], [1, nan, 5, nan], [7, 7, 7, 7]])[:, :, None]

    found = volatility(rows, np.array([2.0]))

    assert found.ravel() == pytest.approx([7 / 3 + 0.02, 3.02, 2, 0.02])


def test_a_table_measures_volatility_as_it_was_calibrated() -> None:
    """With the typical one that it was given; a table of another method has none."""
    case = Case(1, 20, 2, 1, "scaled", False, False, 0, False)
    rows = np.array([[1.0, 2.0, 4.0]])[:, :, None]

    assert case.table().volatility(rows) == pytest.approx(volatility(rows, np.ones(1)))
    with pytest.raises(ValueError, match="'cqr' takes no volatility"):
        replace(case, method="cqr").table().volatility(rows)


@given(case=cases)
def test_a_table_comes_back_from_its_bytes(case: Case) -> None:
    """The same bytes again, and the same bounds and p-values."""
    table, (base, truth) = case.table(), case.asked()
    packed = table.pack()
    again = Table.unpack(packed)

    assert packed == again.pack() == case.table().pack()
    levels = available(table, base.forecast.shape[1])
    for mine, wanted in zip(again.bounds(base, levels), table.bounds(base, levels), strict=True):
        assert (mine.lower == wanted.lower).all()
        assert (mine.upper == wanted.upper).all()
    assert np.array_equal(again.p_values(base, truth), table.p_values(base, truth), equal_nan=True)
    assert again.extrapolates == case.extrapolate
    assert again.symmetric == case.symmetric


@given(data=st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    """Cut short anywhere, or with any bit turned."""
    packed = of_errors(*range(9)).pack()
    place = data.draw(st.integers(0, len(packed) - 1))
    turned = bytearray(packed)
    turned[place] ^= 1 << data.draw(st.integers(0, 7))

    for damaged in (packed[:place], bytes(turned)):
        with pytest.raises(ValueError, match="table of intervals"):
            Table.unpack(damaged)


def test_margins_are_kept_for_the_levels_asked_for_last() -> None:
    """However many levels clients think of, the table does not grow."""
    table = of_errors(*range(1, 1000))

    answers = [ends(table, level / 10) for level in range(10, 990)]

    assert len(table._cuts) <= 64
    assert answers == [ends(table, level / 10) for level in range(10, 990)]


def test_bounds_are_finite_at_the_end_of_the_numbers() -> None:
    """A forecast near the largest number has bounds that are numbers: JSON knows no infinity."""
    found = of_errors(*[-3e38, 3e38] * 20).bounds(Base(np.full((1, 1, 1), 3e38, np.float32)), [90])[0]

    assert np.isfinite(found.upper).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": np.full((3, 2, 1), np.inf)}, "must be finite"),
        ({"base": Base(np.full((3, 2, 1), np.nan))}, "must be finite"),
        ({"truth": np.zeros((0, 2, 1))}, "not empty"),
        ({"truth": np.zeros((3, 1, 1))}, "alike"),
        ({"scale": np.zeros((2, 1))}, "scale: must be"),
        ({"scale": np.ones(2)}, "scale: must be"),
        ({"method": "scaled"}, "needs the windows' volatility"),
        ({"method": "cqr"}, "needs quantile forecasts"),
        ({"typical": np.ones(1)}, "typical: "),
        (
            {"method": "scaled", "base": Base(np.zeros((3, 2, 1)), volatility=np.ones((3, 1)))},
            "typical: takes volatilities above 0",
        ),
        (
            {"method": "scaled", "typical": np.ones(1), "base": Base(np.zeros((3, 2, 1)), volatility=np.zeros((3, 1)))},
            "volatility: must be finite and above 0",
        ),
        ({"budget": 10}, "budget: 10 numbers are too few"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(changed: dict[str, Any], message: str) -> None:
    """With what is wrong."""
    given = {"base": Base(np.zeros((3, 2, 1))), "truth": np.zeros((3, 2, 1)), "scale": np.ones((2, 1)), **changed}

    with pytest.raises(ValueError, match=message):
        calibrate(**given)


def test_intervals_are_measured_by_hand() -> None:
    """Four windows of one step and one of two: inside, below by 2, above by 1, and unknown."""
    truth = np.array([[5, 1], [-2, 1], [11, 1], [np.nan, 20]], np.float32)[:, :, None]
    bounds = Bounds(np.zeros((4, 2, 1), np.float32), np.full((4, 2, 1), 10, np.float32))

    found = measured(bounds, truth, 80, block=2)

    assert found.coverage.ravel() == pytest.approx([1 / 3, 3 / 4])
    assert found.width.ravel() == pytest.approx([10, 10])
    assert found.interval_score.ravel() == pytest.approx([10 + 10 * (2 + 1) / 3, 10 + 10 * 10 / 4])
    assert found.path_coverage.tolist() == pytest.approx([1 / 3])
    # Blocks of 1 of 2 and 0 of 1, and of 2 of 2 and 1 of 2.
    assert found.coverage_error.ravel() == pytest.approx([math.sqrt(2 * 2 * (1 / 3) ** 2) / 3, math.sqrt(2 * 0.5) / 4])


def test_what_was_never_observed_has_no_measure() -> None:
    """NaN, without a warning."""
    bounds = Bounds(np.zeros((3, 1, 1), np.float32), np.ones((3, 1, 1), np.float32))

    found = measured(bounds, np.full((3, 1, 1), np.nan), 80, block=2)

    assert np.isnan([found.coverage, found.coverage_error, found.width, found.interval_score]).all()
    assert np.isnan(found.path_coverage).all()


def test_the_error_of_a_coverage_is_of_blocks() -> None:
    """Truths that miss ten at a time tell no more than a tenth as many would."""
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.random(2000), 10)[:, None, None]
    bounds = Bounds(np.zeros((20000, 1, 1), np.float32), np.full((20000, 1, 1), 0.9, np.float32))

    found = measured(bounds, truth, 90, block=10)

    assert found.coverage_error.item() == pytest.approx(math.sqrt(0.9 * 0.1 / 2000), rel=0.05)


def test_intervals_keep_within_what_a_target_can_be() -> None:
    """Whatever the margins, at every level, adaptive too, and after a way through bytes."""
    truth = np.linspace(-5, 5, 40, dtype=np.float32).reshape(40, 1, 1).repeat(2, 2)
    table = calibrate(Base(np.zeros_like(truth)), truth, np.ones((1, 2)), limits=[(0.0, np.inf), (-np.inf, np.inf)])
    again = Table.unpack(table.pack())
    base = Base(np.ones((1, 1, 2), np.float32))

    for found in (*again.bounds(base, [80, 90]), *again.bounds(base, [80], "path")):
        assert found.lower[0, 0, 0] == 0
        assert found.lower[0, 0, 1] < -2
        assert found.upper[0, 0, 0] == found.upper[0, 0, 1] > 4
    adaptive, _ = again.adaptive_bounds(base, np.full((1, 2), 0.2))
    assert adaptive.lower[0, 0].tolist() == [0, table.bounds(base, [80])[0].lower[0, 0, 1]]
    assert calibrate(Base(np.zeros_like(truth)), truth, np.ones((1, 2)), limits=[(-np.inf, np.inf)] * 2).limits is None
