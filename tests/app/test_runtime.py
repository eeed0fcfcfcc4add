"""The runtime: what rows get must not depend on who shares their pass."""

import ctypes
import gc
import json
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from app.device import cuda, runtime
from app.device.runtime import Runtime
from app.errors import DeviceLostError
from app.ticket import ModelId, NoRoomError, Ticket
from models import networks
from models.artifact import DigestError, ForecastModule
from models.store import Store
from tests.builders import inputs, network, publish_tiny

ROLES = ("past", "target", "future", "target")


def loaded(tmp_path: Path, architecture: str, horizon: int = 2) -> tuple[Runtime, ModelId]:
    store = Store(tmp_path)
    version = publish_tiny(store, "tiny", architecture=architecture, roles=ROLES, horizon=horizon)
    model = ModelId("tiny", version, store.index().models["tiny"].versions[version])
    device = Runtime("cpu", threads=1, batch_rows=8)
    device.install(model, device.load(model, store.archive("tiny", version)))
    return device, model


def ticket(model: ModelId, architecture: str, *, rows: int, passes: int, seed: int, horizon: int = 2) -> Ticket:
    window, time, future = inputs(
        network(architecture, roles=ROLES, horizon=horizon), rows, passes * horizon, seed=seed
    )
    return Ticket(
        model=model,
        window=window.numpy(),
        time=time.numpy(),
        known=future.numpy(),
        passes=passes,
        attention=True,
    )


def advance(device: Runtime, *tickets: Ticket, go_on: Callable[[], bool] = lambda: False) -> None:
    for one, part in zip(tickets, device.run(tickets, go_on), strict=True):
        one.take(part)


def expected(architecture: str, one: Ticket) -> tuple[np.ndarray, np.ndarray]:
    eager = network(architecture, roles=ROLES, horizon=2)
    with torch.inference_mode():
        forecast, attention = eager.rollout(
            torch.from_numpy(one.window), torch.from_numpy(one.time), torch.from_numpy(one.known), one.passes * 2
        )
    return forecast.numpy(), attention.numpy()


@pytest.mark.parametrize("architecture", networks.names())
def test_tickets_join_leave_and_pause_without_touching_each_other(tmp_path: Path, architecture: str) -> None:
    """Rows at different steps, of different sizes, merged and split in any way, equal the eager ones alone."""
    device, model = loaded(tmp_path, architecture)
    a, b, c, d = (
        ticket(model, architecture, rows=rows, passes=passes, seed=seed)
        for seed, (rows, passes) in enumerate([(1, 5), (3, 2), (2, 4), (1, 3)])
    )
    advance(device, a)
    advance(device, a, b)
    advance(device, c, b, a)
    advance(device, c, a)
    advance(device, d)
    advance(device, a, d, c)
    advance(device, d, c)
    for one in (a, b, c, d):
        assert one.finished
        forecast, attention = expected(architecture, one)
        np.testing.assert_allclose(one.forecast(), forecast, rtol=1e-5, atol=1e-5)
        weights = one.weights()
        assert weights is not None
        np.testing.assert_allclose(weights, attention, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", networks.names())
def test_passes_in_a_row_are_passes(tmp_path: Path, architecture: str) -> None:
    """Tickets that go on together for several passes get what they would have got one by one, and stop when told."""
    device, model = loaded(tmp_path, architecture)
    a = ticket(model, architecture, rows=1, passes=7, seed=1)
    b = ticket(model, architecture, rows=2, passes=5, seed=2)
    advance(device, a)
    asked = iter([True, True, False])
    advance(device, b, a, go_on=lambda: next(asked))
    assert (a.done, b.done) == (4, 3)
    advance(device, a, b, go_on=lambda: True)
    assert (a.done, b.done) == (6, 5)
    advance(device, a, go_on=lambda: True)
    for one in (a, b):
        assert one.finished
        forecast, attention = expected(architecture, one)
        np.testing.assert_allclose(one.forecast(), forecast, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.weights(), attention, rtol=1e-5, atol=1e-5)


def test_failed_pass_can_run_again(tmp_path: Path) -> None:
    """A pass that raises changes no ticket: without the one at fault it runs from where it was."""
    device, model = loaded(tmp_path, "lstm")
    good = ticket(model, "lstm", rows=1, passes=2, seed=1)
    bad = ticket(model, "lstm", rows=1, passes=2, seed=2)
    advance(device, good)
    bad.window = np.repeat(bad.window, 2, axis=2)
    with pytest.raises((RuntimeError, ValueError)):
        device.run([good, bad])
    advance(device, good)
    np.testing.assert_allclose(good.forecast(), expected("lstm", good)[0], rtol=1e-5, atol=1e-5)


def test_attention_is_left_out_where_nobody_asked(tmp_path: Path) -> None:
    """In one pass, a ticket that asked for attention gets it and its neighbour does not."""
    device, model = loaded(tmp_path, "attention_lstm")
    asks = ticket(model, "attention_lstm", rows=1, passes=1, seed=1)
    not_asks = ticket(model, "attention_lstm", rows=1, passes=1, seed=2)
    not_asks.attention = False
    advance(device, not_asks, asks)
    assert asks.weights() is not None
    assert not_asks.weights() is None


def test_long_forecast_keeps_no_neighbour_in_memory(tmp_path: Path) -> None:
    """What a ticket of several passes holds of a shared one is its own copy; who is answered next gets a view."""
    device, model = loaded(tmp_path, "attention_lstm")
    long = ticket(model, "attention_lstm", rows=1, passes=2, seed=1)
    short = ticket(model, "attention_lstm", rows=1, passes=1, seed=2)
    advance(device, long, short)
    (part,) = long.parts
    assert part.attention is not None
    assert part.forecast.base is None
    assert part.attention.base is None
    assert short.parts[0].forecast.base is not None


def test_state_goes_with_the_last_ticket_that_needs_it(tmp_path: Path) -> None:
    """Megabytes of state are freed when their tickets are, without waiting for the collector of circles."""
    device, model = loaded(tmp_path, "attention_lstm")
    gc.collect()
    gc.disable()
    try:
        done = ticket(model, "attention_lstm", rows=1, passes=1, seed=1)
        gone = ticket(model, "attention_lstm", rows=1, passes=5, seed=2)
        advance(device, done, gone)
        assert done.state is None
        state = weakref.ref(gone.state.layout.tensors[0])
        assert state() is not None
        del gone
        assert state() is None
    finally:
        gc.enable()


def test_who_goes_on_forgets_who_has_left(tmp_path: Path) -> None:
    """After a pass of its own, a ticket holds no row of those that it began with."""
    device, model = loaded(tmp_path, "attention_lstm")
    long = ticket(model, "attention_lstm", rows=1, passes=3, seed=1)
    advance(device, ticket(model, "attention_lstm", rows=5, passes=1, seed=2), long)
    advance(device, long)
    assert [tensor.untyped_storage().nbytes() // tensor[0].nbytes for tensor in long.state.layout.tensors] == [1] * 5


def test_windows_may_be_memory_that_nobody_can_write_to(tmp_path: Path) -> None:
    """The bytes of a message serve as windows as they are: torch, which warns of such memory, sees a copy."""
    device, model = loaded(tmp_path, "lstm")
    one = ticket(model, "lstm", rows=1, passes=1, seed=1)
    forecast, _ = expected("lstm", one)
    one.window = np.frombuffer(one.window.tobytes(), np.float32).reshape(one.window.shape)
    one.known = np.frombuffer(one.known.tobytes(), np.float32).reshape(one.known.shape)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        advance(device, one)
    finally:
        torch.set_warn_always(before)
    np.testing.assert_allclose(one.forecast(), forecast, rtol=1e-5, atol=1e-5)


@pytest.fixture
def threads() -> Iterator[int]:
    """Another number than OMP_NUM_THREADS has in these tests, with which a thread begins that is told of no other."""
    before = torch.get_num_threads()
    yield before + 1
    torch.set_num_threads(before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="tells what oneDNN compiles")
def test_nothing_is_compiled_after_a_load(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Of no batch size up to the largest does the first pass compile anything, whichever thread it was loaded in."""
    # A machine that has much else to do must not cut the warming short.
    monkeypatch.setattr(runtime, "_WARM_UP_S", math.inf)
    store = Store(tmp_path)
    # Of sizes that no other test has, so that nobody else has compiled for them.
    config, window = {"hidden": 24, "layers": 2}, 13
    publish_tiny(store, "tiny", architecture="attention_lstm", config=config, window=window)
    model = ModelId("tiny", 1, store.index().models["tiny"].versions[1])
    device = Runtime("cpu", threads=threads, batch_rows=6)
    with ThreadPoolExecutor(1) as loader:
        device.install(model, loader.submit(device.load, model, store.archive("tiny", 1)).result())

    def compiled(rows: int) -> int:
        drawn, when, known = inputs(network("attention_lstm", config, window=window), rows, 2)
        one = Ticket(model, drawn.numpy(), when.numpy(), known.numpy(), passes=2, attention=False)
        # Of a thread that has never run anything: it must begin with as many threads as the loader had.
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION), ThreadPoolExecutor(1) as fresh:
            fresh.submit(advance, device, one).result()
            fresh.submit(advance, device, one).result()
            ctypes.CDLL(None).fflush(None)
        return capfd.readouterr().out.count("create:cache_miss")

    assert [compiled(rows) for rows in range(1, 7)] == [0] * 6
    assert compiled(7) > 0  # or the count above says nothing


def test_load_in_bfloat16_answers_nearly_the_same(tmp_path: Path) -> None:
    """Where the CPU has it, passes of full batches are off by less than a hundredth; else they are exact."""
    store = Store(tmp_path)
    publish_tiny(store, "tiny", architecture="attention_lstm", roles=ROLES, horizon=2)
    model = ModelId("tiny", 1, store.index().models["tiny"].versions[1])
    device = Runtime("cpu", threads=1, batch_rows=8, precision="bfloat16")
    device.install(model, device.load(model, store.archive("tiny", 1)))
    one, other = (ticket(model, "attention_lstm", rows=rows, passes=3, seed=rows) for rows in (2, 6))
    advance(device, one, other)
    advance(device, one)
    advance(device, one, other)
    forecast, attention = expected("attention_lstm", one)
    std = network("attention_lstm", roles=ROLES).scaler.target_scale.numpy()
    weights = one.weights()
    assert weights is not None
    assert one.forecast().dtype == weights.dtype == np.float32
    assert np.abs((one.forecast() - forecast) / std).max() < 1e-2
    np.testing.assert_allclose(weights, attention, atol=1e-2)


def test_unloaded_model_is_gone(tmp_path: Path) -> None:
    """After unload its tickets fail, and unloading twice is no error."""
    device, model = loaded(tmp_path, "linear")
    device.unload(model)
    device.unload(model)
    with pytest.raises(KeyError):
        device.run([ticket(model, "linear", rows=1, passes=1, seed=0)])


def not_enough(rows: int) -> Tensor:
    """What a CPU says that is asked for a petabyte."""
    return torch.zeros(rows, 281_474_976_710_656)


@pytest.mark.parametrize("scripted", [False, True])
def test_pass_that_does_not_fit_into_memory(tmp_path: Path, scripted: bool) -> None:
    """It is told from a bad row, also where TorchScript has wrapped it; the same tickets can run afterwards."""
    device, model = loaded(tmp_path, "lstm")
    whole = device._models[model]
    ask = torch.jit.script(not_enough) if scripted else not_enough
    greedy = SimpleNamespace(encode=whole.module.encode, decode=lambda state, future: ask(len(future)))
    one = ticket(model, "lstm", rows=1, passes=1, seed=1)
    device.install(model, replace(whole, module=cast(ForecastModule, greedy)))
    with pytest.raises(NoRoomError, match="allocate") as refusal:
        device.run([one])
    # Nothing of the failed pass is kept by the error.
    assert refusal.value.__context__ is None
    device.install(model, whole)
    advance(device, one)
    np.testing.assert_allclose(one.forecast(), expected("lstm", one)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), NoRoomError),
        (RuntimeError("in the TorchScript interpreter:\nRuntimeError: CUDA out of memory. Tried"), NoRoomError),
        (RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), NoRoomError),
        (MemoryError(), NoRoomError),
        (torch.AcceleratorError("CUDA error: out of memory"), DeviceLostError),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceLostError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_errors_of_a_pass_are_told_apart(tmp_path: Path, error: Exception, wanted: type[Exception]) -> None:
    """Memory that does not suffice, a device that is lost, and rows that the model fails on."""
    device, model = loaded(tmp_path, "lstm")

    def fail(*_: object) -> None:
        raise error

    module = cast(ForecastModule, SimpleNamespace(encode=fail))
    device.install(model, replace(device._models[model], module=module))
    with pytest.raises(wanted) as found:
        device.run([ticket(model, "lstm", rows=1, passes=1, seed=1)])
    assert type(found.value) is wanted


def test_halves_of_a_ticket_go_on_where_it_was(tmp_path: Path) -> None:
    """Split between two passes, its rows get what they would have got together."""
    device, model = loaded(tmp_path, "attention_lstm")
    whole = ticket(model, "attention_lstm", rows=5, passes=4, seed=1)
    advance(device, whole)
    first, second = whole.halves()
    advance(device, second)
    advance(device, first, second)
    for one in (first, second):
        while not one.finished:
            advance(device, one)
    forecast, attention = expected("attention_lstm", whole)
    halves = np.concatenate([first.forecast(), second.forecast()])
    np.testing.assert_allclose(halves, forecast, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([first.weights(), second.weights()]), attention, rtol=1e-5, atol=1e-5)
    assert (first.rows, second.rows, whole.gone, first.gone) == (2, 3, True, False)


@pytest.mark.parametrize("padded", [False, True])
def test_unloaded_network_is_freed_at_once(tmp_path: Path, padded: bool) -> None:
    """No circle keeps it until somebody looks for circles, which would stop every thread for as long."""
    device, model = loaded(tmp_path, "attention_lstm")
    whole = device._models[model]
    left = weakref.ref(whole.module)
    if padded:
        example = runtime._first_pass(whole, "cpu")
        device.install(model, replace(whole, module=cuda.Padded(whole.module, example, [1, 2], cuda.eager)))
    del whole
    advance(device, ticket(model, "attention_lstm", rows=1, passes=1, seed=1))
    gc.collect()
    gc.disable()
    try:
        device.unload(model)
        assert left() is None
    finally:
        gc.enable()
    device.give_back()


def growth_mib(store: Store, *options: str) -> float:
    """From the 10th cycle to the last, of a process that loads, uses and unloads a model."""
    command = [sys.executable, "-m", "tests.app.cycles", str(store.root), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    used = json.loads(done.stdout)
    return used[-1] - used[0]


def heavy(tmp_path: Path) -> tuple[Store, float]:
    """A model whose weights are most of it, and how many MiB they are."""
    store = Store(tmp_path)
    publish_tiny(store, "tiny", architecture="lstm", config={"hidden": 256, "layers": 2})
    return store, store.archive("tiny", 1).stat().st_size / 2**20


def check_that_memory_comes_back(tmp_path: Path, *options: str) -> None:
    """In 40 cycles it grows by less than 4 archives; where each unload keeps one, in 20 by more than 10."""
    store, archive_mib = heavy(tmp_path)
    assert growth_mib(store, *options) < 4 * archive_mib
    assert growth_mib(store, "--leaky", "--cycles", "30", *options) > 10 * archive_mib


def test_memory_comes_back(tmp_path: Path) -> None:
    """Fifty times loaded, used and unloaded, a model leaves nothing behind; the judge catches one that does."""
    check_that_memory_comes_back(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_memory_comes_back(tmp_path: Path) -> None:
    """The same of a GPU's memory, with the graphs that were recorded there."""
    check_that_memory_comes_back(tmp_path, "--device", "cuda:0")


def test_load_verifies_the_digest(tmp_path: Path) -> None:
    """An archive that is not the one the index lists is not loaded."""
    store = Store(tmp_path)
    publish_tiny(store, "tiny")
    device = Runtime("cpu", threads=1, batch_rows=8)
    with pytest.raises(DigestError):
        device.load(ModelId("tiny", 1, "sha256:" + "0" * 64), store.archive("tiny", 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU does")
def test_devices_without_a_gpu() -> None:
    """`auto` falls back to the CPU; a GPU that is asked for and not there is an error that names it."""
    assert runtime.devices("auto") == ["cpu"]
    assert runtime.devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match="cuda:1"):
        runtime.devices("cuda:1")


def check_mixed_passes(device: Runtime, model: ModelId, architecture: str, tolerance: float) -> None:
    """Tickets that join, leave and pause, up to more rows than the 8 of a batch, equal the eager network on the CPU."""
    a, b, c, d = (
        ticket(model, architecture, rows=rows, passes=passes, seed=seed)
        for seed, (rows, passes) in enumerate([(1, 5), (3, 3), (5, 2), (3, 2)])
    )
    advance(device, a)
    advance(device, a, b)
    advance(device, b)
    advance(device, d)  # as many rows as b, which waits
    advance(device, a)
    advance(device, c, a, b)
    advance(device, d)
    advance(device, a, c)
    for one in (a, b, c, d):
        forecast, attention = expected(architecture, one)
        np.testing.assert_allclose(one.forecast(), forecast, rtol=tolerance, atol=tolerance)
        weights = one.weights()
        assert weights is not None
        np.testing.assert_allclose(weights, attention, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", networks.names())
def test_passes_in_memory_that_the_next_one_writes_to(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's runtime does, on the CPU: all but the recording, pinned memory and waiting for the device."""

    class Stream:
        def synchronize(self) -> None:
            pass

    class Fetched(cuda.Padded):
        """What a pass gives is copied to the host anyway, where that is another memory."""

        def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            forecast, attention, state = super().decode(state, future)
            return forecast.clone(), attention.clone(), state

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    device, model = loaded(tmp_path, architecture)
    plain = device._models[model]
    first = runtime._first_pass(plain, "cpu")
    device.install(model, replace(plain, module=Fetched(plain.module, first, cuda.batch_sizes(8), cuda.eager)))
    device._gpu = True
    check_mixed_passes(device, model, architecture, 1e-5)


def check_gpus(tmp_path: Path, architecture: str) -> None:
    _, model = loaded(tmp_path, architecture)
    for name in runtime.devices("cuda"):
        device = Runtime(name, threads=1, batch_rows=8)
        device.install(model, device.load(model, Store(tmp_path).archive("tiny", 1)))
        check_mixed_passes(device, model, architecture, 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", networks.names())
def test_gpu_answers_like_the_cpu(tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    """As CUDA graphs: nothing in the log says that it had to do without. Warnings of cuDNN would fail it."""
    check_gpus(tmp_path, architecture)
    assert caplog.messages == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_answers_without_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be recorded the answers are the same, and the log has one line of it."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", refuse)
    check_gpus(tmp_path, "attention_lstm")
    assert len(caplog.messages) == len(runtime.devices("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_loads_beside_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Recording one model in a thread changes nothing for the passes of another, and they nothing for it."""
    device = Runtime("cuda:0", threads=1, batch_rows=8)
    _, model = loaded(tmp_path, "attention_lstm")
    archive = Store(tmp_path).archive("tiny", 1)
    device.install(model, device.load(model, archive))
    loader = threading.Thread(target=lambda: [device.load(model, archive) for _ in range(3)], daemon=True)
    loader.start()
    while loader.is_alive():
        one = ticket(model, "attention_lstm", rows=3, passes=2, seed=1)
        advance(device, one)
        advance(device, one)
        np.testing.assert_allclose(one.forecast(), expected("attention_lstm", one)[0], rtol=1e-3, atol=1e-3)
    loader.join()
    assert caplog.messages == []
