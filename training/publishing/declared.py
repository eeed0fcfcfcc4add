"""What a foreign server was told that a model takes and gives, held against what a recipe has.

Shapes: B rows, L window, F inputs of a network, H steps a pass, K known-future covariates, M outputs of a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.core import Shape
from training.errors import RecipeError

_FLOAT = "float32"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One that is taken or given."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    """Without B; -1 is any."""


@dataclass(frozen=True, slots=True)
class Declared:
    """All of them, and where that stands."""

    where: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def check(self, shape: Shape) -> None:
        """RecipeError naming what does not fit."""
        window, future = (shape.window, shape.inputs), (shape.horizon, shape.known)
        wanted = {"window": window, **({"known future": future} if shape.known else {})}
        self._count("input", self.inputs, len(wanted))
        self._count("output", self.outputs, 1)
        for tensor, (what, dims) in zip(self.inputs, wanted.items(), strict=True):
            self._fits("input", tensor, [dims], f"a {what} of {_shown(dims)}")
        rows = (shape.horizon, shape.outputs)
        flat = [] if 1 not in rows else [(shape.horizon * shape.outputs,)]
        given = f"{_shown(rows)}, horizon by targets and past covariates"
        self._fits("output", self.outputs[0], [rows, *flat], given)

    def _count(self, kind: str, tensors: Sequence[Tensor], wanted: int) -> None:
        if len(tensors) != wanted:
            names = ", ".join(repr(tensor.name) for tensor in tensors) or "none"
            raise RecipeError(f"{self.where}: {len(tensors)} {kind}s ({names}), but the recipe needs {wanted}")

    def _fits(self, kind: str, tensor: Tensor, wanted: Sequence[tuple[int, ...]], what: str) -> None:
        place = f"{self.where}: {kind} {tensor.name!r}"
        if tensor.dtype != _FLOAT:
            raise RecipeError(f"{place} is of {tensor.dtype}; {_FLOAT} is needed")
        if not any(_may_be(tensor.dims, dims) for dims in wanted):
            raise RecipeError(f"{place} has the shape {_shown(tensor.dims)}; the recipe has {what}")


def _may_be(dims: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(dims) == len(wanted) and all(one in (-1, other) for one, other in zip(dims, wanted, strict=True))


def _shown(dims: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ('B', *dims)))}]"
