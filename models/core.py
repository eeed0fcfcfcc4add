"""What a network is: the two kinds of recursion, each a base class that a file in `models/networks` fills in.

Shapes: B rows, L window, F features, E derived features, H steps a pass, K features known ahead, M = F - K modelled
features (targets and past covariates), Q quantiles of each of T targets, O = M + Q * T outputs, R attention rows a
pass, A attention heads. Everything here is in scaled units.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.layers.derive import Derive
from models.layers.instance import InstanceNorm, Normalisation
from models.spec import Calendar, Derived, Gaps, Recursion, Role


@dataclass(frozen=True, slots=True)
class Shape:
    """What the data asks of a network."""

    window: int
    horizon: int
    roles: tuple[Role, ...]
    """One a feature, in column order. A static feature is a known-future covariate that stays as it is:"""
    static: tuple[int, ...] = ()
    """those columns."""
    quantiles: int = 0
    """Q, of every target."""
    interval: int = 3600
    """Seconds between rows."""
    derived: tuple[tuple[int, Derived], ...] = ()
    """Features that the graph computes, each with the column that it is computed from."""

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

    @property
    def targets(self) -> list[int]:
        """Which of the modelled features are targets."""
        modelled = [role for role in self.roles if role != "future"]
        return [index for index, role in enumerate(modelled) if role == "target"]

    @property
    def outputs(self) -> int:
        """O"""
        return self.modelled + self.quantiles * len(self.targets)

    @property
    def inputs(self) -> int:
        """F + E: what a row has when a network reads it."""
        return self.features + len(self.derived)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the graph does for a network: which windows it completes, and what it tells of their time."""

    gaps: Gaps | None = None
    short: bool = False
    """Whether a window may lack its oldest rows."""
    calendar: Calendar | None = None
    timezone: str = "UTC"
    holidays: tuple[int, ...] = ()
    """Days since 1970-01-01."""


class Config(BaseModel):
    """The options of a network; its subclass in the network's file is the only home of their defaults.

    Every network has these: `normalisation` of each window by its own last row, mean, mean and deviation (standard) or
    median and deviation (robust), undone in the forecast; `cycle`, the rows of a learnable seasonal cycle that is
    taken off before the network and put back after it (0: none). A cycle needs to know when the window was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalisation: Normalisation = "none"
    cycle: Annotated[int, Field(ge=0)] = 0

    @abstractmethod
    def build(self, shape: Shape) -> "Core":
        """A fresh network of these options, without the cycle; ValueError where they do not fit the shape."""


class Core(nn.Module):
    """A network in scaled units, stepping by `encode` and `decode`; its state's tensors are all batch-first."""

    recursion: Recursion
    clock: bool = False
    """Whether the forecast depends on the time of the window."""
    streams: bool = False
    """Whether a state may be carried on through a series without end, as stateful training does."""
    attention_rows: int = 0
    """R; 0 for a network without attention."""
    embedding: int = 0
    """The width of `embed`; 0 for a network without one."""
    attention_heads: int = 0
    """A; 0 for a network without several heads."""
    has_known: Final[bool]
    has_quantiles: Final[bool]
    column_order: Tensor
    modelled_columns: Tensor
    output_columns: Tensor
    target_places: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.has_known = shape.known > 0
        self.has_quantiles = shape.quantiles > 0
        modelled = [index for index, role in enumerate(shape.roles) if role != "future"]
        known = [index for index, role in enumerate(shape.roles) if role == "future"]
        placed = modelled + known
        order = [placed.index(column) for column in range(shape.features)]
        self.register_buffer("modelled_columns", torch.tensor(modelled), persistent=False)
        outputs = [*range(len(modelled)), *(shape.targets * shape.quantiles)]
        self.register_buffer("column_order", torch.tensor(order), persistent=False)
        self.register_buffer("output_columns", torch.tensor(outputs), persistent=False)
        self.register_buffer("target_places", torch.tensor(shape.targets), persistent=False)

    @abstractmethod
    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        """Window [B, L, F], time of its last row int64 [B] in epoch seconds -> state."""

    @abstractmethod
    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """State and future [B, H, K] -> outputs [B, H, O], attention [B, R, L], next state.

        The outputs are the M modelled features, then the T targets at the first quantile, at the second, and so on.
        """

    @abstractmethod
    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        """The state as if the pass before had forecast these rows [B, H, F]: what teacher forcing goes on from."""

    @abstractmethod
    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        """Window [B, L, F], time [B] -> what the encoder makes of it, [B, embedding]."""

    @abstractmethod
    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        """Window [B, L, F], time [B] -> what each head attends to in the first pass, [B, A, L].

        Their mean is the attention row of that pass.
        """

    def modelled(self, rows: Tensor) -> Tensor:
        """Rows [B, n, F or more] -> their modelled features [B, n, M]."""
        # Mostly they are all that a row has.
        if rows.size(2) == self.modelled_columns.size(0):
            return rows
        return rows.index_select(2, self.modelled_columns)

    def outputs(self, modelled: Tensor) -> Tensor:
        """Something of each modelled feature [B, n, M] -> the same for every output, [B, n, O]."""
        return modelled.index_select(2, self.output_columns) if self.has_quantiles else modelled

    def with_quantiles(self, modelled: Tensor, above: Tensor) -> Tensor:
        """Modelled [B, n, M] and how far each quantile is above them [B, n, Q, M] -> outputs [B, n, O]."""
        quantiles = (modelled.unsqueeze(2) + above).index_select(3, self.target_places)
        return torch.cat([modelled, quantiles.flatten(2)], 2)

    def rows(self, modelled: Tensor, future: Tensor) -> Tensor:
        """Forecast [B, n, M or O] and known future [B, n, K] -> complete rows [B, n, F] to feed back."""
        if self.has_quantiles:
            modelled = modelled[:, :, : self.modelled_columns.size(0)]
        if self.has_known:
            return torch.cat([modelled, future], 2).index_select(2, self.column_order)
        return modelled


class Network(Core):
    """A core that sees each window normalised by itself and with its derived features.

    What a subclass reads are inputs [B, n, F + E]: the F features in their order, then the E derived ones.
    """

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(shape)
        self.instance = InstanceNorm(config.normalisation)
        self.derive = Derive(shape.derived, shape.features)

    def measure(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Window [B, L, F] -> its shift and scale, each [B, 1, F]; 0 and 1 for known-future covariates."""
        shift, scale = self.instance(self.modelled(window))
        known = shift.new_zeros(shift.size(0), 1, self.column_order.size(0) - shift.size(2))
        return self.rows(shift, known), self.rows(scale, known + 1.0)

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.embedded(self.inputs(window))

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.seen(self.inputs(window))

    def inputs(self, window: Tensor) -> Tensor:
        """Window [B, L, F] -> what the network reads of it, [B, L, F + E]."""
        if self.instance.active:
            shift, scale = self.measure(window)
            window = (window - shift) / scale
        return self.derive.extend(window)

    def embedded(self, inputs: Tensor) -> Tensor:
        """Inputs [B, L, F + E] -> [B, embedding]."""
        return inputs.new_empty(inputs.size(0), 0)

    def seen(self, inputs: Tensor) -> Tensor:
        """Inputs [B, L, F + E] -> weights of each head [B, A, L]."""
        return inputs.new_empty(inputs.size(0), 0, inputs.size(1))


class SlidingWindow(Network):
    """The window moves on by the H rows just forecast and is read again: a subclass gives `predict` alone."""

    recursion = "sliding"

    @abstractmethod
    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, L, F + E] and future [B, H, K] -> outputs [B, H, O], attention [B, R, L]."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        return [window]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        window = state[0]
        if self.instance.active:
            shift, scale = self.measure(window)
            outputs, attention = self.predict(self.derive.extend((window - shift) / scale), future)
            outputs = outputs * self.outputs(self.modelled(scale)) + self.outputs(self.modelled(shift))
        else:
            outputs, attention = self.predict(self.derive.extend(window), future)
        return outputs, attention, [_newest(window, self.rows(outputs, future), window.size(1))]

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        window = state[0]
        return [_newest(window[:, : -rows.size(1)], rows, window.size(1))]


class CarriedState(Network):
    """A recurrent state is kept between passes, so that a step costs one cell instead of a window.

    The network's own state is followed by `held`: the last H rows, which the cells have not read yet and which the
    next pass reads first, behind as many as their derived features reach back to; and where windows are normalised by
    shift and scale, for they hold for the whole forecast. So no cell is spent on rows that nobody goes on from.
    """

    recursion = "carried"
    window: Final[int]
    horizon: Final[int]
    held: Final[int]
    extra: Final[int]

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        if shape.window <= shape.horizon:
            raise ValueError(
                f"window ({shape.window}) must be longer than horizon ({shape.horizon}) where state is carried"
            )
        self.window = shape.window
        self.horizon = shape.horizon
        self.held = self.derive.reach + shape.horizon
        self.extra = 3 if self.instance.active else 1

    @abstractmethod
    def start(self, inputs: Tensor) -> list[Tensor]:
        """Inputs [B, L, F + E] -> own state, in which the newest H rows are not read yet."""

    @abstractmethod
    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Own state, inputs to read [B, H, F + E], future [B, H, K] -> outputs, attention, next own state."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        if not self.instance.active:
            return self._begin(window)
        shift, scale = self.measure(window)
        state = self._begin((window - shift) / scale)
        state.append(shift)
        state.append(scale)
        return state

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        held = state[-self.extra]
        outputs, attention, own = self.step(state[: -self.extra], self.derive(held), future)
        rows = self.rows(outputs, future)
        own.append(_newest(held, rows, self.held))
        if self.instance.active:
            shift, scale = state[-2], state[-1]
            outputs = outputs * self.outputs(self.modelled(scale)) + self.outputs(self.modelled(shift))
            own.append(shift)
            own.append(scale)
        return outputs, attention, own

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        if self.instance.active:
            rows = (rows - state[-2]) / state[-1]
        place = len(state) - self.extra
        held = torch.cat([state[place][:, : -rows.size(1)], rows], 1)
        corrected = state[:place]
        corrected.append(held)
        return corrected + state[place + 1 :]

    def _begin(self, window: Tensor) -> list[Tensor]:
        rows = self.derive.pad(window)
        state = self.start(self.derive(rows))
        state.append(rows[:, -self.held :])
        return state


def _newest(rows: Tensor, later: Tensor, count: int) -> Tensor:
    """The last so many of the rows [B, n, F] and the later ones behind them."""
    return torch.cat([rows, later], 1)[:, -count:] if later.size(1) < count else later[:, -count:]
