"""A service with everything around it that a fault can be injected into."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak import mix
from tests.app.serving import Process, RedisServer, process, redis_server
from tests.chaos import archives, faults
from tests.chaos.client import Load
from tests.chaos.faults import Clock, MissingError, Proxy, Scene

STALL_S = 5
"""Instead of the service's default of 30 s: a hang is felt for about this and the start of a process."""
ADMIN_KEY = "soak-administration-key"


@dataclass
class Stage:
    """What stands around a service."""

    service: Process
    store: Path
    redis: RedisServer
    proxy: Proxy
    disk: Path | None
    clock: Clock | None

    def scene(self, asking: Load) -> Scene:
        """The same with a load on it."""
        return Scene(self.service, asking, self.redis, self.proxy, self.store, self.disk, self.clock)


@contextmanager
def stage(folder: Path, *, armed: bool = False, cached: bool = True, **settings: object) -> Iterator[Stage]:
    """A service of two HTTP processes on a store of its own.

    Where the machine has them, it has a disk of its own for what is temporary and a clock that can be set. `armed`:
    with one model alone, whose network does what a window tells it. `cached`: with Redis; else nothing is kept.
    """
    store = folder / "store"
    if armed:
        archives.publish_armed(archives.Store(store))
    else:
        mix.publish(store)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder))
        proxy = Proxy(folder / "proxy.sock", folder / "redis.sock")
        stack.callback(proxy.close)
        disk = clock = None
        with contextlib.suppress(MissingError):
            disk = stack.enter_context(faults.small_disk(folder / "disk", "64m"))
        with contextlib.suppress(MissingError):
            clock = stack.enter_context(faults.settable_clock(folder))
        chosen = {
            "HTTP_PROCESSES": 2,
            **({"REDIS_URL": proxy.url} if cached else {"CACHE_BYTES": 0}),
            "STALL_S": STALL_S,
            "POLL_S": 1,
            "DEADLINE_MS": 10_000,
            "ACCESS_LOG": "false",
            "ADMIN_KEY": ADMIN_KEY,
            **settings,
        }
        temporary = None if disk is None else disk / "tmp"
        service = stack.enter_context(process(store, temporary=temporary, **chosen))
        yield Stage(service, store, redis, proxy, disk, clock)
