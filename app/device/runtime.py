"""Runs passes on one device. The only place where arrays become tensors; knows no queue and no HTTP.

Shapes: B rows of a pass (the sum of its tickets' n), L window, F features, H steps a pass, K known-future covariates,
T targets, R attention rows a pass.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.device import cuda
from app.errors import DeviceLostError
from app.ticket import ModelId, NoRoomError, Part, Slot, Ticket
from models import artifact
from models.artifact import Artifact, Precision

_WARM_UP_S = 3.0
"""For so long at most a model is warmed on the CPU; sizes that it does not get to cost a few ms at their first pass."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What allocators say, and the libraries that they serve. TorchScript keeps the text of an error but not its kind."""

_IN_A_ROW = 32
"""So many passes at most follow each other before anyone hears of them: by then what surrounds them costs nothing."""


@dataclass(slots=True, eq=False)
class Layout:
    """The state after a pass. It knows no tickets: they know it, and a circle would keep megabytes from being freed."""

    tensors: list[Tensor]
    rows: int


class Piece(NamedTuple):
    """State of rows that lie together, and whether nothing else lies in the same memory."""

    tensors: list[Tensor]
    whole: bool


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

    def __init__(self, device: str, *, threads: int, batch_rows: int, precision: Precision = "float32") -> None:
        self.device = device
        self._gpu = device != "cpu"
        self._threads = threads
        self._batch_rows = batch_rows
        self._precision = precision
        self._models: dict[ModelId, Artifact] = {}
        torch.set_num_threads(threads)
        self._turn = threading.Lock()
        """Held by whoever runs a pass, or records one on a GPU."""
        # cuDNN would round to TF32, which over a long recursion is more than a load lets the example be off by.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at run time

    def load(self, model: ModelId, archive: Path, give_way: Callable[[], None] = lambda: None) -> Artifact:
        """Read, verify and warm a model; models.artifact.ArtifactError or OSError with the reason where it fails.

        Warming takes longest: `give_way` is called before it.
        """
        # Here too: a thread of its own begins with as many as there are cores, and what oneDNN prepares for one number
        # of threads is of no use to another.
        torch.set_num_threads(self._threads)
        loaded = artifact.load(archive, digest=model.digest, device=self.device, precision=self._precision)
        give_way()
        if not self._gpu:
            self._warm_up(loaded)
            return loaded
        example = _first_pass(loaded, self.device)
        return replace(
            loaded, module=cuda.graphed(loaded.module, example, cuda.batch_sizes(self._batch_rows), self._turn)
        )

    def install(self, model: ModelId, loaded: Artifact) -> None:
        """From now on its tickets can run."""
        self._models[model] = loaded

    def unload(self, model: ModelId) -> None:
        """Forget a model, of which no ticket is left."""
        self._models.pop(model, None)

    def give_back(self) -> None:
        """Give memory that nothing uses any more back to the system; beside passes, in another thread."""
        if self._gpu:
            cuda.give_back(self._turn)
        # Loads run in threads, for which the C library has heaps of their own; what is freed in them it keeps. No
        # collection: a network is freed with the last that refers to it, and to look for circles stops every thread.
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)

    def run(self, tickets: Sequence[Ticket], go_on: Callable[[], bool] = lambda: False) -> list[Part]:
        """One pass of tickets of one model. It changes no ticket unless it succeeds, so a failed pass can run again.

        While `go_on` says so, the same tickets go through further passes in a row, as far as all of them go: most of
        what surrounds a pass is then done once. It is asked before each.

        The parts of tickets that take one pass are views of what that pass gave to all of its tickets.
        DeviceLostError where the device itself has failed: then nothing will ever run on it again. NoRoomError where
        its memory is too small for this pass.
        """
        # A thread that has never asked for their number would begin with as many as there are cores: see `load`.
        torch.get_num_threads()
        try:
            with self._turn, torch.inference_mode():
                return self._run(tickets, go_on)
        except torch.AcceleratorError as error:
            raise DeviceLostError(f"{self.device} failed: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[-1:]
        # Here, where the error is forgotten and with it whatever the failed pass had got.
        if self._gpu:
            cuda.give_back(self._turn)
        raise NoRoomError("".join(reason))

    def _run(self, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> list[Part]:
        loaded = self._models[tickets[0].model]
        joining = [ticket for ticket in tickets if ticket.state is None]
        going = [ticket for ticket in tickets if ticket.state is not None] if len(joining) < len(tickets) else []
        order, pieces = _going_on(going)
        order += joining
        # Before the network runs: it leaves nothing of the tickets in the caches.
        ends = list(accumulate([len(ticket.window) for ticket in order], initial=0))
        known = self._known(loaded, order, ends[-1])
        if joining:
            pieces.append(Piece(self._encode(loaded, joining), whole=True))
        forecast, attention, state = loaded.module.decode(_merge(pieces), known)
        passes = 1
        most = min(_IN_A_ROW, *[ticket.passes - ticket.done for ticket in order])
        if most > 1 and go_on():
            forecasts, attentions = [self._kept(forecast)], [self._kept(attention)]
            while True:
                known = self._known(loaded, order, ends[-1], ahead=passes)
                forecast, attention, state = loaded.module.decode(state, known)
                forecasts.append(self._kept(forecast))
                attentions.append(self._kept(attention))
                passes += 1
                if passes == most or not go_on():
                    break
            forecast, attention = torch.cat(forecasts, 1), torch.cat(attentions, 1)
        parts = self._parts(order, ends, forecast, attention, passes)
        slots = self._slots(order, ends, state, passes)
        # Only here, where nothing can fail any more, do tickets change.
        for ticket in going:
            ticket.state = None
        for ticket, slot in slots:
            ticket.state = slot
        if not going:
            return parts
        found = dict(zip(order, parts, strict=True))
        return [found[ticket] for ticket in tickets]

    def _encode(self, loaded: Artifact, tickets: Sequence[Ticket]) -> list[Tensor]:
        window = self._tensor([ticket.window for ticket in tickets])
        if loaded.spec.clock:
            time = self._tensor([ticket.time for ticket in tickets])
        else:
            time = torch.zeros(len(window), dtype=torch.int64, device=self.device)
        return loaded.module.encode(window, time)

    def _kept(self, tensor: Tensor) -> Tensor:
        # On a GPU it lies in memory that the next pass writes to.
        return tensor.clone() if self._gpu else tensor

    def _known(self, loaded: Artifact, tickets: Sequence[Ticket], rows: int, ahead: int = 0) -> Tensor:
        """The known future of a pass [B, H, K], the next or one further ahead; every ticket is at a step of its own."""
        horizon = loaded.spec.horizon
        if not tickets[0].known.shape[2]:
            return torch.empty(rows, horizon, 0, device=self.device)
        starts = [(ticket.done + ahead) * horizon for ticket in tickets]
        return self._tensor(
            [ticket.known[:, start : start + horizon] for ticket, start in zip(tickets, starts, strict=True)]
        )

    def _tensor(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        # A copy even of one array: it may be memory that cannot be written to, of which torch makes no tensor.
        joined = torch.from_numpy(np.concatenate(arrays))
        # From pinned memory the copy runs beside the launches that follow; torch keeps that memory until it is done.
        return joined.pin_memory().to(self.device, non_blocking=True) if self._gpu else joined

    def _parts(
        self, tickets: Sequence[Ticket], ends: Sequence[int], forecast: Tensor, attention: Tensor, passes: int
    ) -> list[Part]:
        """Each ticket's share of some passes in a row.

        A view where these are all that the ticket takes, or where it had them to itself; else a copy, or it would keep
        its neighbours of every pass in memory.
        """
        wanted = [forecast, attention] if any(ticket.attention for ticket in tickets) else [forecast]
        arrays = [tensor.to("cpu", non_blocking=True) for tensor in wanted]
        if self._gpu:
            torch.cuda.current_stream(self.device).synchronize()
        forecasts, weights = arrays[0].numpy(), arrays[-1].numpy()  # the same, where nobody wants the second
        parts = []
        start = 0
        for ticket, end in zip(tickets, ends[1:], strict=True):
            own, looks = forecasts[start:end], weights[start:end] if ticket.attention else None
            if ticket.passes > passes and len(tickets) > 1:
                own, looks = own.copy(), None if looks is None else looks.copy()
            parts.append(Part(own, looks, passes))
            start = end
        return parts

    def _slots(
        self, tickets: Sequence[Ticket], ends: Sequence[int], state: list[Tensor], passes: int
    ) -> list[tuple[Ticket, Slot]]:
        """Where the rows of those tickets lie that still go on after so many passes more."""
        staying = [index for index, ticket in enumerate(tickets) if ticket.done + passes < ticket.passes]
        if not staying:
            return []
        layout = Layout([self._kept(tensor) for tensor in state], ends[-1])
        return [(tickets[index], Slot(layout, ends[index])) for index in staying]

    def _warm_up(self, loaded: Artifact) -> None:
        """Run every batch size once: oneDNN compiles for each, at several times the cost of a pass."""
        window, when, future = _first_pass(loaded, self.device)
        spent = 0.0
        # The full batch first, whatever time there is for the others.
        for rows in (self._batch_rows, *range(1, self._batch_rows)):
            began = time.monotonic()
            with torch.inference_mode():
                state = loaded.module.encode(window.repeat(rows, 1, 1), when.repeat(rows))
                loaded.module.decode(state, future.repeat(rows, 1, 1))
            took = time.monotonic() - began
            spent += took
            if spent > _WARM_UP_S:
                break
            if self._turn.locked():
                # A pass is under way: those that follow have the core's caches to themselves for as long.
                time.sleep(took)


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in str(error) for said in _OUT_OF_MEMORY)


def _going_on(tickets: Sequence[Ticket]) -> tuple[list[Ticket], list[Piece]]:
    """The tickets by where their rows lie, and the pieces of state that lie there."""
    groups: dict[Layout, list[Ticket]] = {}
    for ticket in sorted(tickets, key=lambda ticket: ticket.state.start):
        groups.setdefault(ticket.state.layout, []).append(ticket)
    order: list[Ticket] = []
    pieces: list[Piece] = []
    for layout, chosen in groups.items():
        order += chosen
        rows = [row for ticket in chosen for row in range(ticket.state.start, ticket.state.start + ticket.rows)]
        if len(rows) == layout.rows:
            pieces.append(Piece(layout.tensors, whole=True))
        elif rows[-1] - rows[0] == len(rows) - 1:
            pieces.append(Piece([tensor[rows[0] : rows[-1] + 1] for tensor in layout.tensors], whole=False))
        else:
            picked = torch.tensor(rows, device=layout.tensors[0].device)
            pieces.append(Piece([tensor.index_select(0, picked) for tensor in layout.tensors], whole=True))
    return order, pieces


def _merge(pieces: Sequence[Piece]) -> list[Tensor]:
    """One batch of all pieces: as it is where that is all there is, else copied, so that who has left is forgotten."""
    if len(pieces) == 1 and pieces[0].whole:
        return pieces[0].tensors
    return [torch.cat(tensors) for tensors in zip(*(piece.tensors for piece in pieces), strict=True)]


def _first_pass(loaded: Artifact, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the example: window [1, L, F], time [1] and the known future of one pass [1, H, K]."""
    window, when, future = artifact.example_inputs(loaded.spec, device)
    missing = max(0, loaded.spec.horizon - future.size(1))
    future = torch.cat([future, future[:, -1:].expand(-1, missing, -1)], 1)
    return window, when, future[:, : loaded.spec.horizon]
