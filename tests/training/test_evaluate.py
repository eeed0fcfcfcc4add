"""Scores are those of the exported module on every window, in the units of the data."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.forecaster import Forecaster
from tests.training import world
from training.data.dataset import Dataset, prepare
from training.fitting.fit import build
from training.recipe import Recipe
from training.scoring import baselines
from training.scoring.evaluate import case, evaluate, example, export
from training.scoring.evidence import Evidence, autocorrelation


@pytest.fixture
def made(tmp_path: Path) -> tuple[Recipe, Dataset, Forecaster]:
    recipe = world.recipe(world.write(tmp_path / "rows.csv", world.rows(3400)), window={"steps": 4})
    dataset = prepare(recipe)
    torch.manual_seed(0)
    return recipe, dataset, build(recipe, dataset).eval()


def test_the_model_is_scored_on_every_window(made: tuple[Recipe, Dataset, Forecaster]) -> None:
    """The scores equal those of the eager network on all test windows at once: no batch is dropped."""
    recipe, dataset, network = made
    windows = dataset.windows["test"]
    rows, times = windows.gather(torch.arange(len(windows)))
    with torch.inference_mode():
        forecast, _ = network.rollout(rows[:, :12], times, rows[:, 12:, :0], 4)
    error = forecast - rows[:, 12:, :2]

    metrics = evaluate(recipe, dataset, export(recipe, network, windows))

    assert metrics.windows == len(windows) > 512
    assert metrics.model["load"].mae == pytest.approx(error[:, :, 0].abs().mean(0).tolist(), rel=1e-4)
    assert metrics.model["heat"].rmse == pytest.approx(error[:, :, 1].square().mean(0).sqrt().tolist(), rel=1e-4)
    assert metrics.model["load"].mase == pytest.approx(
        [mae / dataset.naive_errors[0][0] for mae in metrics.model["load"].mae]
    )


def test_baselines_are_scored_on_the_same_windows(made: tuple[Recipe, Dataset, Forecaster]) -> None:
    """Each baseline's score is that of its forecast of the test windows."""
    recipe, dataset, network = made
    windows = dataset.windows["test"]
    rows, _ = windows.gather(torch.arange(len(windows)))
    naive = baselines.seasonal_naive(rows[:, :12, :2], 4, 6)

    metrics = evaluate(recipe, dataset, export(recipe, network, windows))

    assert set(metrics.baselines) == {"last_value", "seasonal_naive", "linear"}
    assert metrics.baselines["seasonal_naive"]["heat"].mae == pytest.approx(
        (naive - rows[:, 12:, :2]).abs().mean(0)[:, 1].tolist(), rel=1e-4
    )
    assert sum(metrics.baselines["linear"]["load"].mae) < sum(metrics.baselines["last_value"]["load"].mae)


def test_the_example_is_a_window_of_the_test(made: tuple[Recipe, Dataset, Forecaster]) -> None:
    """Its rows and its time are those of the data, and the truth is what follows them."""
    recipe, dataset, network = made

    shown = example(recipe, dataset, export(recipe, network, dataset.windows["test"]))
    found = shown.example

    assert found.start is not None
    assert found.start >= dataset.span("test").start - recipe.window.length * recipe.data.frequency
    place = int((found.start - world.START) / world.HOUR)
    values = dataset.series[0].values
    assert torch.equal(torch.tensor(found.window), values[place : place + 12])
    assert torch.equal(shown.truth, values[place + 12 : place + 16, :2])
    assert (len(found.forecast), found.attention) == (4, [])


class Clockwork:
    """A module (ForecastModule) that forecasts the hours since the start of the data, from the time that it is told."""

    def encode(self, window: torch.Tensor, time: torch.Tensor) -> list[torch.Tensor]:
        return [(time - int(world.START.timestamp())) / 3600]

    def decode(
        self, state: list[torch.Tensor], future: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        hour = state[0] + 1
        return hour[:, None, None].expand(-1, 1, 2), torch.full((len(hour), 1, 12), 1 / 12), [hour]

    def rollout(
        self, window: torch.Tensor, time: torch.Tensor, future: torch.Tensor, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


def test_the_module_is_told_when_the_last_row_was(tmp_path: Path) -> None:
    """A target that counts the hours is forecast without an error by whoever goes by the clock alone."""
    hours = world.rows(300).with_columns(load=pl.int_range(pl.len()), heat=pl.int_range(pl.len()))
    recipe = world.recipe(world.write(tmp_path / "rows.csv", hours))
    dataset = prepare(recipe)

    metrics = evaluate(recipe, dataset, Clockwork())

    assert metrics.model["load"].mae == [0.0, 0.0, 0.0]
    assert case(recipe, dataset, Clockwork(), 3).example.forecast[0][0] == dataset.windows["test"].starts[3] + 12


def test_evidence_has_every_window_in_order(made: tuple[Recipe, Dataset, Forecaster]) -> None:
    """Residuals, times and mean attention of all test windows, and which were forecast best and worst."""
    recipe, dataset, _ = made
    windows = dataset.windows["test"]
    rows, times = windows.gather(torch.arange(len(windows)))
    evidence = Evidence(dataset.features[:2])

    metrics = evaluate(recipe, dataset, Clockwork(), watches=[evidence.add])

    assert torch.equal(evidence.times, times)
    hours = (times - int(world.START.timestamp())) // 3600 + 1
    assert torch.allclose(evidence.first, hours[:, None] - rows[:, 12, :2])
    assert torch.allclose(evidence.last, hours[:, None] + 3 - rows[:, 15, :2])
    assert evidence.last.abs().mean(0).tolist() == pytest.approx([of.mae[-1] for of in metrics.model.values()])
    assert torch.allclose(evidence.attention, torch.full((4, 12), 1 / 12, dtype=torch.float64))
    # The hours run away from the truth, so the first window is the best and the last the worst but for noise.
    places = evidence.places()
    assert places["best"] < places["median"] < places["worst"]


def test_autocorrelation_is_over_pairs_that_are_so_far_apart() -> None:
    """Like numpy's on a whole series; a pair across a gap is none."""
    values = torch.tensor(np.random.default_rng(0).normal(size=300)).cumsum(0)
    times = torch.arange(300) * 60
    deviation = (values - values.mean()).numpy()

    found = autocorrelation(values, times, 60, 5)

    assert found.tolist() == pytest.approx(
        [(deviation[lag:] * deviation[:-lag]).mean() / deviation.var() for lag in range(1, 6)]
    )
    assert autocorrelation(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0, 60, 600, 660]), 60, 2).tolist() == [
        -1.0,
        0.0,
    ]


class Recorder:
    """A module (ForecastModule) that keeps what it is asked, and answers with more outputs than there are targets."""

    def __init__(self) -> None:
        self.windows: list[torch.Tensor] = []
        self.futures: list[torch.Tensor] = []

    def encode(self, window: torch.Tensor, time: torch.Tensor) -> list[torch.Tensor]:
        self.windows.append(window)
        return [window[:, 0]]

    def decode(
        self, state: list[torch.Tensor], future: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        self.futures.append(future)
        outputs = torch.tensor([1.0, 2.0, -900.0, -900.0, 900.0, 900.0])
        rows = len(future)
        return outputs.expand(rows, 1, 6), torch.zeros(rows, 0, 12), state

    def rollout(
        self, window: torch.Tensor, time: torch.Tensor, future: torch.Tensor, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


@pytest.fixture
def incomplete(tmp_path: Path) -> tuple[Recipe, Dataset]:
    """Rows with gaps, a static feature and a known-future covariate, in windows that may be short."""
    frame = world.with_gap(world.rows(200), "wind", 165, 2).with_columns(altitude=7.0, tariff=pl.int_range(200) * 1.0)
    roles = {"altitude": "static", "load": "target", "tariff": "future", "heat": "target", "wind": "past"}
    recipe = world.recipe(
        world.write(tmp_path / "rows.csv", world.with_gap(frame, "load", 170, 1)),
        data={
            "features": [{"name": name, "role": role} for name, role in roles.items()],
            "gaps": {"method": "carry_forward", "limit": 2},
        },
        window={"shortest": 4},
    )
    return recipe, prepare(recipe)


def test_the_artifact_is_asked_with_gaps_and_all_that_is_known_ahead(incomplete: tuple[Recipe, Dataset]) -> None:
    """It fills them itself; static features are in the window and ahead. Only the point forecast is scored."""
    recipe, dataset = incomplete
    windows = dataset.windows["test"]
    rows, _ = windows.gather(torch.arange(len(windows)))
    asked = Recorder()

    metrics = evaluate(recipe, dataset, asked)

    given = torch.cat(asked.windows)
    assert torch.equal(given.isnan(), rows[:, :12].isnan())
    assert given[:, :, 4].isnan().any()
    assert asked.futures[0].shape == (len(windows), 1, 2)
    assert (asked.futures[0][:, :, 0] == 7).all()
    assert torch.equal(asked.futures[2][:, 0, 1], rows[:, 14, 2])
    error = torch.tensor([1.0, 2.0]) - rows[:, 12:, [1, 3]]
    assert metrics.model["load"].mae == pytest.approx(error[:, :, 0].abs().mean(0).tolist())
    assert metrics.model["heat"].mae == pytest.approx(error[:, :, 1].abs().mean(0).tolist())
    for of in metrics.baselines.values():
        assert all(math.isfinite(error) for scores in of.values() for error in scores.mae)


def test_evidence_is_of_the_point_forecast(incomplete: tuple[Recipe, Dataset]) -> None:
    """Quantiles behind it are no residuals."""
    recipe, dataset = incomplete
    rows, _ = dataset.windows["test"].gather(torch.arange(len(dataset.windows["test"])))
    evidence = Evidence([dataset.features[column] for column in recipe.data.target_columns])

    evaluate(recipe, dataset, Recorder(), watches=[evidence.add])

    assert torch.equal(evidence.first, torch.tensor([1.0, 2.0]) - rows[:, 12, [1, 3]])


def test_a_case_is_a_request_as_a_client_sends_it(incomplete: tuple[Recipe, Dataset]) -> None:
    """Static features once, only what a request gives ahead, None where there is nothing; and all outputs."""
    recipe, dataset = incomplete
    windows = dataset.windows["test"]
    chosen = int((windows.starts - 8 == 171 - 12).nonzero()[0])
    rows = windows.gather(torch.tensor([chosen])).rows[0]

    found = case(recipe, dataset, Recorder(), chosen).example

    assert found.static == [7.0]
    assert found.future == rows[12:, [2]].tolist()
    shown = torch.tensor([[math.nan if value is None else value for value in row] for row in found.window])
    assert torch.equal(shown.nan_to_num(-9), rows[:12, 1:].nan_to_num(-9))
    assert sum(row.count(None) for row in found.window) == 3
    assert found.forecast == [[1.0, 2.0, -900.0, -900.0, 900.0, 900.0]] * 3
