"""The loop: the same run twice, the best weights, the clip, the schedules, a loss that is no number."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from models import networks
from tests.training import world
from training.dataset import Dataset, prepare
from training.errors import DivergedError, RecipeError
from training.fit import Fitted, build, fit
from training.objective import Objective
from training.progress import Epoch
from training.recipe import Recipe
from training.windows import Batches


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return world.write(tmp_path / "rows.csv", world.rows(160))


def run(file: Path, **sections: Mapping[str, Any]) -> tuple[Recipe, Dataset, Fitted]:
    recipe = world.recipe(file, **sections)
    dataset = prepare(recipe)
    return recipe, dataset, fit(recipe, dataset, tell=lambda _: None)


def validation_error(recipe: Recipe, dataset: Dataset, fitted: Fitted) -> float:
    objective = Objective(fitted.network, recipe).eval()
    with torch.inference_mode():
        (rows,) = Batches(dataset.windows["validation"], 1000)
        return float(objective.errors(rows) @ objective.target_weights)


def weights(fitted: Fitted) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(fitted.network.parameters())


def test_the_same_recipe_gives_the_same_weights(file: Path) -> None:
    """A seed decides weights, order and dropout; another seed gives another model."""
    config = {"config": {"hidden": 4, "layers": 2, "dropout": 0.5}}

    one, same, other = (run(file, network=config, training={"seed": seed})[2] for seed in (1, 1, 2))

    assert torch.equal(weights(one), weights(same))
    assert one.epochs[-1].loss == same.epochs[-1].loss
    assert not torch.equal(weights(one), weights(other))


def test_training_learns(file: Path) -> None:
    """A wave is forecast better after a few epochs than after the first."""
    *_, fitted = run(file, training={"epochs": 15})

    assert fitted.epochs[-1].loss < fitted.epochs[0].loss / 2


def test_early_stopping_gives_back_the_best_weights(file: Path) -> None:
    """A rate far too high makes things worse: training stops early and the best epoch is what remains."""
    recipe, dataset, fitted = run(
        file, training={"epochs": 50, "patience": 2, "learning_rate": 0.3, "schedule": "none", "clip": 0.0}
    )
    errors = [epoch.validation for epoch in fitted.epochs]

    assert len(errors) < 50
    assert errors.index(min(errors)) == len(errors) - 3
    assert [epoch.best for epoch in fitted.epochs][-3:] == [True, False, False]
    assert validation_error(recipe, dataset, fitted) == pytest.approx(min(errors), rel=1e-5)


def test_clipping_bounds_the_gradient(file: Path) -> None:
    """Adam forgets the gradient's size unless it is tiny: clipped to almost nothing, a step goes almost nowhere."""
    start, free, clipped = (
        run(file, training={"epochs": 1, "batch": 1000, "learning_rate": rate, "clip": clip})[2]
        for rate, clip in ((1e-30, 0.0), (0.01, 0.0), (0.01, 1e-12))
    )

    assert (weights(clipped) - weights(start)).norm() < 1e-3 * (weights(free) - weights(start)).norm()


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("none", [0.1, 0.1, 0.1, 0.1]), ("cosine", [0.1, 0.0854, 0.05, 0.0146])],
)
def test_the_schedule_moves_the_learning_rate(file: Path, schedule: str, rates: list[float]) -> None:
    """Constant, or along half a cosine over the epochs."""
    *_, fitted = run(file, training={"epochs": 4, "patience": 9, "schedule": schedule, "learning_rate": 0.1})

    assert [epoch.learning_rate for epoch in fitted.epochs] == pytest.approx(rates, abs=1e-4)


def test_a_plateau_halves_the_learning_rate(file: Path) -> None:
    """After two epochs without progress."""
    options = {"epochs": 30, "patience": 5, "schedule": "plateau", "learning_rate": 0.3, "clip": 0.0}
    *_, fitted = run(file, training=options)

    rates = [epoch.learning_rate for epoch in fitted.epochs]
    assert rates[0] == pytest.approx(0.3)
    assert len(rates) > 3
    assert all(later in (pytest.approx(rate), pytest.approx(rate / 2)) for rate, later in pairwise(rates))
    assert rates[-1] < 0.3


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_loss_weighs_targets_and_covariates(file: Path, loss: str) -> None:
    """Weights are relative and sum to one; a covariate counts as the recipe says, and nothing in the validation."""
    recipe = world.recipe(file, training={"loss": loss, "covariate_weight": 0.5})
    dataset = prepare(recipe)
    objective = Objective(build(recipe, dataset), recipe)

    assert objective.weights.tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert objective.target_weights.tolist() == [0.5, 0.5, 0.0]
    assert objective.errors(dataset.windows["train"].gather(torch.arange(4))).shape == (3,)


def test_known_future_covariates_reach_the_network(tmp_path: Path) -> None:
    """A target that equals a covariate known ahead is learnt from it."""
    frame = world.rows(160, seed=3)
    frame = frame.with_columns(load=frame["wind"])
    file = world.write(tmp_path / "rows.csv", frame)
    features = [{"name": "wind", "role": "future"}, {"name": "load", "role": "target"}]

    options = {"epochs": 15, "batch": 8}

    *_, blind = run(file, data={"features": features[1:]}, training=options)
    *_, seeing = run(file, data={"features": features}, training=options)

    assert min(epoch.validation for epoch in seeing.epochs) < min(epoch.validation for epoch in blind.epochs) / 3


def test_every_epoch_is_told(file: Path) -> None:
    """Whoever runs the training hears of loss, error, rate and speed after each epoch."""
    told: list[Epoch] = []
    recipe = world.recipe(file)

    fitted = fit(recipe, prepare(recipe), tell=told.append)

    assert told == fitted.epochs
    assert [epoch.number for epoch in told] == [1, 2]
    assert all(math.isfinite(epoch.loss + epoch.validation) and epoch.windows_per_s > 0 for epoch in told)
    assert str(told[0]).startswith("epoch   1  loss 0.")


def test_a_loss_that_is_no_number_is_told(file: Path) -> None:
    """Training stops with advice instead of going on in silence."""
    with pytest.raises(DivergedError, match=r"smaller training\.learning_rate"):
        run(file, training={"learning_rate": 1e30, "loss": "mse", "clip": 0.0})


def test_a_network_that_does_not_fit_the_window_is_told(file: Path) -> None:
    """A wrong shape is an error of the recipe."""
    recipe = world.recipe(file, window={"horizon": 12})

    with pytest.raises(RecipeError, match=r"network.architecture 'lstm': window \(12\) must be longer than horizon"):
        build(recipe, prepare(recipe))


@pytest.mark.parametrize("architecture", networks.names())
def test_every_architecture_can_be_trained(file: Path, architecture: str) -> None:
    """A new file in models/networks is trained by its defaults without another line."""
    recipe = world.recipe(file, network={"architecture": architecture, "config": {}}, training={"epochs": 1})

    fitted = fit(recipe, prepare(recipe), tell=lambda _: None)

    assert math.isfinite(fitted.epochs[0].validation)
    assert not fitted.network.training
