"""NLinear: one linear map from the window to the next H rows, each feature on its own (Zeng et al., AAAI 2023).

Known-future covariates, which NLinear does not have, shift each of those rows through a linear map of their own. With
the option `cycle`, which every network has, it is close to CycleNet's linear one (Lin et al., NeurIPS 2024).

The baseline to beat, and the file to copy for a network of your own: options in `Config`, arithmetic in `predict`.
Shapes: B rows, L window, F features, H steps a pass, K features known ahead, M modelled features.
"""

from typing import Final

from torch import Tensor, nn

from models.core import Config as CoreConfig
from models.core import Shape, SlidingWindow


class Config(CoreConfig):
    """`individual`: a map of its own for every feature instead of one that all share."""

    individual: bool = False

    def build(self, shape: Shape) -> "NLinear":
        if shape.derived:
            raise ValueError("it reads every feature on its own, and so no derived ones")
        return NLinear(self, shape)


class NLinear(SlidingWindow):
    """Works on differences from the window's last row, so that a shift in level costs nothing."""

    individual: Final[bool]
    quantiles: Final[int]
    horizon: Final[int]

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.individual = config.individual
        self.map = (
            nn.Conv1d(
                in_channels=shape.modelled,
                out_channels=shape.modelled * shape.horizon,
                kernel_size=shape.window,
                groups=shape.modelled,
            )
            if config.individual
            else nn.Linear(shape.window, shape.horizon)
        )
        self.shift = nn.Linear(shape.known, shape.modelled, bias=False) if shape.known > 0 else nn.Identity()
        self.horizon = shape.horizon
        self.quantiles = shape.quantiles
        self.spread = nn.Linear(shape.window, shape.horizon * shape.quantiles) if shape.quantiles else nn.Identity()

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled = self.modelled(inputs)
        last = modelled[:, -1:]
        before = (modelled - last).transpose(1, 2)
        change = self.map(before)
        if self.individual:
            change = change.view(change.size(0), -1, self.horizon)
        rows = change.transpose(1, 2) + last
        if self.has_known:
            rows = rows + self.shift(future)
        if self.has_quantiles:
            above = self.spread(before).view(rows.size(0), rows.size(2), self.quantiles, self.horizon)
            rows = self.with_quantiles(rows, above.permute(0, 3, 2, 1))
        return rows, inputs.new_empty(inputs.size(0), 0, inputs.size(1))
