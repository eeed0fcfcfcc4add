"""Training without windows: a state read through long series from beginning to end, and learnt from as it goes.

The gradient goes back through so many rows and no further, while the state goes on: truncated back-propagation through
time (Williams and Peng, 1990). Every row is read once an epoch instead of once for each window that it lies in.
Shapes: R rows, b lanes of a stretch, n rows of it, L window, H steps a pass, F features, M modelled features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.forecaster import Forecaster
from training.data.dataset import Dataset, rows_of
from training.data.windows import Clock
from training.fitting.objective import Objective
from training.recipe import Recipe, Stateful


class Start(NamedTuple):
    """What a state begins with."""

    window: Tensor
    """float32 [b, L, F]"""
    times: Tensor
    """int64 [b]: the epoch seconds of the last row of each."""


class Stretch(NamedTuple):
    """The rows that one step of the optimiser goes through, in every lane that has not ended yet.

    Lanes end one after the other, the last ones first, so that those that are left are the first of the state.
    """

    start: Start | None
    """Where the lanes begin; None: they go on from the stretch before."""
    rows: Tensor
    """float32 [b, n, F]: to be forecast, pass by pass; n is a multiple of H."""
    scored: Tensor
    """bool [b, n]: the rows that count, as the others lie behind the end of a lane."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Runs of complete training rows, cut so that about as many as wanted can be read at once."""

    begins: list[int]
    """The first row to be forecast in each; the L rows before it are those that the state starts from."""
    ends: list[int]
    """The row behind the last."""

    def groups(self, size: int) -> list["Lanes"]:
        """Those to be read at once, about `size` in each, the longest first."""
        order = sorted(range(len(self.begins)), key=lambda lane: self.begins[lane] - self.ends[lane])
        count = max(round(len(order) / size), 1)
        each = -(-len(order) // count)
        chosen = [order[place : place + each] for place in range(0, len(order), each)]
        return [Lanes([self.begins[lane] for lane in some], [self.ends[lane] for lane in some]) for some in chosen]


def lanes(runs: list[tuple[int, int]], length: int, wanted: int) -> Lanes:
    """Cut half-open runs of complete rows: every row behind the first L of a run is forecast in exactly one lane."""
    each = sum(max(end - first - length, 0) for first, end in runs) / wanted
    begins, ends = [], []
    for first, end in runs:
        begin, rows = first + length, end - first - length
        pieces = min(max(round(rows / each), 1), rows) if rows > 0 else 0
        cuts = [begin + piece * rows // pieces for piece in range(pieces)]
        begins += cuts
        ends += [*cuts[1:], end][:pieces]
    return Lanes(begins, ends)


def runs(recipe: Recipe, dataset: Dataset) -> list[tuple[int, int]]:
    """Where complete training rows follow each other, as half-open ranges of the rows of all series."""
    found: list[tuple[int, int]] = []
    offset = 0
    for one in dataset.series:
        usable = torch.zeros(len(one) + 2, dtype=torch.int8)
        training = rows_of(one, dataset.parts["train"], recipe.data.interval)
        usable[1:-1][training] = ~one.missing[training].any(1)
        change = usable.diff()
        firsts, ends = ((change == kind).nonzero().flatten() + offset for kind in (1, -1))
        found += zip(firsts.tolist(), ends.tolist(), strict=True)
        offset += len(one)
    return found


class Streams:
    """What a stateful loop iterates over: the stretches of all lanes, group by group, in the same order every time."""

    def __init__(self, recipe: Recipe, dataset: Dataset, options: Stateful, device: torch.device) -> None:
        self.length = recipe.window.length
        self.horizon = recipe.window.horizon
        self.step = options.rows - options.rows % self.horizon
        self.rows = dataset.windows["train"].rows.to(device)
        self.clock: Clock = dataset.windows["train"].clock.to(device)
        self.groups = lanes(runs(recipe, dataset), self.length, options.lanes).groups(options.lanes)

    def __len__(self) -> int:
        return sum(-(-(group.ends[0] - group.begins[0]) // self.step) for group in self.groups)

    def __iter__(self) -> Iterator[Stretch]:
        for group in self.groups:
            lengths = [end - begin for begin, end in zip(group.begins, group.ends, strict=True)]
            begins, ends = (torch.tensor(places, device=self.rows.device) for places in (group.begins, group.ends))
            for done in range(0, lengths[0], self.step):
                left = sum(length > done for length in lengths)
                passes = -(-min(self.step, lengths[0] - done) // self.horizon)
                ahead = torch.arange(passes * self.horizon, device=self.rows.device)
                place = begins[:left, None] + done + ahead
                end = ends[:left, None]
                rows = self.rows[place.minimum(end - 1)]
                yield Stretch(None if done else self._start(begins), rows, place < end)

    def _start(self, begins: Tensor) -> Start:
        before = torch.arange(-self.length, 0, device=begins.device)
        return Start(self.rows[begins[:, None] + before], self.clock.at(begins - 1))


class StreamObjective(Objective):
    """The loss of forecasts one pass ahead, each from a state that has read everything since its lane began."""

    def __init__(self, network: Forecaster, recipe: Recipe) -> None:
        super().__init__(network, recipe)
        self.state: list[Tensor] = []

    def training_step(self, batch: Stretch, index: int) -> Tensor:  # type: ignore[override]
        """One stretch; the next one goes on with its last state, but not with its gradient."""
        network, horizon = self.network, self.recipe.window.horizon
        rows = network.scaler.scale_rows(batch.rows)
        known = network.scaler.scale_future(batch.rows.index_select(2, self.known))
        state = self._state(batch)
        found = []
        for came, future in zip(rows.split(horizon, 1), known.split(horizon, 1), strict=True):
            modelled, _, state = network.core.decode(state, future)
            state = network.core.correct(state, came)
            found.append(modelled)
        self.state = [part.detach() for part in state]
        wanted = network.core.modelled(rows)
        cost = self.cost(torch.cat(found, 1).to(wanted.dtype), wanted) * batch.scored.unsqueeze(2)
        mean = cost.sum((0, 1)) / batch.scored.sum().clamp(min=1) @ self.weights
        self.count(mean, rows.size(0) * len(found))
        return mean

    def _state(self, batch: Stretch) -> list[Tensor]:
        if batch.start is not None:
            return self.network.encode(batch.start.window, batch.start.times)
        return [part[: batch.rows.size(0)] for part in self.state]
