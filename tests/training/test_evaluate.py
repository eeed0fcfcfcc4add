"""Scores are those of the exported module on every window, in the units of the data."""

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
        [mae / dataset.naive_errors[0] for mae in metrics.model["load"].mae]
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

    metrics = evaluate(recipe, dataset, Clockwork(), watch=evidence.add)

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
