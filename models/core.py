"""What a network is: the two kinds of recursion, each a base class that a file in `models/networks` fills in.

Shapes: B rows, L window, F features, H steps a pass, K known-future covariates, M = F - K modelled features
(targets and past covariates), R attention rows a pass. Everything here is in scaled units.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from models.spec import Recursion, Role


@dataclass(frozen=True, slots=True)
class Shape:
    """What the data asks of a network. `roles` has one entry a feature, in column order."""

    window: int
    horizon: int
    roles: tuple[Role, ...]

    @property
    def features(self) -> int:
        """F"""
        return len(self.roles)

    @property
    def known(self) -> int:
        """K"""
        return self.roles.count("future")

    @property
    def modelled(self) -> int:
        """M"""
        return self.features - self.known


class Config(BaseModel):
    """The options of a network; its subclass in the network's file is the only home of their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def build(self, shape: Shape) -> "Core":
        """A fresh network of these options; ValueError where they do not fit the shape."""


class Core(nn.Module):
    """A network in scaled units, stepping by `encode` and `decode`; its state's tensors are all batch-first."""

    recursion: ClassVar[Recursion]
    attention_rows: int = 0
    """R; 0 for a network without attention."""
    has_known: Final[bool]
    column_order: Tensor
    modelled_columns: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.has_known = shape.known > 0
        modelled = [index for index, role in enumerate(shape.roles) if role != "future"]
        known = [index for index, role in enumerate(shape.roles) if role == "future"]
        placed = modelled + known
        order = [placed.index(column) for column in range(shape.features)]
        self.register_buffer("modelled_columns", torch.tensor(modelled), persistent=False)
        self.register_buffer("column_order", torch.tensor(order), persistent=False)

    @abstractmethod
    def encode(self, window: Tensor) -> list[Tensor]:
        """Window [B, L, F] -> state."""

    @abstractmethod
    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """State and future [B, H, K] -> modelled [B, H, M], attention [B, R, L], next state."""

    def modelled(self, rows: Tensor) -> Tensor:
        """Rows [B, n, F] -> their modelled features [B, n, M]."""
        return rows.index_select(2, self.modelled_columns) if self.has_known else rows

    def rows(self, modelled: Tensor, future: Tensor) -> Tensor:
        """Forecast [B, H, M] and known future [B, H, K] -> complete rows [B, H, F] to feed back."""
        if self.has_known:
            return torch.cat([modelled, future], 2).index_select(2, self.column_order)
        return modelled


class SlidingWindow(Core):
    """The window moves on by the H rows just forecast and is read again: a subclass gives `predict` alone."""

    recursion: ClassVar[Recursion] = "sliding"

    @abstractmethod
    def predict(self, window: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """Window [B, L, F] and future [B, H, K] -> modelled [B, H, M], attention [B, R, L]."""

    def encode(self, window: Tensor) -> list[Tensor]:
        return [window]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        window = state[0]
        modelled, attention = self.predict(window, future)
        length = window.size(1)
        window = torch.cat([window, self.rows(modelled, future)], 1)[:, -length:]
        return modelled, attention, [window]


class CarriedState(Core):
    """A recurrent state is kept between passes, so that a step costs one cell instead of a window.

    The state ends with `pending`, the last H rows that the cells have not read yet: a pass reads them, then
    forecasts the next H. So no cell is spent on rows that nobody asks to go on from.
    """

    recursion: ClassVar[Recursion] = "carried"
    window: Final[int]
    horizon: Final[int]

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        if shape.window <= shape.horizon:
            raise ValueError(
                f"window ({shape.window}) must be longer than horizon ({shape.horizon}) where state is carried"
            )
        self.window = shape.window
        self.horizon = shape.horizon

    def split(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Window [B, L, F] -> the rows that the cells read at once [B, L - H, F], and the pending ones [B, H, F]."""
        return window[:, : -self.horizon], window[:, -self.horizon :]
