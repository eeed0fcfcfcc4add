"""Runs passes on one device. The only place where arrays become tensors; knows no queue and no HTTP.

Shapes: B rows of a pass (the sum of its tickets' n), L window, F features, H steps a pass, K known-future covariates,
T targets, R attention rows a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.errors import DeviceLostError
from app.ticket import Floats, ModelId, Part, Ticket
from models import artifact
from models.artifact import Artifact

_WARM_UP_RUNS = 3
"""TorchScript profiles the first calls of a shape and specialises on the next; from the third on it is steady."""


@dataclass(slots=True, eq=False)
class Layout:
    """The state after a pass. It knows no tickets: they know it, and a circle would keep megabytes from being freed."""

    tensors: list[Tensor]
    rows: int


class Slot(NamedTuple):
    """Where a ticket's rows are between passes: from row `start` of a layout on."""

    layout: Layout
    start: int


def devices(wanted: str) -> list[str]:
    """The devices that `auto`, `cpu`, `cuda` or `cuda:n` stands for; ValueError where there is no such device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = [f"cuda:{index}" for index in range(count)]
    if wanted == "cpu" or (wanted == "auto" and not every):
        return ["cpu"]
    if wanted in ("auto", "cuda") and every:
        return every
    if wanted in every:
        return [wanted]
    raise ValueError(f"there is no device {wanted!r} here (there are: {', '.join(['cpu', *every])})")


class Runtime:
    """The models on one device, and one pass at a time through one of them.

    `load` may run beside a pass in another thread; `run` must not run beside itself.
    """

    def __init__(self, device: str, *, threads: int, batch_rows: int) -> None:
        self.device = device
        self._batch_rows = batch_rows
        self._models: dict[ModelId, Artifact] = {}
        torch.set_num_threads(threads)
        # cuDNN would round to TF32, which over a long recursion is more than a load lets the example be off by.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at run time

    def load(self, model: ModelId, archive: Path) -> Artifact:
        """Read, verify and warm a model; models.artifact.ArtifactError or OSError with the reason where it fails."""
        loaded = artifact.load(archive, digest=model.digest, device=self.device)
        self._warm_up(loaded)
        return loaded

    def install(self, model: ModelId, loaded: Artifact) -> None:
        """From now on its tickets can run."""
        self._models[model] = loaded

    def unload(self, model: ModelId) -> None:
        """Forget a model; the pass under way is the last that its tickets get."""
        self._models.pop(model, None)

    def run(self, tickets: Sequence[Ticket]) -> list[Part]:
        """One pass of tickets of one model. It changes no ticket unless it succeeds, so a failed pass can run again.

        DeviceLostError where the device itself has failed: then nothing will ever run on it again.
        """
        try:
            return self._run(tickets)
        except torch.AcceleratorError as error:
            raise DeviceLostError(f"{self.device} failed: {error}") from error

    def _run(self, tickets: Sequence[Ticket]) -> list[Part]:
        loaded = self._models[tickets[0].model]
        going = [ticket for ticket in tickets if ticket.state is not None]
        joining = [ticket for ticket in tickets if ticket.state is None]
        with torch.inference_mode():
            order, states = self._going_on(going)
            if joining:
                order.extend(joining)
                states.append(self._encode(loaded, joining))
            forecast, attention, state = loaded.module.decode(_merge(states), self._known(loaded, order))
            parts = dict(zip(order, _parts(order, forecast, attention), strict=True))
        layout = Layout(state, sum(ticket.rows for ticket in order))
        start = 0
        for ticket in order:
            ticket.state = Slot(layout, start)
            start += ticket.rows
        return [parts[ticket] for ticket in tickets]

    def _going_on(self, tickets: Sequence[Ticket]) -> tuple[list[Ticket], list[list[Tensor]]]:
        """The tickets by the layouts that their rows lie in, and the state of each group.

        Where all of a layout goes on, which is the common case, its tensors are used as they are.
        """
        groups: dict[Layout, list[Ticket]] = {}
        for ticket in sorted(tickets, key=lambda ticket: ticket.state.start):
            groups.setdefault(ticket.state.layout, []).append(ticket)
        order: list[Ticket] = []
        states = []
        for layout, chosen in groups.items():
            order.extend(chosen)
            rows = [row for ticket in chosen for row in range(ticket.state.start, ticket.state.start + ticket.rows)]
            if len(rows) == layout.rows:
                states.append(layout.tensors)
            else:
                picked = torch.tensor(rows, device=self.device)
                states.append([tensor.index_select(0, picked) for tensor in layout.tensors])
        return order, states

    def _encode(self, loaded: Artifact, tickets: Sequence[Ticket]) -> list[Tensor]:
        window = self._tensor([ticket.window for ticket in tickets])
        time = torch.from_numpy(np.concatenate([ticket.time for ticket in tickets])).to(self.device)
        return loaded.module.encode(window, time)

    def _known(self, loaded: Artifact, tickets: Sequence[Ticket]) -> Tensor:
        """The known future of this pass [B, H, K]; every ticket is at a step of its own."""
        horizon = loaded.spec.horizon
        if not loaded.spec.known:
            return torch.empty(sum(ticket.rows for ticket in tickets), horizon, 0, device=self.device)
        starts = [len(ticket.parts) * horizon for ticket in tickets]
        return self._tensor(
            [ticket.known[:, start : start + horizon] for ticket, start in zip(tickets, starts, strict=True)]
        )

    def _tensor(self, arrays: Sequence[Floats]) -> Tensor:
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return torch.from_numpy(joined).to(self.device)

    def _warm_up(self, loaded: Artifact) -> None:
        """Run the example through the batch sizes at the ends: alone, in company, and a full batch."""
        window, time, future = artifact.example_inputs(loaded.spec, self.device)
        steps, horizon = loaded.spec.example.steps, loaded.spec.horizon
        for rows in sorted({1, 2, self._batch_rows}):
            inputs = (window.repeat(rows, 1, 1), time.repeat(rows), future.repeat(rows, 1, 1))
            for _ in range(_WARM_UP_RUNS):
                artifact.answer(loaded.module, *inputs, min(steps, 2 * horizon), horizon)


def _merge(states: Sequence[list[Tensor]]) -> list[Tensor]:
    if len(states) == 1:
        return states[0]
    return [torch.cat(tensors) for tensors in zip(*states, strict=True)]


def _parts(tickets: Sequence[Ticket], forecast: Tensor, attention: Tensor) -> list[Part]:
    """Each ticket's share of a pass, copied where it is one of several, so that none keeps the others' in memory."""
    forecasts = forecast.cpu().numpy()
    weights = attention.cpu().numpy() if any(ticket.attention for ticket in tickets) else None
    if len(tickets) == 1:
        return [Part(forecasts, weights)]
    parts, start = [], 0
    for ticket in tickets:
        rows = slice(start, start + ticket.rows)
        start += ticket.rows
        wanted = weights is not None and ticket.attention
        parts.append(Part(forecasts[rows].copy(), weights[rows].copy() if weights is not None and wanted else None))
    return parts
