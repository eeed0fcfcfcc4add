"""Padding to fixed sizes, on the CPU: all of cuda.py but the recording itself. The GPU's part is in test_runtime."""

import pytest
import torch
from torch import Tensor

from app.device import cuda
from models import networks
from models.artifact import ForecastModule
from models.forecaster import Forecaster
from tests.builders import inputs, network

ROLES = ("past", "target", "future", "target")
HORIZON = 2


def built(architecture: str) -> Forecaster:
    return network(architecture, roles=ROLES, horizon=HORIZON)


def one_row(module: Forecaster) -> tuple[Tensor, Tensor, Tensor]:
    return inputs(module, 1, HORIZON)


def kept(state: list[Tensor], rows: slice = slice(None)) -> list[Tensor]:
    return [tensor[rows].clone() for tensor in state]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (2, [1, 2]), (5, [1, 2, 3, 4, 5]), (64, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])],
)
def test_batch_sizes(most: int, sizes: list[int]) -> None:
    """They end with the largest batch, and none is more than twice the one before it."""
    assert cuda.batch_sizes(most) == sizes


@torch.inference_mode()
@pytest.mark.parametrize("architecture", networks.names())
def test_padded_rows_answer_as_they_are(architecture: str) -> None:
    """Rows of different sizes, joined and parted over several passes, equal the network's own."""
    module = built(architecture)
    padded = cuda.Padded(module, one_row(module), [1, 4, 8], cuda.eager)
    a, b = inputs(module, 3, 3 * HORIZON, seed=1), inputs(module, 2, 2 * HORIZON, seed=2)
    known = [a[2][:, at : at + HORIZON] for at in range(0, 3 * HORIZON, HORIZON)]
    forecasts, weights = [], []

    forecast, attention, state = padded.decode(padded.encode(a[0], a[1]), known[0])  # three rows in four
    forecasts.append(forecast.clone())
    weights.append(attention.clone())
    mine = kept(state)
    joined = [torch.cat(pair) for pair in zip(mine, padded.encode(b[0], b[1]), strict=True)]
    both = torch.cat([known[1], b[2][:, :HORIZON]])
    forecast, attention, state = padded.decode(joined, both)  # five in eight
    forecasts.append(forecast[:3].clone())
    weights.append(attention[:3].clone())
    mine, theirs = kept(state, slice(0, 3)), kept(state, slice(3, 5))
    first_of_b = forecast[3:].clone()
    second_of_b = padded.decode(theirs, b[2][:, HORIZON:])[0].clone()
    forecast, attention, _ = padded.decode(mine, known[2])
    forecasts.append(forecast.clone())
    weights.append(attention.clone())

    wanted, looks = module.rollout(*a, 3 * HORIZON)
    torch.testing.assert_close(torch.cat(forecasts, 1), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(weights, 1), looks, rtol=1e-5, atol=1e-5)
    other, _ = module.rollout(*b, 2 * HORIZON)
    torch.testing.assert_close(torch.cat([first_of_b, second_of_b], 1), other, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_more_rows_than_the_largest_size_run_as_they_are() -> None:
    """A batch that fits into no size is answered all the same."""
    module = built("lstm")
    padded = cuda.Padded(module, one_row(module), [1, 2], cuda.eager)
    window, time, future = inputs(module, 3, HORIZON, seed=1)
    forecast, _, _ = padded.decode(padded.encode(window, time), future)
    torch.testing.assert_close(forecast, module.rollout(window, time, future, HORIZON)[0])


@torch.inference_mode()
def test_rollout_is_the_networks() -> None:
    """The third method of the contract is there as well."""
    module = built("linear")
    given = inputs(module, 3, 5, seed=1)
    torch.testing.assert_close(
        cuda.Padded(module, one_row(module), [1], cuda.eager).rollout(*given, 5), module.rollout(*given, 5)
    )


class Recorder:
    """Counts, and records wrongly or not at all when told so."""

    def __init__(self, *, wrong: bool = False, broken: bool = False) -> None:
        self.recorded = 0
        self._wrong = wrong
        self._broken = broken

    def __call__(self, work: cuda.Work) -> cuda.Work:
        if self._broken:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.recorded += 1
        return (lambda: None) if self._wrong else work


@torch.inference_mode()
def test_every_size_is_recorded_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two recordings a size, one of `encode` and one of `decode`, and none at a pass."""
    module: ForecastModule = built("lstm")
    record = Recorder()
    padded = cuda.padded(module, one_row(built("lstm")), [1, 2, 4], record)
    window, time, _ = inputs(built("lstm"), 3, HORIZON)
    padded.encode(window, time)
    assert record.recorded == 6
    assert caplog.messages == []


@torch.inference_mode()
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Recorder(broken=True), "operation not permitted when stream is capturing"),
        (Recorder(wrong=True), "a graph of 1 rows does not give what the network gives"),
    ],
)
def test_what_cannot_be_recorded_runs_kernel_by_kernel(
    record: Recorder, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A recording that fails, or that answers otherwise than the network, is not used, and one line says why."""
    module = built("lstm")
    padded = cuda.padded(module, one_row(module), [1, 4], record)
    window, time, future = inputs(module, 3, HORIZON, seed=1)
    forecast, _, _ = padded.decode(padded.encode(window, time), future)
    torch.testing.assert_close(forecast, module.rollout(window, time, future, HORIZON)[0])
    assert caplog.messages == [f"no CUDA graphs, every kernel is launched by itself: {reason}"]
