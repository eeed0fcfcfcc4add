"""The moving average of the weights, which forecasts better than where the last steps happened to lead.

Lightning's own callback gives the average back before the epoch's best weights are kept, so this one is ours.
"""

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average(Callback):
    """In the network's place from the beginning of every validation to its end; it has to be the last callback.

    Exponential, as Polyak and Juditsky's average (1992) with a memory: of the old average `keep` remains at each step,
    less in the first ones, so that the random weights of the beginning are soon forgotten. Buffers, such as the
    statistics of batch normalisation, are those of the network.
    """

    def __init__(self, network: nn.Module, keep: float) -> None:
        self.network = network
        self.keep = keep
        self.steps = 0
        self.weights: list[Tensor] = []

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.weights = [weight.detach().clone() for weight in self.network.parameters()]

    def on_train_batch_end(self, *_: object) -> None:
        keep = min(self.keep, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        update = get_ema_multi_avg_fn(keep)
        update(self.weights, [weight.detach() for weight in self.network.parameters()], self.steps)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._swap()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self.weights, self.network.parameters(), strict=True):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)
