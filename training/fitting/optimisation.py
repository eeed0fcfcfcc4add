"""By which steps the loss is minimised: optimisers, and the schedules of their learning rate."""

import math
from collections.abc import Callable, Iterable

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from training.recipe import Training


def optimiser(options: Training, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimiser of the recipe."""
    rate, decay = options.learning_rate, options.weight_decay
    # In one call, where Lightning lets gradients be clipped before it.
    fused = options.hardware.precision == "float32"
    match options.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, rate, weight_decay=decay, momentum=options.momentum)
        case "sgd":
            return torch.optim.SGD(parameters, rate, weight_decay=decay, momentum=options.momentum, fused=fused)


def schedule(options: Training, optimizer: Optimizer, *, steps: int) -> LRSchedulerConfigType | None:
    """How the learning rate goes on in epochs of so many steps, as Lightning wants to be told; None: not at all."""
    if options.schedule == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=options.decay, patience=options.plateau_patience - 1)
        return {"scheduler": plateau, "monitor": "validation"}
    if options.schedule == "one_cycle":
        # Momentum stays what the recipe says.
        cycle = lr_scheduler.OneCycleLR(
            optimizer, options.learning_rate, total_steps=options.epochs * steps, cycle_momentum=False
        )
        return {"scheduler": cycle, "interval": "step"}
    if options.warmup:
        rises = lr_scheduler.LambdaLR(optimizer, lambda step: _warm(options, step, steps))
        return {"scheduler": rises, "interval": "step"}
    if options.schedule == "none":
        return None
    return {"scheduler": lr_scheduler.LambdaLR(optimizer, factor(options))}


def factor(options: Training) -> Callable[[float], float]:
    """Whole epochs since the warm-up -> by what the learning rate is multiplied."""
    left = options.epochs - options.warmup
    match options.schedule:
        case "cosine":
            return lambda epoch: (1 + math.cos(math.pi * min(epoch / left, 1))) / 2
        case "exponential":
            return lambda epoch: options.decay**epoch
        case _:
            return lambda _: 1.0


def _warm(options: Training, step: int, steps: int) -> float:
    rising = max(round(options.warmup * steps), 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return factor(options)((step - rising) // steps)
