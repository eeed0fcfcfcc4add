"""What a window lacks: missing values are filled, and the network is told which they were.

Shapes: B rows, L window, F features, H steps a pass, X columns that are added.
"""

from typing import Final

import torch
from torch import Tensor

from models.core import Core, Shape
from models.layers.fill import Fill
from models.spec import Gaps
from models.surrounding import Surrounding, beside, widened


def columns_of(shape: Shape, gaps: Gaps | None, *, short: bool) -> int:
    """How many columns the network is told more: a mark a feature, and one of the rows that a short window lacks."""
    return (shape.features if gaps is not None and gaps.mask else 0) + short


def within(shape: Shape, gaps: Gaps | None, *, short: bool) -> Shape:
    """The shape that the core inside sees."""
    return widened(shape, columns_of(shape, gaps, short=short))


class Observed(Surrounding):
    """Fills the window before anything else sees it. Rows ahead are complete, and so are those fed back.

    A row is absent where it and all before it lack every value that is not static: it was never given.
    """

    masks: Final[bool]
    short: Final[bool]
    added: Final[int]
    changing: Tensor

    def __init__(self, inner: Core, shape: Shape, gaps: Gaps | None, *, short: bool) -> None:
        super().__init__(inner, shape)
        self.fill = Fill(gaps.method if gaps is not None else "carry_forward")
        self.masks = gaps is not None and gaps.mask
        self.short = short
        self.added = columns_of(shape, gaps, short=short)
        changing = [column for column in range(shape.features) if column not in shape.static]
        self.register_buffer("changing", torch.tensor(changing), persistent=False)

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        return self.inner.encode(self.observed(window), time)

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.inner.decode(state, self.complete(future))

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        return self.inner.correct(state, self.complete(rows))

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.embed(self.observed(window), time)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.heads(self.observed(window), time)

    def observed(self, window: Tensor) -> Tensor:
        """Window [B, L, F] with NaN -> filled, with its marks behind it, [B, L, F + X]."""
        rows = [self.fill(window)]
        missing = window.isnan()
        if self.masks:
            rows.append(missing.to(window.dtype))
        if self.short:
            lacking = missing.index_select(2, self.changing).all(2, keepdim=True).to(window.dtype)
            rows.append(lacking.cumprod(1))
        return torch.cat(rows, 2)

    def complete(self, rows: Tensor) -> Tensor:
        """Rows that lack nothing, [B, n, any] -> with their marks behind them."""
        return beside(rows, rows.new_zeros(1, rows.size(1), self.added))
