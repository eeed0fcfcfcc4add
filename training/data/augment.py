"""Random changes to training windows, after Um et al. (ICMI 2017) and Le Guennec et al. (AALTD 2016).

Shapes: B windows of a batch, L window, N steps, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.spec import Feature
from training.recipe import Recipe


class Augmentation:
    """Changes rows [B, L + N, F] in raw units where they lie; the same seed gives the same changes on one device.

    What came, the last N rows, is touched by `scaling` alone, which changes both sides in the same way.
    """

    def __init__(self, recipe: Recipe, features: Sequence[Feature], *, seed: int, device: torch.device) -> None:
        self.options = recipe.training.augment
        self.length = recipe.window.length
        self.most = recipe.window.length - recipe.window.fewest
        """Rows that a window may lack."""
        self.shorten = recipe.training.shorten if self.most else 0.0
        self.generator = torch.Generator(device).manual_seed(seed)
        self.mean = torch.tensor([feature.statistics.mean for feature in features], device=device)
        std = [0.0 if feature.is_known else feature.statistics.std for feature in features]
        self.std = torch.tensor(std, device=device)
        self.is_known = torch.tensor([feature.is_known for feature in features], device=device)
        self.is_static = torch.tensor([feature.role == "static" for feature in features], device=device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [B, L + N, F] -> the same with the changes that the recipe asks for."""
        options = self.options
        window, ahead = rows[:, : self.length], rows[:, self.length :]
        if options.window_slicing < 1:
            window = torch.where(self.is_known, window, self.sliced(window))
        if options.random_crop:
            window = torch.where(self.is_known, window, self.cropped(window))
        rows = torch.cat([window, ahead], 1)
        if options.scaling:
            factor = 1 + options.scaling * self._normal(rows.size(0), 1, 1)
            rows = torch.where(self.is_known, rows, self.mean + (rows - self.mean) * factor)
        if options.jitter:
            rows[:, : self.length] += options.jitter * self.std * self._normal(*window.shape)
        if self.shorten:
            rows[:, : self.length] = self.shortened(rows[:, : self.length])
        return rows

    def sliced(self, window: Tensor) -> Tensor:
        """The newest rows, from a random one of the older ones on, stretched to the whole length.

        A slice ends where the window does, since the truth goes on from there.
        """
        last = self.length - 1
        begin = self._uniform(window.size(0), 1) * (1 - self.options.window_slicing) * last
        place = begin + torch.arange(self.length, device=window.device) * (last - begin) / max(last, 1)
        below = place.long().clamp(max=max(last - 1, 0))
        above = (below + 1).clamp(max=last)
        return torch.lerp(_pick(window, below), _pick(window, above), (place - below).unsqueeze(2))

    def cropped(self, window: Tensor) -> Tensor:
        """A random number of the oldest rows gone, the oldest one that is kept in their places."""
        most = int(self.options.random_crop * self.length)
        first = (self._uniform(window.size(0), 1) * (most + 1)).long()
        return _pick(window, torch.arange(self.length, device=window.device).maximum(first))

    def shortened(self, window: Tensor) -> Tensor:
        """Of a share of the windows a random number of the oldest rows absent, of all but their static features."""
        count = (self._uniform(window.size(0), 1) * self.most).long() + 1
        count = torch.where(self._uniform(window.size(0), 1) < self.shorten, count, 0)
        absent = torch.arange(self.length, device=window.device) < count
        return window.masked_fill(absent.unsqueeze(2) & ~self.is_static, float("nan"))

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.generator.device)

    def _uniform(self, *size: int) -> Tensor:
        return torch.rand(*size, generator=self.generator, device=self.generator.device)


def augmentation(
    recipe: Recipe, features: Sequence[Feature], *, seed: int, device: torch.device
) -> Augmentation | None:
    """What the recipe asks for; None where training windows stay as they are."""
    found = Augmentation(recipe, features, seed=seed, device=device)
    return found if recipe.training.augment.active or found.shorten else None


def _pick(window: Tensor, rows: Tensor) -> Tensor:
    """Window [B, L, F], the numbers of rows [B, n] -> those rows [B, n, F]."""
    return window.gather(1, rows.unsqueeze(2).expand(-1, -1, window.size(2)))
