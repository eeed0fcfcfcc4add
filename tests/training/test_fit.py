"""The loop: the same run twice, the best weights, clips, teacher forcing, listeners, a loss that is no number."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from models import networks
from tests.training import world
from training.data.dataset import Dataset, prepare
from training.data.windows import Batches
from training.errors import DivergedError, RecipeError
from training.fitting.fit import Fitted, build, fit
from training.fitting.objective import Objective
from training.fitting.progress import Epoch
from training.recipe import Recipe


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
        (batch,) = Batches(dataset.windows["validation"], 1000)
        return float(objective.errors(batch) @ objective.target_weights)


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


def test_clipping_by_value_bounds_every_component(file: Path) -> None:
    """One step of plain descent moves no weight by more than rate times bound, and many by just that."""
    options = {"epochs": 1, "batch": 1000, "optimizer": "sgd", "learning_rate": 1.0, "clip": 0.0}

    start, free, clipped = (
        weights(run(file, training={**options, **change})[2])
        for change in ({"learning_rate": 1e-30}, {}, {"clip_value": 1e-3})
    )

    moved = (clipped - start).abs()
    assert (free - start).abs().max() > 0.01
    assert moved.max().item() == pytest.approx(1e-3, rel=0.01)
    assert (moved > 0.99e-3).sum() > 10


def test_the_average_of_the_weights_is_validated_and_kept(file: Path) -> None:
    """After one epoch it is the average of the weights after each step, worked out again from those."""
    seen: list[Tensor] = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            seen.append(torch.nn.utils.parameters_to_vector(pl_module.parameters()).detach())

        on_fit_start = on_train_batch_end

    recipe = world.recipe(file, training={"epochs": 1, "ema": 0.25})
    dataset = prepare(recipe)

    fitted = fit(recipe, dataset, tell=lambda _: None, callbacks=[Steps()])

    average = seen[0]
    for keep, step in zip([1 / 10, 2 / 11, 0.25, 0.25], seen[1:], strict=True):
        average = keep * average + (1 - keep) * step
    assert torch.allclose(weights(fitted), average, atol=1e-6)
    assert validation_error(recipe, dataset, fitted) == pytest.approx(fitted.epochs[0].validation, rel=1e-5)


def test_the_average_does_not_disturb_the_steps(file: Path) -> None:
    """With or without it, training goes the same way; only what is validated differs."""
    (*_, plain), (*_, averaged) = (run(file, training={"epochs": 3, "ema": ema}) for ema in (0.0, 0.9))

    assert [epoch.loss for epoch in plain.epochs] == [epoch.loss for epoch in averaged.epochs]
    assert plain.epochs[0].validation != averaged.epochs[0].validation


def test_teacher_forcing_falls_to_nothing(file: Path) -> None:
    """The network is told to go on from what came with a probability that falls by the epoch, in training alone."""
    asked: list[tuple[bool, float]] = []
    recipe = world.recipe(file, training={"epochs": 3, "batch": 1000, "teacher_forcing": 0.8})

    class Spy(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            unroll = pl_module.network.unroll

            def spying(*given: object) -> tuple[Tensor, Tensor]:
                asked.append((pl_module.training, given[5]))
                assert (given[4] is not None) == (bool(given[5]))
                return unroll(*given)

            pl_module.network.unroll = spying

    fit(recipe, prepare(recipe), tell=lambda _: None, callbacks=[Spy()])

    assert asked == [
        (True, 0.8), (False, 0.0), (True, pytest.approx(0.4)), (False, 0.0), (True, 0.0), (False, 0.0),
    ]  # fmt: skip


def test_teacher_forcing_shows_what_came(file: Path) -> None:
    """Forced in every pass, the loss is that of forecasts one step ahead, which is not that of a forecast fed back."""
    recipe = world.recipe(file, training={"teacher_forcing": 1.0})
    dataset = prepare(recipe)
    objective = Objective(build(recipe, dataset), recipe).eval()
    batch = dataset.windows["train"].gather(torch.arange(8))

    with torch.inference_mode():
        forced, free = objective.errors(batch, 1.0), objective.errors(batch)
        window, ahead = batch.rows.split([12, 3], 1)
        state = objective.network.encode(window, batch.times)
        steps = []
        for step in range(3):
            modelled, _, state = objective.network.core.decode(state, ahead[:, :1, :0])
            state = objective.network.core.correct(
                state, objective.network.scaler.scale_rows(ahead[:, step : step + 1])
            )
            steps.append(modelled)
        wanted = objective.network.scaler.scale_rows(ahead)
        slow = objective.cost(torch.cat(steps, 1), wanted).mean((0, 1))

    assert torch.allclose(forced, slow, atol=1e-6)
    assert not torch.allclose(forced, free)


def test_teacher_forcing_needs_a_second_pass(file: Path) -> None:
    """A single pass has nothing to go on from."""
    with pytest.raises(ValueError, match=r"teacher_forcing needs several passes: window.steps \(3\) must be more than"):
        world.recipe(file, window={"horizon": 3}, training={"teacher_forcing": 0.5})


def test_the_network_is_told_when_a_window_was(file: Path) -> None:
    """A wave of the calendar that the window cannot show is learnt by a cycle of the clock."""
    frame = world.rows(300)
    phase = pl.int_range(pl.len()) % 7 == 0
    world.write(file, frame.with_columns(load=pl.when(phase).then(20.0).otherwise(0.0) + 0.01 * frame["load"]))
    options = {
        "window": {"length": 2, "season": 1},
        "data": {"features": [{"name": "load", "role": "target"}]},
        "training": {"epochs": 10, "learning_rate": 0.1, "schedule": "none"},
    }

    *_, blind = run(file, network={"architecture": "linear", "config": {}}, **options)
    *_, knowing = run(file, network={"architecture": "linear", "config": {"cycle": 7}}, **options)

    best = [min(epoch.validation for epoch in fitted.epochs) for fitted in (blind, knowing)]
    assert best[1] < best[0] / 10


def test_augmentation_reaches_the_training(file: Path) -> None:
    """The windows trained on are changed, those of the validation are not, and the same seed changes them alike."""
    plain, one, same = (run(file, training={"augment": augment}) for augment in ({}, {"jitter": 1.0}, {"jitter": 1.0}))

    losses = [found[2].epochs[-1].loss for found in (plain, one, same)]
    assert losses[1] > losses[0]
    assert losses[1] == losses[2]
    assert validation_error(*one) == pytest.approx(min(epoch.validation for epoch in one[2].epochs), rel=1e-5)


def test_what_a_listener_raises_comes_out(file: Path) -> None:
    """A search that gives up on a run ends it by an exception of its own."""

    class GiveUpError(Exception): ...

    def give_up(epoch: Epoch) -> None:
        raise GiveUpError(epoch.number)

    recipe = world.recipe(file)

    with pytest.raises(GiveUpError, match="1"):
        fit(recipe, prepare(recipe), tell=give_up)


def test_callbacks_are_called_on_the_way(file: Path) -> None:
    """Whatever Lightning calls them for; one that asks for it ends the training."""

    class StopAtOnce(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = True

    recipe = world.recipe(file, training={"epochs": 9})

    assert len(fit(recipe, prepare(recipe), tell=lambda _: None, callbacks=[StopAtOnce()]).epochs) == 1


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "quantile"])
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
    recipe = world.recipe(file, window={"horizon": 12, "steps": 12})

    with pytest.raises(RecipeError, match=r"network.architecture 'lstm': window \(12\) must be longer than horizon"):
        build(recipe, prepare(recipe))


@pytest.mark.parametrize("architecture", networks.names())
def test_every_architecture_can_be_trained(file: Path, architecture: str) -> None:
    """A new file in models/networks is trained by its defaults without another line."""
    recipe = world.recipe(file, network={"architecture": architecture, "config": {}}, training={"epochs": 1})

    fitted = fit(recipe, prepare(recipe), tell=lambda _: None)

    assert math.isfinite(fitted.epochs[0].validation)
    assert not fitted.network.training
