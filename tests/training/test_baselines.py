"""Baselines against forecasts worked out by hand."""

import torch

from training.data.windows import Clock, Windows
from training.scoring.baselines import last_value, linear, seasonal_naive

WINDOW = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]])


def windows_of(series: torch.Tensor, length: int, steps: int) -> Windows:
    starts = torch.arange(len(series) - length - steps + 1)
    clock = Clock(torch.tensor([0]), torch.tensor([0]), 3600)
    return Windows(series, starts, clock, length, steps)


def test_last_value_goes_on() -> None:
    """Every step of every target is the last row given."""
    assert last_value(WINDOW, 2).tolist() == [[[4.0, 40.0], [4.0, 40.0]]]


def test_the_last_season_goes_on_over_and_over() -> None:
    """With a season of three rows the fourth step is the first again."""
    assert seasonal_naive(WINDOW, 4, 3)[0, :, 0].tolist() == [2.0, 3.0, 4.0, 2.0]


def test_linear_finds_a_linear_law() -> None:
    """A series that is an exact linear map of its past is forecast exactly, each target by its own map."""
    line = torch.arange(60.0)
    wave = torch.sin(line)
    series = torch.stack([line * 3 + 7, torch.zeros(60), wave], 1)
    windows = windows_of(series, length=5, steps=3)

    forecast = linear(windows, [0, 2])(series[None, 20:25][:, :, [0, 2]])

    assert forecast.dtype == torch.float32
    assert torch.allclose(forecast, series[None, 25:28][:, :, [0, 2]], atol=1e-2)


def test_linear_is_ordinary_least_squares() -> None:
    """On noise it equals the textbook solution on differences from the last value."""
    series = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    windows = windows_of(series, length=4, steps=2)
    rows = windows.gather(torch.arange(len(windows))).rows[:, :, 0].double()
    change = rows - rows[:, 3:4]
    terms = torch.cat([change[:, :3], torch.ones(len(rows), 1)], 1)

    textbook = terms @ torch.linalg.lstsq(terms, change[:, 4:]).solution + rows[:, 3:4]

    found = linear(windows, [0])(rows[:, :4, None].float())[:, :, 0]
    assert torch.allclose(found.double(), textbook, atol=1e-4)


def test_linear_survives_a_constant_target() -> None:
    """Nothing to solve for: the constant goes on."""
    series = torch.full((30, 1), 5.0)

    found = linear(windows_of(series, length=4, steps=2), [0])(series[None, :4])

    assert found.flatten().tolist() == [5.0, 5.0]


def test_linear_is_the_same_least_squares_where_gaps_part_the_windows() -> None:
    """Several runs of windows, in several series: as if every window had been cut out."""
    series = torch.randn(120, 1, generator=torch.Generator().manual_seed(1)).cumsum(0) + 1e4
    whole = windows_of(series, length=4, steps=2)
    kept = torch.tensor([*range(10), *range(13, 14), *range(30, 90)])
    parted = Windows(series, kept, whole.clock, 4, 2)
    rows = parted.gather(torch.arange(len(kept))).rows[:, :, 0].double()
    change = rows - rows[:, 3:4]
    terms = torch.cat([change[:, :3], torch.ones(len(rows), 1)], 1)

    textbook = terms @ torch.linalg.lstsq(terms, change[:, 4:]).solution

    found = linear(parted, [0])(rows[:, :4, None].float())[:, :, 0] - rows[:, 3:4]
    assert torch.allclose(found, textbook, atol=5e-3)


def test_linear_sees_only_the_rows_of_its_windows() -> None:
    """Whatever stands in rows that no window holds, the coefficients are the same to the last digit."""
    series = torch.randn(60, 1, generator=torch.Generator().manual_seed(2))
    poisoned = series.clone()
    poisoned[:10], poisoned[40:50], poisoned[50:] = 1e20, 1e20, float("nan")
    clock = windows_of(series, 4, 2).clock
    starts = torch.arange(10, 40 - 6 + 1)

    one, other = (linear(Windows(rows, starts, clock, 4, 2), [0])(series[None, 10:14]) for rows in (series, poisoned))

    assert torch.equal(one, other)


NAN = float("nan")


def test_last_value_is_the_last_that_was_observed() -> None:
    """Of each target on its own; where a window begins with a gap that changes nothing."""
    window = torch.tensor([[[NAN, 1.0], [2.0, NAN], [3.0, 5.0], [NAN, 6.0]]])

    assert last_value(window, 2).tolist() == [[[3.0, 6.0], [3.0, 6.0]]]


def test_a_season_that_was_not_observed_is_that_before() -> None:
    """Of each place in the season the last value, and the last of all where there is none."""
    window = torch.tensor([[1.0, 2.0, NAN, 4.0, 5.0, NAN, 7.0, NAN, NAN]]).unsqueeze(2)

    # Seasons of three from the end: 7, missing, missing; 4, 5, missing; 1, 2, missing.
    assert seasonal_naive(window, 4, 3).flatten().tolist() == [7.0, 5.0, 7.0, 7.0]
    # A season of four: the window holds two, and one row more, whose place is that of the newest row.
    assert seasonal_naive(window, 4, 4).flatten().tolist() == [2.0, 7.0, 4.0, 5.0]
    window[0, 1] = NAN
    assert seasonal_naive(window, 4, 4).flatten().tolist() == [7.0, 7.0, 4.0, 5.0]


def test_linear_fills_what_it_is_asked_for() -> None:
    """With the value before, or the first after a gap at the beginning."""
    series = torch.randn(80, 1, generator=torch.Generator().manual_seed(3))
    forecast = linear(windows_of(series, length=4, steps=2), [0])
    gap, filled = torch.tensor([[NAN, 2.0, NAN, 3.0]]), torch.tensor([[2.0, 2.0, 2.0, 3.0]])

    assert torch.equal(forecast(gap.unsqueeze(2)), forecast(filled.unsqueeze(2)))


def test_linear_is_fitted_on_filled_windows() -> None:
    """As if each series had been filled forward, and backward at its beginning, before windows were cut out."""
    series = torch.randn(120, 1, generator=torch.Generator().manual_seed(4)).cumsum(0)
    gaps, filled = series.clone(), series.clone()
    gaps[30:32], filled[30:32] = NAN, series[29]
    gaps[60:63], filled[60:63] = NAN, series[63]
    clock = Clock(torch.tensor([0, 60]), torch.tensor([0, 0]), 3600)
    length, steps = 5, 2
    kept = [start for start in (*range(54), *range(60, 114)) if not gaps[start + length : start + 7].isnan().any()]

    one, other = (linear(Windows(rows, torch.tensor(kept), clock, length, steps), [0]) for rows in (gaps, filled))

    assert torch.equal(one(series[None, :5]), other(series[None, :5]))
