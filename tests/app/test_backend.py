"""What is behind the routes: an HTTP process that follows the supervisor, and a process that has everything."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
import pytest

from app.device import runtime
from app.errors import ForetellError, NotReadyError
from app.forecasts.catalogue import Model, Version
from app.lifecycle import Lifecycle
from app.link.engine import Outcome
from app.metrics import Metrics
from app.processes import backend
from app.processes.backend import Local, Parts, Remote
from app.processes.control import Door, Snapshot
from app.settings import Settings
from models.store import Store
from tests.app.devices import FakeRuntime, Served, is_answer, numbers_of, order, served, spec
from tests.app.fakes import MODEL
from tests.app.serving import until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The loop of the tests' other service, and the one that uvicorn takes."""
    return "asyncio", {"use_uvloop": request.param}


async def holds(condition: Callable[[], bool]) -> None:
    """Wait until it does."""

    async def is_true() -> bool:
        return condition()

    await until(is_true)


async def outcome_of(parts: Parts, tag: int) -> Outcome | ForetellError:
    """What an order is told."""
    told: asyncio.Future[Outcome | ForetellError] = asyncio.get_running_loop().create_future()
    parts.engine.submit(order(tag), told.set_result)
    with anyio.fail_after(PATIENCE_S):
        return await told


@contextmanager
def engine_at(path: Path) -> Iterator[Served]:
    """A device with MODEL loaded that takes connections there."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with served(prepare=lambda device: device.listen(listener)) as device:
            yield device


@dataclass
class World:
    """An HTTP process's backend and the supervisor's end of its socket."""

    supervisor: socket.socket
    lifecycle: Lifecycle
    stops: list[int]
    parts: Parts

    def tell(self, **fields: object) -> None:
        models = {MODEL.name: Model({1: Version(MODEL, "ready", None, spec())}, {})}
        self.supervisor.sendall(Snapshot.model_validate({"models": models, **fields}).pack())


@asynccontextmanager
async def remote(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Those of several processes would change where all others of this process are kept.
    monkeypatch.setattr(backend, "Metrics", lambda _folder: Metrics())
    ours, theirs = socket.socketpair()
    lifecycle, stops = Lifecycle(), list[int]()
    made = Remote(theirs, Path("/nowhere"), lifecycle, lambda: stops.append(1))
    with ours:
        ours.sendall(Snapshot().pack())
        async with made.running(Settings(drain_s=PATIENCE_S)) as parts:
            yield World(ours, lifecycle, stops, parts)


async def test_http_process_uses_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices, the models and the processes are those of the last snapshot."""
    async with remote(monkeypatch) as w:
        with pytest.raises(NotReadyError):
            w.parts.engine.check()
        with engine_at(tmp_path / "engine"):
            w.tell(devices={0: Door(path=str(tmp_path / "engine"), generation=1)}, processes={"engine-0": 7})
            await holds(lambda: w.parts.engine.serves(60))
            assert w.parts.catalogue.resolve(None, None) == (MODEL, spec(), None)
            assert w.parts.processes() == {"engine-0": 7}
            assert is_answer(await outcome_of(w.parts, 1), order(1))
        assert w.stops == []


async def test_http_process_follows_a_device_to_its_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new generation is connected to, one that is known is not again, and a door that is gone is no end."""
    door = tmp_path / "engine"
    async with remote(monkeypatch) as w:
        with engine_at(door) as first:
            for processes in (1, 2):
                w.tell(devices={0: Door(path=str(door), generation=1)}, processes={"engine-0": processes})
                await holds(lambda: w.parts.processes() == {"engine-0": processes})  # noqa: B023  awaited at once
            assert w.parts.engine.serves(60)
            await holds(lambda: len(first.device._clients) == 2)  # the test's own, and one
        await holds(lambda: not w.parts.engine.serves(60))
        door.unlink()
        w.tell(devices={0: Door(path=str(door), generation=2)}, processes={"engine-0": 3})
        await holds(lambda: w.parts.processes() == {"engine-0": 3})
        with engine_at(door):
            w.tell(devices={0: Door(path=str(door), generation=2)})
            await holds(lambda: w.parts.engine.serves(60))
            assert is_answer(await outcome_of(w.parts, 1), order(1))


async def test_http_process_is_told_to_drain_and_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """First it is not ready any more, later it ends."""
    async with remote(monkeypatch) as w:
        w.tell(draining=True)
        await holds(lambda: w.lifecycle.draining)
        assert w.stops == []
        w.tell(draining=True, stopping=True)
        await holds(lambda: bool(w.stops))


async def test_supervisor_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the process ends by itself; until then it serves what it has."""
    async with remote(monkeypatch) as w:
        with engine_at(tmp_path / "engine"):
            w.tell(devices={0: Door(path=str(tmp_path / "engine"), generation=1)})
            await holds(lambda: w.parts.engine.serves(60))
            w.supervisor.close()
            await holds(lambda: bool(w.stops))
            assert is_answer(await outcome_of(w.parts, 1), order(1))


async def test_supervisor_that_cannot_be_understood(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is as good as none, and the log says why."""
    async with remote(monkeypatch) as w:
        w.supervisor.sendall(b"\x02\0\0\0[]")
        await holds(lambda: bool(w.stops))
    assert "the supervisor cannot be understood" in caplog.text


async def test_supervisor_that_never_said_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose supervisor is gone before its first word starts, and ends, all the same."""
    monkeypatch.setattr(backend, "Metrics", lambda _folder: Metrics())
    ours, theirs = socket.socketpair()
    ours.close()
    stops: list[int] = []
    with anyio.fail_after(PATIENCE_S):
        async with Remote(theirs, Path("/nowhere"), Lifecycle(), lambda: stops.append(1)).running(Settings()):
            pass
    assert stops == [1]


# Everything in one process


@asynccontextmanager
async def local(
    monkeypatch: pytest.MonkeyPatch, root: Path, *runtimes: FakeRuntime
) -> AsyncIterator[tuple[Parts, list[FakeRuntime]]]:
    given = iter(runtimes)
    monkeypatch.setattr(runtime, "devices", lambda _: [f"fake:{number}" for number in range(len(runtimes))])
    monkeypatch.setattr(runtime, "Runtime", lambda *_, **__: next(given))
    with anyio.fail_after(PATIENCE_S):
        async with Local().running(Settings(artifacts=root, drain_s=PATIENCE_S)) as parts:
            yield parts, list(runtimes)


async def test_every_device_has_a_thread_and_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is published is loaded on each, and what one computes is the answer."""
    publish_tiny(Store(tmp_path), MODEL.name)
    async with local(monkeypatch, tmp_path, FakeRuntime(), FakeRuntime()) as (parts, runtimes):
        await holds(lambda: parts.catalogue.ready)
        await holds(lambda: all(len(one.models) == 1 for one in runtimes))
        model, *_ = parts.catalogue.resolve(None, None)
        asked = order(3, model=model)
        told: asyncio.Future[Outcome | ForetellError] = asyncio.get_running_loop().create_future()
        parts.engine.submit(asked, told.set_result)
        outcome = await told
        assert isinstance(outcome, Outcome)
        assert np.array_equal(outcome.numbers, numbers_of(asked))
        assert parts.is_live()
        assert list(parts.processes()) == ["service"]


@pytest.mark.parametrize("stuck", [0, 1])
async def test_end_while_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: int) -> None:
    """A service that is ended while a device loads ends, and leaves no connection open."""
    publish_tiny(Store(tmp_path), MODEL.name)
    given = FakeRuntime(), FakeRuntime()
    given[stuck].may_load.clear()
    with contextlib.closing(_Letting(given[stuck])):
        async with local(monkeypatch, tmp_path, *given) as (_, runtimes):
            await holds(lambda: bool(runtimes[stuck].loaded))


class _Letting:
    """Lets a runtime go when it is closed."""

    def __init__(self, held: FakeRuntime) -> None:
        self._held = held

    def close(self) -> None:
        self._held.let_go()


async def test_thread_that_dies_is_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a device gone the process says that it needs a restart, and why is in the log."""
    publish_tiny(Store(tmp_path), MODEL.name)
    async with local(monkeypatch, tmp_path, FakeRuntime(), FakeRuntime()) as (parts, runtimes):
        await holds(lambda: all(len(one.models) == 1 for one in runtimes))

        def die(_: object) -> None:
            raise AssertionError("a bug")

        monkeypatch.setattr("app.device.scheduler.Scheduler._next_batch", die)
        await holds(lambda: not parts.is_live())
        await holds(lambda: "a device's loop died" in caplog.text)
