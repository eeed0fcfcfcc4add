"""Finding the weights: a network, its objective and Lightning's loop around them."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar

from models import networks
from models.forecaster import Forecaster
from training.dataset import Dataset
from training.errors import RecipeError
from training.objective import Objective
from training.progress import Epoch, History
from training.recipe import Recipe
from training.windows import Batches


@dataclass(frozen=True, slots=True)
class Fitted:
    """The network with its best weights, and how it came to them."""

    network: Forecaster
    epochs: list[Epoch]
    seconds: float


def build(recipe: Recipe, dataset: Dataset) -> Forecaster:
    """A fresh network for the recipe; RecipeError where its options do not fit the window."""
    window, network = recipe.window, recipe.network
    try:
        return networks.build(
            network.architecture,
            network.config.model_dump(),
            window=window.length,
            horizon=window.horizon,
            features=dataset.features,
        )
    except ValueError as error:
        raise RecipeError(f"network.architecture {network.architecture!r}: {error}") from error


def fit(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None], bar: bool = False) -> Fitted:
    """Train until the validation error stops falling; `tell` hears of every epoch, `bar` draws a progress bar.

    The same recipe and files give the same weights on the same CPU with as many threads; on a GPU, the last digits
    vary from run to run.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(recipe.training.seed)
    network = build(recipe, dataset)
    history = History(network, tell)
    trainer = _trainer(recipe, history, bar=bar)
    train, validation = (dataset.windows[name].to(trainer.strategy.root_device) for name in ("train", "validation"))
    began = time.perf_counter()
    with warnings.catch_warnings():
        # Lightning 2.6 on torch 2.13: nothing that a caller could write differently.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        trainer.fit(
            Objective(network, recipe),
            Batches(train, recipe.training.batch, seed=recipe.training.seed),
            Batches(validation, recipe.training.batch),
        )
    history.restore()
    return Fitted(network.cpu().eval(), history.epochs, time.perf_counter() - began)


def _trainer(recipe: Recipe, history: History, *, bar: bool) -> lightning.Trainer:
    options = recipe.training
    # The history tells of a loss that is not a number; stopping would pass it over in silence.
    callbacks: list[Callback] = [history, EarlyStopping("validation", patience=options.patience, check_finite=False)]
    if bar:
        callbacks.append(RichProgressBar(refresh_rate=10))
    return lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=options.epochs,
        gradient_clip_val=options.clip or None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        num_sanity_val_steps=0,
    )
