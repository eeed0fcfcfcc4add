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
from models.signature import Signer
from models.store import Store
from training.data.dataset import Dataset, prepare
from training.errors import RecipeError
from training.fitting.fit import Fitted, shape_of, surroundings_of
from training.publishing.declared import Declared
from training.publishing.publish import Published, publish
from training.recipe import Recipe
from training.scoring.evaluate import export


class _Options(Config):
    """Of a network that is there already."""

    _module: nn.Module = PrivateAttr()
    _declared: Declared | None = PrivateAttr()

    def build(self, shape: Shape) -> "Foreign":
        if self._declared is not None:
            self._declared.check(shape)
        core = (ForeignWithFuture if shape.known else Foreign)(self._module, shape)
        _try(core, shape, _name_of(self._module))
        return core


class Foreign(SlidingWindow):
    """Any module as a core: its window moves on by what it forecasts."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        super().__init__(_Options(), shape)
        self.module = module
        self.ahead, self.width = shape.horizon, shape.outputs

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled: Tensor = self.module(inputs)
        return self.rows_of(modelled), inputs.new_empty(inputs.size(0), 0, inputs.size(1))

    def rows_of(self, modelled: Tensor) -> Tensor:
        """[B, H, M], also of [B, H * M] where H or M is 1 and no order is in doubt."""
        if modelled.dim() == 2 and (self.ahead == 1 or self.width == 1):
            return modelled.reshape(-1, self.ahead, self.width)
        return modelled


class ForeignWithFuture(Foreign):
    """The same where there are known-future covariates."""

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled: Tensor = self.module(inputs, future)
        return self.rows_of(modelled), inputs.new_empty(inputs.size(0), 0, inputs.size(1))


def adopt(
    module: nn.Module,
    recipe: Recipe,
    store: Store,
    *,
    declared: Declared | None = None,
    signer: Signer | None = None,
) -> Published:
    """Score and publish a trained module under the recipe's name.

    The module takes scaled windows [B, L, F + E], and where the recipe has features known ahead their scaled future
    [B, H, K], and gives the scaled next rows of its M targets and past covariates [B, H, M]; for intervals of
    the method `cqr` the T targets at each of Q quantiles behind them [B, H, M + Q * T]. Where there is one row, or one
    output, it may leave that dimension out. Gaps are filled before it, and marks and the calendar are among its
    features. The recipe says what the data are, how they are scaled and split; its [network] and [training] say
    nothing. RecipeError where the module does not fit it, or what is `declared` of it, or cannot be scripted.
    """
    dataset = prepare(recipe)
    name = _name_of(module)
    core = _core(module.eval(), declared, recipe, dataset)
    network = Forecaster(core, Scaler(dataset.features, core.shape.quantiles)).eval()
    fitted = Fitted(network, epochs=[], seconds=0.0, architecture=name, config={})
    try:
        export(recipe, network, dataset.windows["test"])
    except RuntimeError as error:
        raise RecipeError(f"{name} cannot be written as TorchScript: {error}") from error
    return publish(recipe, dataset, fitted, store, signer)


def _name_of(module: nn.Module) -> str:
    """What its writer called it, also where TorchScript has wrapped it."""
    return str(getattr(module, "original_name", type(module).__name__))


def _core(module: nn.Module, declared: Declared | None, recipe: Recipe, dataset: Dataset) -> Core:
    options = _Options()
    options._module, options._declared = module, declared  # noqa: SLF001  its own: they are nothing to validate
    return networks.surrounded(options, shape_of(recipe, dataset), surroundings_of(recipe))


def _try(core: Foreign, shape: Shape, name: str) -> None:
    """RecipeError where the module does not take what the recipe gives, or gives something else."""
    for parameter, tensor in core.module.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecipeError(f"{name}: {parameter} is of {kind}; float32 is needed: write module.float()")
    window, future = torch.zeros(2, shape.window, shape.inputs), torch.zeros(2, shape.horizon, shape.known)
    given = (window, future) if shape.known else (window,)
    try:
        with torch.inference_mode():
            raw = core.module(*given)
    except (TypeError, RuntimeError) as error:
        shapes = f"window {list(window.shape)}" + (f" and future {list(future.shape)}" if shape.known else "")
        # TorchScript tells first where it was.
        problem = str(error).strip().rpartition("\n")[2].strip()
        raise RecipeError(f"{name} cannot be called with {shapes}: {problem}") from error
    if not isinstance(raw, Tensor):
        raise RecipeError(f"{name} gives no tensor for two windows of {shape.window} rows, but a {type(raw).__name__}")
    found = core.rows_of(raw)
    wanted = (2, shape.horizon, shape.outputs)
    if found.shape != wanted:
        quantiles = f", then {shape.quantiles} quantiles of each target" if shape.quantiles else ""
        raise RecipeError(
            f"{name} gives {list(found.shape)} for two windows of {shape.window} rows;"
            f" the recipe needs {list(wanted)}: horizon by targets and past covariates{quantiles}"
        )
