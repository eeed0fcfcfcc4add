"""Scores are those of the exported module on every window, in the units of the data."""

from pathlib import Path

import pytest
import torch

from models.forecaster import Forecaster
from tests.training import world
from training import baselines
from training.dataset import Dataset, prepare
from training.evaluate import evaluate, example, export
from training.fit import build
from training.recipe import Recipe


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
    rows = windows.gather(torch.arange(len(windows)))
    with torch.inference_mode():
        forecast, _ = network.rollout(rows[:, :12], torch.zeros(len(rows), dtype=torch.int64), rows[:, 12:, :0], 4)
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
    rows = windows.gather(torch.arange(len(windows)))
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

    found, truth = example(recipe, dataset, export(recipe, network, dataset.windows["test"]))

    assert found.start is not None
    assert found.start >= dataset.span("test").start - recipe.window.length * recipe.data.frequency
    place = int((found.start - world.START) / world.HOUR)
    values = dataset.series[0].values
    assert torch.equal(torch.tensor(found.window), values[place : place + 12])
    assert torch.equal(truth, values[place + 12 : place + 16, :2])
    assert (len(found.forecast), found.attention) == (4, [])
