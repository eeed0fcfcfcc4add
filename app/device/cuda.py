"""Passes on a GPU: batches padded to a few sizes, each of which is recorded once as CUDA graphs and then replayed.

A small recurrent network on a GPU is hundreds of tiny kernels, whose launches take longer than they do; a graph is one
launch. Everything but the recording itself runs, and is tested, on the CPU as well.
Shapes: B rows, S the size that they are padded to, L window, F features, H steps a pass, K known-future covariates,
T targets, R attention rows a pass.
"""

import bisect
import logging
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.artifact import ForecastModule

log = logging.getLogger(__name__)

Work = Callable[[], None]
"""Takes and leaves its tensors in memory that stays where it is."""
Recorder = Callable[[Work], Work]
"""Gives what does the same work as one launch."""

_WARM_UP_RUNS = 3
"""Before a recording cuDNN and cuBLAS must have chosen their kernels and got their memory."""

_RECORDING = threading.Lock()
"""CUDA takes one recording at a time in a process."""


class ReplayError(RuntimeError):
    """A recorded graph does not answer as its network does."""


def batch_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24 and so on up to `most`: no pass is padded to half as many rows again."""
    sizes = {most}
    power = 1
    while power < most:
        sizes.update(size for size in (power, power * 3 // 2) if size < most)
        power *= 2
    return sorted(sizes)


def eager(work: Work) -> Work:
    """The recorder that records nothing: kernel by kernel, as the network launches them."""
    return work


def graphed(
    module: ForecastModule, example: tuple[Tensor, Tensor, Tensor], sizes: Sequence[int], turn: threading.Lock
) -> "Padded":
    """The network for these batch sizes as CUDA graphs; `example` is a window, a time and a future as of one row.

    Whoever runs a pass on this device must hold `turn` for so long: no pass runs while something is being recorded.
    """
    recorder = _GraphRecorder(example[0].device, turn)
    return recorder.under_its_stream(lambda: padded(module, example, sizes, recorder))


def padded(
    module: ForecastModule, example: tuple[Tensor, Tensor, Tensor], sizes: Sequence[int], record: Recorder
) -> "Padded":
    """The network for these batch sizes, recorded, or kernel by kernel where it cannot be."""
    try:
        return Padded(module, example, sizes, record)
    except RuntimeError as error:
        log.warning("no CUDA graphs, every kernel is launched by itself: %s", str(error).partition("\n")[0])
        return Padded(module, example, sizes, eager)


def give_back(turn: threading.Lock) -> None:
    """Give cached memory back to the GPUs; while nothing runs on the one of `turn`, and nothing is being recorded."""
    with turn, _RECORDING:
        torch.cuda.empty_cache()


class Padded:
    """A network (ForecastModule) that runs batches of a few sizes only, each in memory of its own.

    The tensors that `encode` and `decode` give lie in that memory: they hold until the next call. Batches larger than
    all sizes run as they are.
    """

    def __init__(
        self,
        module: ForecastModule,
        example: tuple[Tensor, Tensor, Tensor],
        sizes: Sequence[int],
        record: Recorder,
    ) -> None:
        self._module = module
        self._sizes = sorted(sizes)
        with torch.inference_mode():
            self._fixed = {size: _Fixed(module, example, size, record) for size in self._sizes}

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        """Window [B, L, F], time [B] -> state of B rows."""
        rows = len(window)
        fixed = self._fitting(rows)
        if fixed is None:
            return self._module.encode(window, time)
        fixed.window[:rows].copy_(window)
        fixed.time[:rows].copy_(time)
        fixed.encode()
        return [tensor[:rows] for tensor in fixed.state]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """State, future [B, H, K] -> forecast [B, H, T], attention [B, R, L], next state."""
        rows = len(future)
        fixed = self._fitting(rows)
        if fixed is None:
            return self._module.decode(state, future)
        fixed.future[:rows].copy_(future)
        for held, given in zip(fixed.state, state, strict=True):
            # What this size's own `encode` has just left there needs no copy.
            if held.data_ptr() != given.data_ptr():
                held[:rows].copy_(given)
        fixed.decode()
        return fixed.forecast[:rows], fixed.attention[:rows], [tensor[:rows] for tensor in fixed.next_state]

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """As the network does it: no pass of the service comes here."""
        return self._module.rollout(window, time, future, steps)

    def _fitting(self, rows: int) -> "_Fixed | None":
        at = bisect.bisect_left(self._sizes, rows)
        return self._fixed[self._sizes[at]] if at < len(self._sizes) else None


class _Fixed:
    """One batch size: its memory for what goes in and comes out, and the recorded work between.

    Rows beyond those of a pass hold whatever an earlier one left; no row of a network depends on its neighbours.
    """

    def __init__(
        self, module: ForecastModule, example: tuple[Tensor, Tensor, Tensor], size: int, record: Recorder
    ) -> None:
        self._module = module
        self._launches: tuple[Work, Work] | None = None
        # Window [S, L, F], time [S] and future [S, H, K].
        self.window, self.time, self.future = (
            tensor.repeat(size, *[1] * (tensor.dim() - 1)).contiguous() for tensor in example
        )
        self.state = _own(module.encode(self.window, self.time))
        forecast, attention, state = module.decode(list(self.state), self.future)
        self.forecast, self.attention = _own([forecast, attention])
        self.next_state = _own(state)
        for _ in range(_WARM_UP_RUNS):
            self._encode()
            self._decode()
        expected = [tensor.clone() for tensor in self._outputs()]
        if record is not eager:
            # The work as it is would be a circle, which keeps the network in memory until somebody looks for circles.
            self._launches = record(self._encode), record(self._decode)
        for tensor in self._outputs():
            tensor.zero_()
        self.encode()
        self.decode()
        for found, wanted in zip(self._outputs(), expected, strict=True):
            if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-4):
                raise ReplayError(f"a graph of {size} rows does not give what the network gives")

    def encode(self) -> None:
        """From window and time to the state."""
        if self._launches is None:
            self._encode()
        else:
            self._launches[0]()

    def decode(self) -> None:
        """From state and future to forecast, attention and next state."""
        if self._launches is None:
            self._decode()
        else:
            self._launches[1]()

    def _encode(self) -> None:
        _fill(self.state, self._module.encode(self.window, self.time))

    def _decode(self) -> None:
        forecast, attention, state = self._module.decode(list(self.state), self.future)
        _fill([self.forecast, self.attention, *self.next_state], [forecast, attention, *state])

    def _outputs(self) -> list[Tensor]:
        return [*self.state, self.forecast, self.attention, *self.next_state]


class _GraphRecorder:
    """Records work on one GPU into CUDA graphs, in memory and on a stream that they share."""

    def __init__(self, device: torch.device, turn: threading.Lock) -> None:
        self._device = device
        self._turn = turn
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            # Shared, since no two of the graphs run at once and none leaves anything in it for another.
            self._pool = torch.cuda.graph_pool_handle()

    def under_its_stream(self, build: Callable[[], Padded]) -> Padded:
        """Build on the stream of the recordings, so that cuBLAS and cuDNN are warm where they will be recorded."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                built = build()
            # Of the stream, not of the device: that would break what another thread is recording there.
            self._stream.synchronize()
        return built

    def __call__(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`: that gives back all cached memory first, which the passes beside it would miss.
        with self._turn, _RECORDING:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay


def _own(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies, dense and apart from each other: a network may give views, of one another or of what it was given."""
    return [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]


def _fill(held: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    for ours, theirs in zip(held, given, strict=True):
        ours.copy_(theirs)
