"""What a forecast costs, element by element."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Training

Loss = Callable[[Tensor, Tensor], Tensor]
"""What was forecast and what came, of one shape -> the cost of each element."""


def loss(options: Training) -> Loss:
    """The loss of the recipe with its own options."""
    losses: dict[str, Loss] = {
        "mse": partial(functional.mse_loss, reduction="none"),
        "mae": partial(functional.l1_loss, reduction="none"),
        "huber": partial(functional.huber_loss, reduction="none", delta=options.huber_delta),
        "quantile": partial(pinball, quantile=options.quantile),
    }
    return losses[options.loss]


def pinball(found: Tensor, wanted: Tensor, quantile: float) -> Tensor:
    """Least where a share `quantile` of what comes lies below the forecast (Koenker and Bassett, 1978)."""
    missing = wanted - found
    return torch.maximum(quantile * missing, (quantile - 1) * missing)
