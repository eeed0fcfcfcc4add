"""The engine: where tickets go when there are several devices, and what is told when one is stuck or dead."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from app.engine import Device, Engine
from app.errors import DeviceLostError, DrainingError, EngineDiedError
from app.ticket import ModelId, Part, Ticket
from models.artifact import Artifact, ArtifactError
from tests.app.fakes import MODEL, SilentWatcher, answer_of, is_right, settle, ticket
from tests.app.serving import until
from tests.builders import network, spec_for

pytestmark = pytest.mark.anyio


class FakeRuntime:
    """Its passes wait in the device's thread until they are let go."""

    def __init__(self, *, holds: bool = False, fails: bool = False, lost: bool = False) -> None:
        self.lost = lost
        self.models: set[ModelId] = set()
        self.tickets: list[Ticket] = []
        self.fails = fails
        self.let_go = threading.Event()
        if not holds:
            self.let_go.set()

    def run(self, tickets: Sequence[Ticket]) -> list[Part]:
        self.tickets.extend(tickets)
        assert self.let_go.wait(60)
        if self.lost:
            raise DeviceLostError("an illegal memory access")
        return [Part(answer_of(one, len(one.parts)), None) for one in tickets]

    def load(self, model: ModelId, archive: Path) -> Artifact:
        if self.fails:
            raise ArtifactError("the example fails")
        eager = network()
        return Artifact(spec_for(eager), model.digest, eager)

    def install(self, model: ModelId, loaded: Artifact) -> None:
        self.models.add(model)

    def unload(self, model: ModelId) -> None:
        self.models.discard(model)


@asynccontextmanager
async def engine(*runtimes: FakeRuntime) -> AsyncIterator[Engine]:
    made = Engine(["cpu"] * len(runtimes), SilentWatcher(), queue_rows=100, batch_rows=4, threads=1)
    for device, runtime in zip(made.devices, runtimes, strict=True):
        device.runtime = runtime  # type: ignore[assignment]  # a fake
    await settle()
    try:
        yield made
    finally:
        for runtime in runtimes:
            runtime.let_go.set()
        await made.close(60)


async def test_tickets_go_where_fewest_rows_wait() -> None:
    """With one device busy, the next ticket runs on the other."""
    first, second = FakeRuntime(holds=True), FakeRuntime(holds=True)
    async with engine(first, second) as e:
        one, two = ticket(1), ticket(2)
        e.submit([one])
        e.submit([two])
        assert e.rows == 2
        first.let_go.set()
        second.let_go.set()
        await asyncio.gather(one.answer, two.answer)
        assert (first.tickets, second.tickets) == ([one], [two])
        assert is_right(one)
        assert is_right(two)


async def test_dead_device_leaves_the_others_serving() -> None:
    """Work goes on where it can, and the engine says that it is not healthy."""
    first, second = FakeRuntime(), FakeRuntime()
    async with engine(first, second) as e:
        kill(e.devices[0])
        await settle()
        one = ticket(1)
        e.submit([one])
        await one.answer
        assert second.tickets == [one]
        assert not e.healthy(stall_s=60)


async def test_last_dead_device_refuses() -> None:
    """With no device left, a request is refused at once."""
    async with engine(FakeRuntime()) as e:
        kill(e.devices[0])
        await settle()
        with pytest.raises(EngineDiedError):
            e.check()


def kill(device: Device) -> None:
    device._serving.cancel()


async def test_lost_device_does_not_draw_the_traffic() -> None:
    """A device that fails as a whole fails who waits for it once; then the others get the work, and health tells."""
    broken, good = FakeRuntime(lost=True), FakeRuntime()
    async with engine(broken, good) as e:
        unlucky = ticket(0)
        e.submit([unlucky])
        with pytest.raises(EngineDiedError):
            await unlucky.answer
        lucky = [ticket(tag) for tag in range(1, 20)]
        for one in lucky:
            e.submit([one])
            await one.answer
        assert good.tickets == lucky
        assert not e.healthy(stall_s=60)


async def test_stuck_pass_is_not_healthy() -> None:
    """A pass that does not come back makes the engine unhealthy for as long as it lasts."""
    runtime = FakeRuntime(holds=True)
    async with engine(runtime) as e:
        assert e.healthy(stall_s=0)
        one = ticket(1)
        e.submit([one])
        await until(lambda: _true(not e.healthy(stall_s=0)))
        assert e.healthy(stall_s=3600)
        runtime.let_go.set()
        await one.answer
        await until(lambda: _true(e.healthy(stall_s=0)))


async def _true(value: bool) -> bool:
    return value


async def test_model_is_on_every_device_or_on_none() -> None:
    """A load that fails on one device leaves the model on no other."""
    good, bad = FakeRuntime(), FakeRuntime(fails=True)
    async with engine(good, bad) as e:
        with pytest.raises(ArtifactError):
            await e.load(MODEL, Path("model.pt"))
        assert good.models == set()
        bad.fails = False
        await e.load(MODEL, Path("model.pt"))
        assert good.models == bad.models == {MODEL}
        e.unload(MODEL)
        assert good.models == bad.models == set()


async def test_closing_finishes_what_was_accepted() -> None:
    """Work under way is answered, new work is refused."""
    runtime = FakeRuntime(holds=True)
    async with engine(runtime) as e:
        one = ticket(1, passes=3)
        e.submit([one])
        closing = asyncio.create_task(e.close(60))
        await settle()
        with pytest.raises(DrainingError):
            e.submit([ticket(2)])
        runtime.let_go.set()
        await closing
        assert is_right(one)


async def test_closing_does_not_wait_for_ever() -> None:
    """What a stuck device does not finish in time is told so."""
    runtime = FakeRuntime(holds=True)
    async with engine(runtime) as e:
        one = ticket(1)
        e.submit([one])
        await until(lambda: _true(bool(runtime.tickets)))
        await e.close(0.01)
        with pytest.raises(EngineDiedError):
            await one.answer


async def test_devices_share_the_work() -> None:
    """Of many tickets none is lost or mixed up between two devices."""
    runtimes = FakeRuntime(), FakeRuntime()
    async with engine(*runtimes) as e:
        tickets = [ticket(tag, passes=1 + tag % 5, rows=1 + tag % 3) for tag in range(40)]
        for one in tickets:
            e.submit([one])
        await asyncio.gather(*(one.answer for one in tickets))
        assert all(is_right(one) for one in tickets)
        assert all(runtime.tickets for runtime in runtimes)
        assert np.sum([len(set(runtime.tickets)) for runtime in runtimes]) == len(tickets)
