"""Finding the weights: a network, its objective and Lightning's loop around them."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn

from models import networks
from models.core import Shape, Surroundings
from models.ensemble import Ensemble
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from training.data.augment import augmentation
from training.data.dataset import Dataset, assemble
from training.data.windows import Batches, Shard, Windows
from training.errors import DataError, RecipeError
from training.fitting.allocator import keep_pages
from training.fitting.average import Average
from training.fitting.logs import Logs
from training.fitting.objective import Objective
from training.fitting.progress import Bar, Epoch, History
from training.fitting.stream import StreamObjective, Streams
from training.recipe import Recipe

_PRECISIONS: dict[str, Literal["32-true", "16-mixed", "bf16-mixed"]] = {
    "float32": "32-true",
    "float16": "16-mixed",
    "bfloat16": "bf16-mixed",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """The network with its best weights, and how it came to them."""

    network: Forecaster
    epochs: list[Epoch]
    seconds: float
    architecture: str
    config: dict[str, Any]
    """As the spec tells of them."""
    rank: int = 0
    """Of this process among those that trained together; all have the same network, 0 is the one to publish it."""


def build(recipe: Recipe, dataset: Dataset) -> Forecaster:
    """A fresh network for the recipe; RecipeError where its options do not fit the window."""
    network = recipe.network
    try:
        return _build(recipe, dataset, network.architecture, network.config.model_dump())
    except ValueError as error:
        raise RecipeError(f"network.architecture {network.architecture!r}: {error}") from error


def shape_of(recipe: Recipe, dataset: Dataset) -> Shape:
    """What the recipe's data ask of a network."""
    return networks.shape_of(
        dataset.features,
        window=recipe.window.length,
        horizon=recipe.window.horizon,
        derived=recipe.data.derived,
        interval=recipe.data.interval,
        quantiles=len(recipe.quantiles),
    )


def surroundings_of(recipe: Recipe) -> Surroundings:
    """What the recipe asks the graph to do for the network."""
    data = recipe.data
    return Surroundings(
        gaps=data.gaps.in_graph,
        short=recipe.window.shortest is not None,
        calendar=data.calendar,
        timezone=data.timezone,
        holidays=data.holidays,
    )


def fit(
    recipe: Recipe,
    dataset: Dataset,
    *,
    tell: Callable[[Epoch], None],
    bar: bool = False,
    logs: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Train until the validation error stops falling; of an ensemble, its members one after the other.

    `tell` hears of every epoch, `bar` draws a progress bar, `logs` is a folder for CSV and TensorBoard, and `callbacks`
    are Lightning's, for whatever else is to happen on the way. What any of them raises ends the training and comes out
    of here. Where several processes train, only the one of rank 0 tells, draws and logs.

    The same recipe and files give the same weights on the same CPU with as many threads; on a GPU, the last digits
    vary from run to run.
    """
    keep_pages()
    if not recipe.ensemble:
        return _fit(recipe, dataset, tell, bar=bar, logs=logs, callbacks=callbacks)
    members = recipe.members()
    for index, member in enumerate(members):
        if (first := members.index(member)) < index:
            raise RecipeError(f"ensemble[{index}] is the same as ensemble[{first}]; give it a training.seed of its own")
    found: list[Fitted] = []
    for number, member in enumerate(members, 1):
        own = assemble(member, dataset.series, dataset.parts)
        say = partial(_tell_of, number, tell)
        found.append(_fit(member, own, say, bar=bar, logs=logs, callbacks=callbacks))
    try:
        core = Ensemble([fitted.network.core for fitted in found], recipe.window.length)
    except ValueError as error:
        raise RecipeError(f"ensemble: {error}") from error
    epochs = [replace(epoch, member=number) for number, fitted in enumerate(found, 1) for epoch in fitted.epochs]
    network = Forecaster(core, Scaler(dataset.features, core.shape.quantiles)).eval()
    told = [
        {"window": fitted.network.core.shape.window, "architecture": fitted.architecture, "config": fitted.config}
        for fitted in found
    ]
    return Fitted(network, epochs, sum(fitted.seconds for fitted in found), "ensemble", {"members": told})


def _tell_of(member: int, tell: Callable[[Epoch], None], epoch: Epoch) -> None:
    tell(replace(epoch, member=member))


def _fit(
    recipe: Recipe,
    dataset: Dataset,
    tell: Callable[[Epoch], None],
    *,
    bar: bool,
    logs: Path | None,
    callbacks: Sequence[Callback],
) -> Fitted:
    """Train one network."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = recipe.training
    torch.manual_seed(options.seed)
    network = build(recipe, dataset)
    history = History(network, tell)
    # The history tells of a loss that is not a number; stopping would pass it over in silence.
    used: list[Callback] = [history, EarlyStopping("validation", patience=options.patience, check_finite=False)]
    used += [Bar()] if bar else []
    used += [Logs(logs, recipe)] if logs else []
    used += callbacks
    used += [Average(network, options.ema)] if options.ema else []
    trainer = _trainer(recipe, used)
    shard = Shard(trainer.global_rank, trainer.world_size)
    if shard.rank:
        torch.manual_seed(options.seed + shard.rank)
    objective, train = _training(recipe, dataset, network, shard, trainer.strategy.root_device)
    validation = _windows(dataset, "validation", shard, options.batch).to(trainer.strategy.root_device)
    began = time.perf_counter()
    with warnings.catch_warnings():
        # Lightning 2.6 on torch 2.13: nothing that a caller could write differently.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        try:
            trainer.fit(objective, train, Batches(validation, options.batch, shard=shard))
        except SystemExit as ending:
            # Lightning's answer to Ctrl-C.
            raise KeyboardInterrupt from ending
    history.restore()
    return Fitted(
        network.cpu().eval(),
        history.epochs,
        time.perf_counter() - began,
        recipe.network.architecture,
        recipe.network.config.model_dump(mode="json"),
        shard.rank,
    )


def _training(
    recipe: Recipe, dataset: Dataset, network: Forecaster, shard: Shard, device: torch.device
) -> tuple[Objective, Batches | Streams]:
    """What is minimised, and over what."""
    options = recipe.training
    if options.stateful:
        _refuse_streams(recipe, dataset, network)
        return StreamObjective(network, recipe), Streams(recipe, dataset, options.stateful, device)
    augment = augmentation(recipe, dataset.features, seed=options.seed + shard.rank, device=device)
    windows = _windows(dataset, "train", shard, options.batch).to(device)
    return Objective(network, recipe), Batches(windows, options.batch, seed=options.seed, shard=shard, augment=augment)


def _windows(dataset: Dataset, part: str, shard: Shard, batch: int) -> Windows:
    """The part's, of which every batch has one for each process."""
    windows = dataset.windows[part]
    if len(windows) < shard.of:
        raise DataError(f"{part} has {len(windows)} windows, too few for {shard.of} devices")
    if batch < shard.of:
        raise RecipeError(f"training.batch ({batch}) must not be less than the devices ({shard.of})")
    return windows


def _refuse_streams(recipe: Recipe, dataset: Dataset, network: Forecaster) -> None:
    """RecipeError for a network whose state cannot go on through a series."""
    if not network.core.streams:
        able = [name for name in networks.names() if _streams(recipe, dataset, name)]
        raise RecipeError(
            f"training.stateful: {recipe.network.architecture!r} with these options carries no state through a series;"
            f" those that can by their defaults: {', '.join(able) or 'none'}"
        )
    if recipe.network.config.normalisation != "none":
        raise RecipeError(
            "training.stateful: a series has no window to normalise; set network.config.normalisation to 'none'"
        )
    if any(isinstance(part, nn.BatchNorm1d) for part in network.modules()):
        raise RecipeError(
            "training.stateful: lanes end one by one, and batch normalisation needs more than the last;"
            " set network.config.norm to 'none' or 'layer'"
        )


def _streams(recipe: Recipe, dataset: Dataset, architecture: str) -> bool:
    """Whether a network of that kind, with its defaults, suits the recipe and carries a state through a series."""
    try:
        return _build(recipe, dataset, architecture, {}).core.streams
    except ValueError:
        return False


def _build(recipe: Recipe, dataset: Dataset, architecture: str, config: Mapping[str, Any]) -> Forecaster:
    return networks.build(architecture, config, dataset.features, shape_of(recipe, dataset), surroundings_of(recipe))


def _trainer(recipe: Recipe, callbacks: list[Callback]) -> lightning.Trainer:
    options, hardware = recipe.training, recipe.training.hardware
    if hardware.precision == "float16" and (hardware.accelerator == "cpu" or not torch.cuda.is_available()):
        raise RecipeError("training.hardware.precision: float16 needs a GPU; a CPU has bfloat16 and float32")
    try:
        return lightning.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices or "auto",
            num_nodes=hardware.nodes,
            strategy="ddp" if hardware.parallel else "auto",
            precision=_PRECISIONS[hardware.precision],
            max_epochs=options.epochs,
            gradient_clip_val=options.clip or options.clip_value or None,
            gradient_clip_algorithm="value" if options.clip_value else "norm",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
    except MisconfigurationException as error:
        raise RecipeError(f"training.hardware: {error}") from error
