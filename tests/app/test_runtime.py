"""The runtime: what rows get must not depend on who shares their pass."""

import asyncio
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from app import runtime
from app.runtime import Runtime
from app.ticket import ModelId, Ticket
from models import networks
from models.artifact import DigestError
from models.store import Store
from tests.builders import inputs, network, publish_tiny

pytestmark = pytest.mark.anyio

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
        deadline=None,
        answer=asyncio.get_running_loop().create_future(),
    )


def advance(device: Runtime, *tickets: Ticket) -> None:
    for one, part in zip(tickets, device.run(tickets), strict=True):
        one.parts.append(part)


def expected(architecture: str, one: Ticket) -> tuple[np.ndarray, np.ndarray]:
    eager = network(architecture, roles=ROLES, horizon=2)
    with torch.inference_mode():
        forecast, attention = eager.rollout(
            torch.from_numpy(one.window), torch.from_numpy(one.time), torch.from_numpy(one.known), one.passes * 2
        )
    return forecast.numpy(), attention.numpy()


@pytest.mark.parametrize("architecture", networks.names())
async def test_tickets_join_leave_and_pause_without_touching_each_other(tmp_path: Path, architecture: str) -> None:
    """Rows at different steps, of different sizes, merged and split in any way, equal the eager ones alone."""
    device, model = loaded(tmp_path, architecture)
    a, b, c, d = (
        ticket(model, architecture, rows=rows, passes=passes, seed=seed)
        for seed, (rows, passes) in enumerate([(1, 5), (3, 2), (2, 4), (1, 3)])
    )
    advance(device, a)
    advance(device, a, b)
    advance(device, c, b, a)
    advance(device, c)
    advance(device, d)
    advance(device, a, d, c)
    advance(device, d, a, c)
    for one in (a, b, c, d):
        assert one.finished
        forecast, attention = expected(architecture, one)
        np.testing.assert_allclose(one.forecast(), forecast, rtol=1e-5, atol=1e-5)
        weights = one.weights()
        assert weights is not None
        np.testing.assert_allclose(weights, attention, rtol=1e-5, atol=1e-5)


async def test_failed_pass_can_run_again(tmp_path: Path) -> None:
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


async def test_attention_is_left_out_where_nobody_asked(tmp_path: Path) -> None:
    """In one pass, a ticket that asked for attention gets it and its neighbour does not."""
    device, model = loaded(tmp_path, "attention_lstm")
    asks = ticket(model, "attention_lstm", rows=1, passes=1, seed=1)
    not_asks = ticket(model, "attention_lstm", rows=1, passes=1, seed=2)
    not_asks.attention = False
    advance(device, not_asks, asks)
    assert asks.weights() is not None
    assert not_asks.weights() is None


async def test_answer_keeps_no_neighbour_in_memory(tmp_path: Path) -> None:
    """What a ticket holds of a shared pass is its own copy."""
    device, model = loaded(tmp_path, "attention_lstm")
    tickets = [ticket(model, "attention_lstm", rows=1, passes=1, seed=seed) for seed in range(4)]
    advance(device, *tickets)
    assert all(one.parts[0].forecast.base is None for one in tickets)


async def test_state_goes_with_the_last_ticket_that_needs_it(tmp_path: Path) -> None:
    """Megabytes of state are freed when their tickets are, without waiting for the collector of circles."""
    device, model = loaded(tmp_path, "attention_lstm")
    gc.collect()
    gc.disable()
    try:
        done = ticket(model, "attention_lstm", rows=1, passes=1, seed=1)
        gone = ticket(model, "attention_lstm", rows=1, passes=5, seed=2)
        advance(device, done, gone)
        state = weakref.ref(done.state.layout.tensors[0])
        assert state() is not None
        del done, gone
        assert state() is None
    finally:
        gc.enable()


async def test_unloaded_model_is_gone(tmp_path: Path) -> None:
    """After unload its tickets fail, and unloading twice is no error."""
    device, model = loaded(tmp_path, "linear")
    device.unload(model)
    device.unload(model)
    with pytest.raises(KeyError):
        device.run([ticket(model, "linear", rows=1, passes=1, seed=0)])


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", networks.names())
async def test_gpu_answers_like_the_cpu(tmp_path: Path, architecture: str) -> None:
    """The same ticket on every GPU gives what the eager network gives on the CPU."""
    _, model = loaded(tmp_path, architecture)
    for name in runtime.devices("cuda"):
        device = Runtime(name, threads=1, batch_rows=8)
        device.install(model, device.load(model, Store(tmp_path).archive("tiny", 1)))
        one = ticket(model, architecture, rows=3, passes=3, seed=1)
        for _ in range(3):
            advance(device, one)
        np.testing.assert_allclose(one.forecast(), expected(architecture, one)[0], rtol=1e-3, atol=1e-3)
