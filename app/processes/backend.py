"""What is behind the routes: the engine, what is published, and whose processes these are.

`Local` has everything in this process, each device in a thread. `Remote` is told by the supervisor which devices there
are and what they have loaded, and connects to them. Routes and predictor cannot tell which of the two it is.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from app import published
from app.forecasts.catalogue import Catalogue
from app.lifecycle import Lifecycle
from app.link.engine import Engine, Link, open_link
from app.metrics import Metrics
from app.processes.control import Control, Snapshot
from app.processes.registry import Registry
from app.settings import Policy, Settings
from app.spans import Tracer
from models.signature import Trust

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Parts:
    """What a backend gives."""

    engine: Engine
    catalogue: Catalogue
    is_live: Callable[[], bool]
    """Whether nothing here needs a restart from outside."""
    processes: Callable[[], Mapping[str, int]]
    """The ids of all processes of the service, by name."""
    changed: Callable[[], None]
    """Have the model store looked at at once: it has been changed."""
    folder: Path
    """For what all processes that answer requests keep together, as long as the service runs."""

    def is_ready(self, stall_s: float) -> bool:
        """Whether every version of the start has been tried and one is warm, while a device answers."""
        return self.catalogue.ready and self.engine.serves(stall_s)


class Backend(Protocol):
    """Makes the parts, within the application's lifespan."""

    metrics: Metrics

    def running(
        self, settings: Settings, tracer: Tracer | None = None, /
    ) -> contextlib.AbstractAsyncContextManager[Parts]:
        """The parts, until the end; then what was accepted is finished."""


class Local:
    """Everything in one process: each device is a thread, and nobody mends it but a restart from outside."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    @asynccontextmanager
    async def running(self, settings: Settings, tracer: Tracer | None = None) -> AsyncIterator[Parts]:
        """Start a thread for every device and load what is published."""
        # Torch is only in processes that compute.
        from app.device.loop import Device, device_of
        from app.device.runtime import devices

        engine = Engine(queue_rows=settings.max_queue_rows, max_wait_s=settings.max_wait_ms / 1000)
        links: dict[int, Link] = {}
        started: list[tuple[Device, threading.Thread]] = []
        for number, name in enumerate(devices(settings.device)):
            device = device_of(settings, name, self.metrics, tracer=tracer)
            ours, theirs = socket.socketpair()
            device.connect(theirs)
            thread = threading.Thread(target=_serve, args=(device.serve,), name=f"device-{name}", daemon=True)
            thread.start()
            started.append((device, thread))
            links[number] = await open_link(ours, queue_rows=settings.max_queue_rows)
        trust = None if settings.trusted_key is None else Trust.parse(settings.trusted_key)
        registry = Registry(
            published.read(settings),
            Policy.parse(settings.versions),
            trust=trust,
            load_s=settings.load_s,
            mirror=published.mirror_of(settings),
        )
        await registry.begin()
        loading = asyncio.create_task(_load(registry, engine, links), name="loading")
        loading.add_done_callback(_tell_failure)
        following = asyncio.create_task(registry.follow(settings.poll_s), name="store")
        try:
            with TemporaryDirectory(prefix="foretell-") as folder:
                yield Parts(
                    engine,
                    registry.catalogue,
                    lambda: engine.healthy(settings.stall_s),
                    lambda: {"service": os.getpid()},
                    registry.poke,
                    Path(folder),
                )
        finally:
            loading.cancel()
            following.cancel()
            await asyncio.gather(loading, following, return_exceptions=True)
            await engine.close(settings.drain_s)
            for device, thread in started:
                device.close()
                # A stuck pass ends with the process.
                await asyncio.to_thread(thread.join, 1.0)


class Remote:
    """The devices are other processes; the supervisor says which there are, and mends them."""

    def __init__(
        self, control: socket.socket, metrics_folder: Path, lifecycle: Lifecycle, stop: Callable[[], None]
    ) -> None:
        self.metrics = Metrics(metrics_folder)
        self._folder = metrics_folder.with_name("kept")
        self._control = Control(control)
        self._lifecycle = lifecycle
        self._stop = stop
        self._processes: Mapping[str, int] = {}
        self._generations: dict[int, int] = {}

    @asynccontextmanager
    async def running(self, settings: Settings, _tracer: Tracer | None = None) -> AsyncIterator[Parts]:
        """Follow what the supervisor says."""
        engine = Engine(queue_rows=settings.max_queue_rows, max_wait_s=settings.max_wait_ms / 1000)
        catalogue = Catalogue()
        known = asyncio.Event()
        following = asyncio.create_task(self._follow(engine, catalogue, known), name="control")
        # Connections may be waiting already, and nobody is to be told that a model is not there.
        await known.wait()
        try:
            yield Parts(engine, catalogue, lambda: True, lambda: self._processes, self._control.changed, self._folder)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await engine.close(settings.drain_s)

    async def _follow(self, engine: Engine, catalogue: Catalogue, known: asyncio.Event) -> None:
        try:
            async for snapshot in self._control.snapshots():
                await self._adopt(snapshot, engine, catalogue)
                known.set()
        except Exception:  # whatever it was, this process can be told nothing more
            log.exception("the supervisor cannot be understood")
        # Without it nobody would mend anything or end this process.
        self._stop()
        known.set()

    async def _adopt(self, snapshot: Snapshot, engine: Engine, catalogue: Catalogue) -> None:
        for device, door in snapshot.devices.items():
            if self._generations.get(device) != door.generation:
                with contextlib.suppress(OSError):  # gone again: another snapshot will say so
                    connection = await _connected(door.path)
                    engine.use(device, await open_link(connection, queue_rows=engine.queue_rows))
                    self._generations[device] = door.generation
        catalogue.models, catalogue.trouble = snapshot.models, snapshot.trouble
        catalogue.settled = snapshot.settled
        self._processes = snapshot.processes
        if snapshot.draining:
            self._lifecycle.draining = True
        if snapshot.stopping:
            self._stop()


async def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0)
    try:
        await asyncio.get_running_loop().sock_connect(connection, path)
    except OSError:
        connection.close()
        raise
    return connection


async def _load(registry: Registry, engine: Engine, links: Mapping[int, Link]) -> None:
    for number, link in links.items():
        await registry.load_on(link)
        engine.use(number, link)


def _serve(serve: Callable[[], None]) -> None:
    try:
        serve()
    except Exception:  # the end of its thread: who is connected sees an EOF, and the log why
        log.exception("a device's loop died")


def _tell_failure(loading: "asyncio.Task[None]") -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("loading the models failed", exc_info=error)
