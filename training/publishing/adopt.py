"""A network that somebody has trained elsewhere, published as an artifact: docs/own-network.md shows how.

Shapes: B rows, L window, F features, E derived features, H steps a pass, K known-future covariates, M modelled
features.
"""

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from models import networks
from models.core import Config, Core, Shape, SlidingWindow
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from models.store import Store
from training.data.dataset import Dataset, prepare
from training.errors import RecipeError
from training.fitting.fit import Fitted, shape_of, surroundings_of
from training.publishing.publish import Published, publish
from training.recipe import Recipe
from training.scoring.evaluate import export


class _Options(Config):
    """Of a network that is there already."""

    _module: nn.Module = PrivateAttr()

    def build(self, shape: Shape) -> "Foreign":
        core = (ForeignWithFuture if shape.known else Foreign)(self._module, shape)
        _try(core, shape, type(self._module).__name__)
        return core


class Foreign(SlidingWindow):
    """Any module as a core: its window moves on by what it forecasts."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        super().__init__(_Options(), shape)
        self.module = module

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled: Tensor = self.module(inputs)
        return modelled, inputs.new_empty(inputs.size(0), 0, inputs.size(1))


class ForeignWithFuture(Foreign):
    """The same where there are known-future covariates."""

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled: Tensor = self.module(inputs, future)
        return modelled, inputs.new_empty(inputs.size(0), 0, inputs.size(1))


def adopt(module: nn.Module, recipe: Recipe, store: Store) -> Published:
    """Score and publish a trained module under the recipe's name.

    The module takes scaled windows [B, L, F + E], and where the recipe has features known ahead their scaled future
    [B, H, K], and gives the scaled next rows of its M targets and past covariates [B, H, M]; for intervals of
    the method `cqr` the T targets at each of Q quantiles behind them [B, H, M + Q * T]. Gaps are filled before it, and
    marks and the calendar are among its features. The recipe says what the data are, how they are scaled and split; its
    [network] and [training] say nothing. RecipeError where the module does not fit it, or cannot be scripted.
    """
    dataset = prepare(recipe)
    core = _core(module.eval(), recipe, dataset)
    network = Forecaster(core, Scaler(dataset.features, core.shape.quantiles)).eval()
    fitted = Fitted(network, epochs=[], seconds=0.0, architecture=type(module).__name__, config={})
    try:
        export(recipe, network, dataset.windows["test"])
    except RuntimeError as error:
        raise RecipeError(f"{type(module).__name__} cannot be written as TorchScript: {error}") from error
    return publish(recipe, dataset, fitted, store)


def _core(module: nn.Module, recipe: Recipe, dataset: Dataset) -> Core:
    options = _Options()
    options._module = module  # noqa: SLF001  its own: a module is nothing to validate
    return networks.surrounded(options, shape_of(recipe, dataset), surroundings_of(recipe))


def _try(core: Foreign, shape: Shape, name: str) -> None:
    """RecipeError where the module does not take what the recipe gives, or gives something else."""
    window, future = torch.zeros(2, shape.window, shape.inputs), torch.zeros(2, shape.horizon, shape.known)
    try:
        with torch.inference_mode():
            found, _ = core.predict(window, future)
    except (TypeError, RuntimeError) as error:
        given = f"window {list(window.shape)}" + (f" and future {list(future.shape)}" if shape.known else "")
        raise RecipeError(f"{name} cannot be called with {given}: {error}") from error
    wanted = (2, shape.horizon, shape.outputs)
    if found.shape != wanted:
        quantiles = f", then {shape.quantiles} quantiles of each target" if shape.quantiles else ""
        raise RecipeError(
            f"{name} gives {list(found.shape)} for two windows of {shape.window} rows;"
            f" the recipe needs {list(wanted)}: horizon by targets and past covariates{quantiles}"
        )
