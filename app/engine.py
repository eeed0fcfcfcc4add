"""The devices: on each a scheduler, a runtime and the thread that it runs in. What the predictor submits to."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.clock import MonotonicClock
from app.runtime import Runtime
from app.scheduler import Scheduler, Watcher
from app.ticket import ModelId, Part, Ticket
from models.spec import Spec


class Device:
    """One device with its queue."""

    def __init__(self, name: str, watcher: Watcher, *, queue_rows: int, batch_rows: int, threads: int) -> None:
        self.name = name
        self.runtime = Runtime(name, threads=threads, batch_rows=batch_rows)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"device-{name}")
        self._loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self._run, MonotonicClock(), watcher, queue_rows=queue_rows, batch_rows=batch_rows)
        self._serving = self._loop.create_task(self.scheduler.serve(), name=f"scheduler-{name}")

    async def close(self, within_s: float) -> None:
        """Finish what was accepted, for so long at most; then tell the rest."""
        self.scheduler.close()
        await asyncio.wait([self._serving], timeout=within_s)
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _run(self, tickets: Sequence[Ticket]) -> Sequence[Part]:
        return await self._loop.run_in_executor(self._thread, self.runtime.run, tickets)


class Engine:
    """All devices. Every model is on every device; tickets go where the fewest rows are waiting."""

    def __init__(
        self, names: Sequence[str], watcher: Watcher, *, queue_rows: int, batch_rows: int, threads: int
    ) -> None:
        self.batch_rows = batch_rows
        self.queue_rows = queue_rows
        self.devices = [
            Device(name, watcher, queue_rows=queue_rows, batch_rows=batch_rows, threads=threads) for name in names
        ]

    @property
    def rows(self) -> int:
        """Accepted and not yet answered, on all devices."""
        return sum(device.scheduler.rows for device in self.devices)

    def check(self) -> None:
        """Raise what `submit` would raise for a single row now: a full engine refuses before anyone parses."""
        self._idlest().scheduler.check()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them on one device, or none; the errors of `Scheduler.submit`."""
        self._idlest().scheduler.submit(tickets)

    def healthy(self, stall_s: float) -> bool:
        """Whether every device's loop lives and no pass has been running for longer than that."""
        return all(not device.scheduler.died and device.scheduler.stalled_s <= stall_s for device in self.devices)

    async def load(self, model: ModelId, archive: Path) -> Spec:
        """Load a model on every device, beside what runs; the errors of `Runtime.load`, leaving it on none."""
        loaded = [await asyncio.to_thread(device.runtime.load, model, archive) for device in self.devices]
        # Here and not in the thread: one that nobody waits for any more cannot be stopped, and must not install.
        for device, artifact in zip(self.devices, loaded, strict=True):
            device.runtime.install(model, artifact)
        return loaded[0].spec

    def unload(self, model: ModelId) -> None:
        """Forget a model on every device."""
        for device in self.devices:
            device.runtime.unload(model)

    async def close(self, within_s: float) -> None:
        """Drain every device."""
        await asyncio.gather(*(device.close(within_s) for device in self.devices))

    def _idlest(self) -> Device:
        # A dead device comes last, so that the others serve on.
        return min(self.devices, key=lambda device: (device.scheduler.died, device.scheduler.rows))
