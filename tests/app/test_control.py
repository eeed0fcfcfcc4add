"""What the supervisor tells the HTTP processes, and what they make of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import anyio
import pytest

from app.forecasts.catalogue import Catalogue, Model, Version
from app.processes.control import CHANGED, Control, Door, Snapshot
from app.ticket import ModelId
from models import networks
from models.store import Traffic
from tests.builders import network, spec_for
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


def snapshot() -> Snapshot:
    """With something of everything in it, and a real spec of every architecture."""
    models = {}
    for number, architecture in enumerate(networks.names(), 1):
        built = network(architecture, roles=("target", "past", "future"), horizon=2)
        spec = spec_for(built, name=f"m{number}", architecture=architecture, clock=number % 2 == 0)
        ready = Version(ModelId(f"m{number}", number, f"sha256:{number}"), "ready", None, spec)
        failed = Version(ModelId(f"m{number}", 100, "sha256:100"), "failed", 'it said "no" \N{SNOWMAN}')
        traffic = {"production": Traffic(split={100: 12.5}, shadow=100, previous=(3, 4))}
        models[f"m{number}"] = Model({number: ready, 100: failed}, {"production": number}, traffic)
    return Snapshot(
        devices={0: Door(path="/tmp/engine-0", generation=3), 1: Door(path="/tmp/engine-1", generation=1)},
        models=models,
        trouble="index.json: line 1",
        processes={"engine-0": 123, "http-0": 456},
        settled=True,
        draining=True,
        stopping=True,
    )


@contextlib.asynccontextmanager
async def control() -> AsyncIterator[tuple[AsyncIterator[Snapshot], socket.socket]]:
    """What a process reads, and the supervisor's end."""
    ours, theirs = socket.socketpair()
    reading = Control(theirs).snapshots()
    with ours, anyio.fail_after(PATIENCE_S):
        try:
            yield reading, ours
        finally:
            await reading.aclose()  # type: ignore[attr-defined]  # it is a generator
            await asyncio.sleep(0)


@pytest.mark.parametrize("sent", [Snapshot(), snapshot()], ids=["empty", "full"])
async def test_snapshot_arrives_as_it_was_sent(sent: Snapshot) -> None:
    """All of it, with specs, aliases and states, so that requests mean there what they mean here."""
    async with control() as (reading, supervisor):
        supervisor.sendall(sent.model_copy(deep=True).pack())
        found = await anext(reading)
    assert found == sent
    assert found.models == sent.models
    for name, model in found.models.items():
        assert type(model) is Model
        assert all(type(version.id) is ModelId for version in model.versions.values())
        assert Catalogue(found.models).resolve(name, None) == Catalogue(sent.models).resolve(name, None)


async def test_catalogue_that_changes_is_told_as_it_is() -> None:
    """Each time is packed what there is at that time, not what there was at the first."""
    sent, catalogue = Snapshot(), Catalogue({"a": Model({1: Version(ModelId("a", 1, "sha256:1"), "loading")}, {})})
    sent.models = catalogue.models
    async with control() as (reading, supervisor):
        supervisor.sendall(sent.pack())
        catalogue.models["a"].versions[1].state = "failed"
        supervisor.sendall(sent.pack())
        states = [(await anext(reading)).models["a"].versions[1].state for _ in range(2)]
    assert states == ["loading", "failed"]


async def test_spec_is_read_once() -> None:
    """What a process knows by its digest it does not read again, and what is gone it forgets."""
    sent = snapshot()
    async with control() as (reading, supervisor):
        supervisor.sendall(sent.pack() + sent.pack())
        first, second = await anext(reading), await anext(reading)
        sent.models["m2"].versions[2].spec = None
        supervisor.sendall(sent.pack())
        third = await anext(reading)
        assert third.models["m2"].versions[2].spec is None
        supervisor.sendall(snapshot().pack())
        fourth = await anext(reading)
    for found in (second, third, fourth):
        assert found.models["m1"].versions[1].spec is first.models["m1"].versions[1].spec
    assert fourth.models["m2"].versions[2].spec == first.models["m2"].versions[2].spec
    assert fourth.models["m2"].versions[2].spec is not first.models["m2"].versions[2].spec


async def test_change_of_the_store_is_told() -> None:
    """Among the signs of life, the supervisor is told at once that it has to look."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    told = Control(theirs)
    told.changed()  # before there is anybody to tell, it is nothing
    with ours, anyio.fail_after(PATIENCE_S):
        reading = told.snapshots()
        ours.send(Snapshot().pack())
        await anext(reading)
        told.changed()
        heard = b""
        while CHANGED not in heard:
            heard += await asyncio.get_running_loop().sock_recv(ours, 100)
        await reading.aclose()  # type: ignore[attr-defined]  # it is a generator
        told.changed()


async def test_snapshots_in_crumbs_and_together() -> None:
    """However they arrive, each is read whole and in order."""
    several = [Snapshot(processes={"http-0": number}) for number in range(5)]
    stream = b"".join(one.pack() for one in [*several, snapshot()])
    async with control() as (reading, supervisor):

        async def send() -> None:
            for start in range(0, len(stream), 1000):
                supervisor.sendall(stream[start : start + 1000])
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        found = [await anext(reading) for _ in range(6)]
        await sending
    assert found == [*several, snapshot()]


@pytest.mark.parametrize("cut", [0, 2, 4, 10])
async def test_supervisor_goes_away(cut: int) -> None:
    """When it ends, in the middle of a word or not, what was whole is read and then there is no more."""
    async with control() as (reading, supervisor):
        supervisor.sendall(Snapshot(draining=True).pack() + Snapshot().pack()[:cut])
        supervisor.close()
        assert [one.draining async for one in reading] == [True]


async def test_supervisor_is_killed() -> None:
    """A connection that breaks off, with something of ours unread, is the same end."""
    async with control() as (reading, supervisor):
        supervisor.sendall(Snapshot().pack())
        first = await anext(reading)
        supervisor.close()
        assert [first, *[one async for one in reading]] == [Snapshot()]


async def test_reader_that_is_called_off_leaves_nothing_open() -> None:
    """Who stops reading closes the connection: the supervisor sees its end."""
    ours, theirs = socket.socketpair()
    with ours:

        async def follow() -> None:
            async for _ in Control(theirs).snapshots():
                pass

        following = asyncio.create_task(follow())
        ours.sendall(Snapshot().pack())
        await asyncio.sleep(0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        ours.setblocking(False)
        with anyio.fail_after(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
