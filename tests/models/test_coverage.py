"""Intervals cover what they say, in worlds whose truth is known; and what is done wrong shows as too little of it.

Shapes: W windows, N steps, one target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from models.intervals import Base, Bounds, Floats, Method, Table, adapted, calibrate, measured

Random = np.random.Generator

REPLICATIONS = 300
LEVEL = 90
WINDOWS = 20
"""To calibrate on: so few that 1 more counts."""
STEPS = 3


@dataclass(frozen=True)
class Part:
    """Windows, what a model fitted elsewhere says of them, and what came."""

    base: Base
    truth: Floats


@dataclass(frozen=True)
class World:
    """Exchangeable windows of a line plus noise that grows with the step and differs by window."""

    train: Part
    calibration: Part
    test: Part


Recipe = Callable[[World], Bounds]
"""How bounds of the test windows are made."""


def world(rng: Random) -> World:
    inputs, train, rest = 8, 24, WINDOWS + 30
    given = rng.normal(size=(train + rest, inputs))
    moves = np.exp(rng.normal(0, 0.7, (train + rest, 1)))
    noise = moves * [1, 2, 4] * rng.normal(size=(train + rest, STEPS))
    truth = given @ rng.normal(size=(inputs, STEPS)) + noise
    weights, *_ = np.linalg.lstsq(given[:train], truth[:train])

    def part(begin: int, end: int) -> Part:
        forecast, real = ((given @ weights)[begin:end, :, None], truth[begin:end, :, None])
        forecast, real = forecast.astype(np.float32), real.astype(np.float32)
        # A volatility is in proportion to the noise, and not its size.
        return Part(Base(forecast, forecast - 2, forecast + 3, 2 * moves[begin:end]), real)

    return World(part(0, train), part(train, train + WINDOWS), part(train + WINDOWS, train + rest))


def table(part: Part, method: Method = "conformal", *, symmetric: bool = True) -> Table:
    typical = np.ones(part.truth.shape[2]) if method == "scaled" else None
    scale = np.ones(part.truth.shape[1:])
    return calibrate(part.base, part.truth, scale, method=method, symmetric=symmetric, typical=typical)


def proper(method: Method, *, symmetric: bool) -> Recipe:
    return lambda world: table(world.calibration, method, symmetric=symmetric).bounds(world.test.base, [LEVEL])[0]


def path(world: World) -> Bounds:
    return table(world.calibration).bounds(world.test.base, [LEVEL], "path")[0]


def in_sample(world: World) -> Bounds:
    """Of errors on the windows that the model was fitted on."""
    return table(world.train).bounds(world.test.base, [LEVEL])[0]


def uncorrected(world: World) -> Bounds:
    """The quantile of the n errors, and not of n + 1."""
    errors = np.sort(np.abs(world.calibration.truth - world.calibration.base.forecast), axis=0)
    margin = errors[-(-WINDOWS * LEVEL // 100) - 1]
    return Bounds(world.test.base.forecast - margin, world.test.base.forecast + margin)


def step_before(world: World) -> Bounds:
    """Of each step the errors of the one before it."""
    forecast, truth = (np.roll(values, 1, 1) for values in (world.calibration.base.forecast, world.calibration.truth))
    return table(Part(Base(forecast), truth)).bounds(world.test.base, [LEVEL])[0]


def scaled_but_served_raw(world: World) -> Bounds:
    """Errors in units of volatility, taken for errors in the units of the data."""
    raw = Base(world.test.base.forecast, volatility=np.ones_like(world.test.base.volatility))
    return table(world.calibration, "scaled").bounds(raw, [LEVEL])[0]


def raw_but_served_scaled(world: World) -> Bounds:
    """The other way round."""
    raw = Base(world.calibration.base.forecast, volatility=np.ones_like(world.calibration.base.volatility))
    return table(Part(raw, world.calibration.truth), "scaled").bounds(world.test.base, [LEVEL])[0]


def complaints(recipe: Recipe, most: float = 1 / (WINDOWS + 1)) -> list[str]:
    """Steps whose mean coverage over many worlds is not from 1 - a to 1 - a + `most`, by three standard errors."""
    rng = np.random.default_rng(7)
    worlds = (world(rng) for _ in range(REPLICATIONS))
    found = np.array([measured(recipe(world), world.test.truth, LEVEL, 1).coverage[:, 0] for world in worlds])
    share, slack = found.mean(0), 3 * found.std(0) / np.sqrt(REPLICATIONS)
    least = LEVEL / 100
    return [
        f"step {step}: {share[step]:.3f}"
        for step in range(STEPS)
        if not least - slack[step] <= share[step] <= least + most + slack[step]
    ]


@pytest.mark.parametrize("method", ["conformal", "scaled", "cqr"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_exchangeable_windows_are_covered_as_promised(method: Method, symmetric: bool) -> None:
    """From 1 - a to 1 - a + 1 / (n + 1), and 2 of these where either end has its own rank."""
    assert complaints(proper(method, symmetric=symmetric), (1 if symmetric else 2) / (WINDOWS + 1)) == []


@pytest.mark.parametrize(
    "wrong", [in_sample, uncorrected, step_before, scaled_but_served_raw, raw_but_served_scaled, path]
)
def test_what_is_done_wrong_shows(wrong: Recipe) -> None:
    """The property above would find each of these, and that the band of a path is wider than each step needs."""
    assert complaints(wrong) != []


def ar1(rng: Random, windows: int, steps: int) -> Part:
    """y' = 0.8 y + noise, forecast as well as can be: 0.8^h y."""
    noise = rng.normal(size=windows + steps + 50)
    series = np.zeros_like(noise)
    for place in range(1, len(noise)):
        series[place] = 0.8 * series[place - 1] + noise[place]
    ahead = np.lib.stride_tricks.sliding_window_view(series[50:], steps)
    return part_of(series[49 : 49 + windows, None] * 0.8 ** np.arange(1, steps + 1), ahead[:windows])


def moving_sum(rng: Random, windows: int, steps: int) -> Part:
    """A walk, forecast to stay: errors at step h are sums of h shocks, of which neighbours share h - 1."""
    series = np.cumsum(rng.standard_t(5, windows + steps))
    ahead = np.lib.stride_tricks.sliding_window_view(series, steps + 1)[:windows]
    return part_of(np.repeat(ahead[:, :1], steps, 1), ahead[:, 1:])


def seasonal(rng: Random, windows: int, steps: int) -> Part:
    """Noise that is loud by day and quiet by night, and skewed."""
    hours = np.arange(windows + steps)
    series = (1.2 + np.sin(2 * np.pi * hours / 24)) * (rng.exponential(size=len(hours)) - 1)
    ahead = np.lib.stride_tricks.sliding_window_view(series, steps)[:windows]
    return part_of(np.zeros_like(ahead), ahead)


def part_of(forecast: NDArray[np.float64], truth: NDArray[np.float64]) -> Part:
    return Part(Base(forecast[:, :, None].astype(np.float32)), truth[:, :, None].astype(np.float32))


@pytest.mark.parametrize("made", [ar1, moving_sum, seasonal])
def test_series_are_covered_step_by_step_and_as_paths(made: Callable[[Random, int, int], Part]) -> None:
    """Overlapping windows of one series, the first to calibrate on: within 3 points a step, and no less for paths."""
    rng, windows, steps, gap = np.random.default_rng(11), 960, 6, 30
    each, paths, loose = [], [], []
    for _ in range(40):
        whole = made(rng, 2 * windows + gap, steps)
        before, after = (
            Part(Base(whole.base.forecast[piece]), whole.truth[piece])
            for piece in (slice(windows), slice(windows + gap, None))
        )
        scale = np.sqrt(np.arange(1, steps + 1))[:, None]
        found = calibrate(before.base, before.truth, scale)
        by_step, by_path = (
            measured(found.bounds(after.base, [90], band)[0], after.truth, 90, steps) for band in ("each", "path")
        )
        each.append(by_step.coverage[:, 0])
        loose.append(by_step.path_coverage)
        paths.append(by_path.path_coverage)

    assert np.mean(each, 0) == pytest.approx(np.full(steps, 0.9), abs=0.03)
    assert np.mean(paths) >= 0.9 - 3 * np.std(paths) / np.sqrt(len(paths))
    # What covers each step of itself does not cover a path.
    assert np.mean(loose) < 0.85


def rolling(covered: list[bool], rows: int = 500) -> NDArray[np.float64]:
    return np.convolve(covered, np.full(rows, 1 / rows), "valid")


@pytest.mark.parametrize("noise", [1.6, 0.5])
def test_adaptive_intervals_cover_again_after_a_change(noise: float) -> None:
    """When errors grow or shrink for good, the last 500 steps are covered as asked; fixed intervals stay wrong."""
    rng, level, rate = np.random.default_rng(5), 90, 0.02
    errors = rng.normal(size=(2000, 1, 1)).astype(np.float32)
    known = calibrate(Base(np.zeros_like(errors)), errors, np.ones((1, 1)))
    base = Base(np.zeros((1, 1, 1), np.float32))
    stream = rng.normal(size=3000) * np.repeat([1, noise], [1000, 2000])
    (fixed,) = known.bounds(base, [level])

    alpha = np.full((1, 1), 0.1)
    covered, covered_fixed = [], []
    for truth in stream:
        found, _ = known.adaptive_bounds(base, alpha)
        covered.append(holds(found, truth))
        covered_fixed.append(holds(fixed, truth))
        alpha = adapted(alpha, np.full((1, 1), covered[-1], float), 0.1, rate)

    assert abs(rolling(covered_fixed)[-1] - 0.9) > 0.05
    assert rolling(covered)[[499, -1000, -500, -1]] == pytest.approx(np.full(4, 0.9), abs=0.03)


def holds(bounds: Bounds, truth: float) -> bool:
    return bounds.lower.item() <= truth <= bounds.upper.item()


def test_adaptive_miscoverage_does_not_run_away() -> None:
    """After truths that no interval held for long, a usual number of covered ones brings it back."""
    alpha = np.array([0.1])
    for covered in [0.0] * 1000 + [1.0] * 130:
        alpha = adapted(alpha, np.array([covered]), 0.1, 0.01)

    assert alpha == pytest.approx([0.1])


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_p_values_of_usual_truths_are_uniform(share: float) -> None:
    """A share a of them is a or less, at any a: what an alarm at that threshold would cost."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        errors = rng.exponential(size=(239, 1, 1)).astype(np.float32)
        known = calibrate(Base(np.zeros_like(errors[:199])), errors[:199], np.ones((1, 1)))
        found.append(np.mean(known.p_values(Base(np.zeros_like(errors[199:])), errors[199:]) <= 1 - share + 1e-9))

    assert np.mean(found) == pytest.approx(1 - share, abs=3 * np.std(found) / np.sqrt(len(found)))
