"""Optimisers, schedules and losses against what is worked out by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.training import world
from training.data.dataset import prepare
from training.fitting.fit import fit
from training.fitting.losses import loss
from training.fitting.optimisation import optimiser
from training.recipe import Training


def stepped(gradients: list[float], **options: object) -> float:
    """A weight that was 2 after steps along these gradients, at a learning rate of 0.1."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    steps = optimiser(Training(learning_rate=0.1, **options), [weight])
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        steps.step()
    return weight.item()


def rates(folder: Path, **options: object) -> list[float]:
    """What the report shows of four epochs."""
    file = world.write(folder / "rows.csv", world.rows(160))
    recipe = world.recipe(file, training={"epochs": 4, "patience": 9, "learning_rate": 0.1, **options})
    return [epoch.learning_rate for epoch in fit(recipe, prepare(recipe), tell=lambda _: None).epochs]


@pytest.mark.parametrize(
    ("options", "gradients", "expected"),
    [
        ({"optimizer": "sgd"}, [1.0, 1.0], 2 - 0.1 - 0.1),
        ({"optimizer": "sgd", "momentum": 0.5}, [1.0, 1.0], 2 - 0.1 - 0.15),
        ({"optimizer": "adam"}, [7.0], 2 - 0.1),
        ({"optimizer": "adamw"}, [7.0], 2 - 0.1),
        ({"optimizer": "rmsprop"}, [7.0], 2 - 0.1 / 0.01**0.5),
        ({"optimizer": "rmsprop", "momentum": 0.5}, [7.0, 0.0], 2 - 1.5 * 0.1 / 0.01**0.5),
    ],
)
def test_each_optimiser_takes_its_own_steps(
    options: Mapping[str, Any], gradients: list[float], expected: float
) -> None:
    """Along the gradient, with momentum, or by its sign alone."""
    assert stepped(gradients, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", 2 - 0.1 * 0.5 * 2),
        ("adam", 2 - 0.1),
        ("adamw", 2 * (1 - 0.1 * 0.5)),
        ("rmsprop", 2 - 0.1 / 0.01**0.5),
    ],
)
def test_weight_decay_is_decoupled_in_adamw_alone(optimizer: str, expected: float) -> None:
    """Where nothing else pulls, adamw shrinks the weight itself; the others see a gradient of its square."""
    assert stepped([0.0], optimizer=optimizer, weight_decay=0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "none"}, [0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.1, 0.0854, 0.05, 0.0146]),
        ({"schedule": "exponential", "decay": 0.7}, [0.1, 0.07, 0.049, 0.0343]),
        ({"schedule": "exponential", "decay": 0.7, "warmup": 2}, [0.1 / 9, 0.1 * 5 / 9, 0.1, 0.07]),
        ({"schedule": "cosine", "warmup": 1}, [0.1 / 5, 0.1, 0.075, 0.025]),
        ({"schedule": "none", "warmup": 1.5}, [0.1 / 7, 0.1 * 5 / 7, 0.1, 0.1]),
    ],
)
def test_the_schedule_moves_the_learning_rate(
    tmp_path: Path, options: Mapping[str, Any], expected: list[float]
) -> None:
    """What each epoch of four steps begins with; the warm-up rises at every step, and the schedule follows it."""
    assert rates(tmp_path, **options) == pytest.approx(expected, abs=1e-4)


def test_one_cycle_rises_and_falls_step_by_step(tmp_path: Path) -> None:
    """From a 25th to the whole within the first third, and almost to zero at the end; the steps are those of epochs."""
    found = rates(tmp_path, schedule="one_cycle")

    assert found[0] == pytest.approx(0.1 / 25)
    assert found[1] > found[2] > found[3] > 0
    assert 0.09 < found[1] <= 0.1


@pytest.mark.parametrize(("decay", "wait"), [(0.5, 2), (0.1, 3)])
def test_a_plateau_lowers_the_learning_rate(tmp_path: Path, decay: float, wait: int) -> None:
    """After so many epochs without progress, by the factor."""
    file = world.write(tmp_path / "rows.csv", world.rows(160))
    options = {"schedule": "plateau", "decay": decay, "plateau_patience": wait, "learning_rate": 0.3, "clip": 0.0}
    recipe = world.recipe(file, training={"epochs": 20, "patience": wait + 1, **options})

    epochs = fit(recipe, prepare(recipe), tell=lambda _: None).epochs

    found = [epoch.learning_rate for epoch in epochs]
    best = max(index for index, epoch in enumerate(epochs) if epoch.best)
    assert len(epochs) == best + wait + 2 < 20
    assert found[best + wait + 1] == pytest.approx(found[best + wait] * decay)
    assert found[best + wait] == found[best + 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "mse"}, [9.0, 0.25]),
        ({"loss": "mae"}, [3.0, 0.5]),
        ({"loss": "huber"}, [2.5, 0.125]),
        ({"loss": "huber", "huber_delta": 2.0}, [4.0, 0.125]),
        ({"loss": "quantile"}, [1.5, 0.25]),
        ({"loss": "quantile", "quantile": 0.9}, [2.7, 0.05]),
    ],
)
def test_each_loss_is_what_its_name_says(options: Mapping[str, Any], expected: list[float]) -> None:
    """For a forecast three too low and one a half too high."""
    found = loss(Training(**options))(torch.tensor([1.0, 2.5]), torch.tensor([4.0, 2.0]))

    assert found.tolist() == pytest.approx(expected)


def test_the_quantile_loss_finds_the_quantile() -> None:
    """The forecast that costs least has that share of what came below it."""
    came = torch.arange(100.0)
    guesses = torch.arange(0.5, 99.5)

    cost = [loss(Training(loss="quantile", quantile=0.8))(guess.expand(100), came).sum().item() for guess in guesses]

    assert guesses[torch.tensor(cost).argmin()].item() == pytest.approx(79.5, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "'adam', 'adamw', 'rmsprop' or 'sgd'"),
        ({"schedule": "step"}, "'none', 'cosine', 'plateau', 'exponential' or 'one_cycle'"),
        ({"loss": "rmse"}, "'mse', 'mae', 'huber' or 'quantile'"),
        ({"clip_value": 0.5}, r"clip \(1\) and clip_value \(0.5\) exclude each other; set one of them to 0"),
        ({"schedule": "plateau", "warmup": 1}, "warmup goes with schedule none, cosine or exponential"),
        ({"epochs": 3, "warmup": 3}, r"warmup \(3\) must be shorter than epochs \(3\)"),
        ({"hardware": {"precision": "int8"}}, "'float32', 'float16' or 'bfloat16'"),
        ({"stateful": {}, "teacher_forcing": 0.5}, "goes without teacher_forcing"),
        ({"stateful": {}, "augment": {"jitter": 0.1}}, "goes without augment"),
        ({"stateful": {}, "hardware": {"devices": 2}}, "goes without hardware.devices"),
        ({"augment": {"noise": 0.1}}, r"unknown key \(valid: jitter, scaling, window_slicing, random_crop\)"),
    ],
)
def test_a_wrong_option_is_refused_with_the_valid_ones(options: Mapping[str, Any], message: str) -> None:
    """Before anything is read or trained."""
    with pytest.raises(ValidationError, match=message):
        Training.model_validate(options)
