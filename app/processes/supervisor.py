"""Starts the processes of the service, mends them, and ends them in good order.

An engine process for each device and several HTTP processes, which take their requests to the engines over Unix
sockets. This process has the registry and tells the HTTP processes what there is; no request passes through it.
"""

import asyncio
import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from app import published
from app.counts import Ended, served
from app.link.engine import PING_S, Link, open_link
from app.link.running import running_in
from app.processes.control import CHANGED, Door, Snapshot
from app.processes.registry import Registry
from app.processes.stacks import stacks_of
from app.settings import Policy, Settings, child_environment
from models.signature import Trust

log = logging.getLogger("app")

_SOON_S = 10.0
"""A process that ends sooner than this after it was started counts as one that cannot start."""
_TRIES = 5
"""So many in a row, and the service gives up: then whoever runs it has to look."""
_BLAMED = 0.25
"""What an end counts that is a version's fault, as it seems: a few of those are left out one after the other."""
_PAUSE_S = 0.5
"""Before the second try; each further one waits twice as long."""
_GOODBYE_S = 5.0
"""How long a process may take to end beyond the time that accepted work has."""
_GO = b"!"
"""To an engine, that it is to end."""
_BACKLOG = 2048
_ROOM = 1024
_NO_SUCH_DEVICE = 2
_PREFIX = "foretell-"
_MARK = "in-use"


async def supervise(settings: Settings, http_processes: int) -> int:
    """Run the service in several processes until it is told to stop; the exit status."""
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder, _in_use(Path(folder)):
            return await Supervisor(settings, http_processes, Path(folder)).run()
    except OSError as error:
        # Where TMPDIR is too long, for a Unix socket; or there is no folder that can be written to.
        log.error("cannot have sockets in TMPDIR: %s", error.strerror or error)  # noqa: TRY400
        return 1


class Child:
    """A process under way, and our end of the socket over which it is told things."""

    def __init__(self, name: str, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.process = process
        self.reader = reader
        self.writer = writer
        self.ended = asyncio.ensure_future(process.wait())

    def kill(self) -> None:
        """End it without a chance to say goodbye, unless it has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


Life = Callable[[Child], Awaitable[None]]
"""What is done with a process from its start to its end."""


class Supervisor:
    """One run of the service."""

    def __init__(self, settings: Settings, http_processes: int, folder: Path) -> None:
        self._settings = settings
        self._http_processes = http_processes
        self._folder = folder
        self._metrics_folder = folder / "metrics"
        self._ended = Ended(self._metrics_folder)
        trust = None if settings.trusted_key is None else Trust.parse(settings.trusted_key)
        policy = Policy.parse(settings.versions)
        self._registry = Registry(
            published.read(settings),
            policy,
            self._publish,
            trust=trust,
            load_s=settings.load_s,
            mirror=published.mirror_of(settings),
        )
        self._snapshot = Snapshot(processes={"supervisor": os.getpid()})
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._devices: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        """The devices' names, once the first engine has told them."""
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done with the exit status when it is time to end."""

    async def run(self) -> int:
        """Until told to stop by a signal, or until a process cannot be kept up; the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._end_with, 0)
        self._metrics_folder.mkdir()
        try:
            listeners = _listeners(self._settings.host, self._settings.port, self._http_processes)
        except OSError as error:
            where = f"{self._settings.host}:{self._settings.port}"
            log.error("cannot listen on %s: %s", where, (error.strerror or str(error)).lower())  # noqa: TRY400
            return 1
        await self._registry.begin()
        following = asyncio.create_task(self._registry.follow(self._settings.poll_s), name="store")
        try:
            self._keep_engine(0)
            either: list[asyncio.Future[Any]] = [self._devices, self._over]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.done():
                self._start(listeners, self._devices.result())
            return await self._over
        finally:
            following.cancel()
            self._end_with(0)
            for listener in listeners:
                listener.close()
            await self._end()

    def _start(self, listeners: list[socket.socket], devices: list[str]) -> None:
        """Everything but the first engine, which is there."""
        for number in range(1, len(devices)):
            self._keep_engine(number)
        for number, listener in enumerate(listeners):
            self._keep("http", number, listener, self._tell)
        host, port = listeners[0].getsockname()[:2]
        scheme = "http" if self._settings.tls_cert_file is None else "https"
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        log.info("Foretell is running on %s (HTTP processes: %d, devices: %s)", url, len(listeners), ", ".join(devices))

    # Its end

    def _drain(self) -> None:
        """SIGTERM: not ready at once, but serving on for `grace_s`; a second one ends the grace."""
        if self._snapshot.draining:
            self._end_with(0)
            return
        log.info("SIGTERM: not ready from now on, serving for another %g s", self._settings.grace_s)
        self._snapshot.draining = True
        self._publish()
        asyncio.get_running_loop().call_later(self._settings.grace_s, self._end_with, 0)

    def _end_with(self, status: int) -> None:
        if not self._over.done():
            self._over.set_result(status)

    async def _end(self) -> None:
        """HTTP processes finish what they accepted, then the engines go; whatever does not go in time is killed."""
        self._snapshot.draining = self._snapshot.stopping = True
        self._publish()
        await self._gone("http", self._settings.drain_s + _GOODBYE_S)
        in_use = {f"engine-{number}" for number in self._snapshot.devices}
        for child in self._children.values():
            # A word, and not just the end that it would see if this process had died.
            child.writer.write(_GO)
            child.writer.close()
            if child.name not in in_use:
                child.kill()  # it loads, and has nothing to finish
        await self._gone("engine", _GOODBYE_S)

    async def _gone(self, role: str, within_s: float) -> None:
        keepers = [keeper for name, keeper in self._keepers.items() if name.startswith(role)]
        if not keepers:
            return
        await asyncio.wait(keepers, timeout=within_s)
        for child in self._children.values():
            if child.name.startswith(role):
                log.error("%s does not end and is killed", child.name)
                child.kill()
        await asyncio.wait(keepers)

    # Keeping processes up

    def _keep(self, role: str, number: int, listener: socket.socket, life: Life) -> None:
        name = f"{role}-{number}"
        self._keepers[name] = asyncio.create_task(self._keep_up(role, number, listener, life), name=name)
        self._keepers[name].add_done_callback(self._check)

    def _check(self, keeper: "asyncio.Task[None]") -> None:
        """Nobody would mend what that keeper kept."""
        if (error := keeper.exception()) is not None:
            log.critical("%s is kept up no longer", keeper.get_name(), exc_info=error)
            self._end_with(1)

    async def _keep_up(self, role: str, number: int, listener: socket.socket, life: Life) -> None:
        """Start a process again and again, as long as that makes sense."""
        name = f"{role}-{number}"
        ends, failures = 0, 0.0
        while not self._over.done():
            began, blamed, killed = time.monotonic(), self._registry.blamed, False
            try:
                status = await self._live(role, number, listener, life)
            except OSError as error:
                log.error("%s cannot be started: %s", name, error.strerror or error)  # noqa: TRY400
            else:
                if self._over.done():
                    return
                if status == _NO_SUCH_DEVICE:
                    self._end_with(status)  # it has said why
                    return
                log.error("%s ended with status %d%s; it is started again", name, status, _name_of(status))
                killed = status == -signal.SIGKILL  # from outside
            soon = time.monotonic() - began < _SOON_S
            # What dies of a version starts without it before long; of several bad ones, only after some more ends.
            weight = 1.0 if self._registry.blamed == blamed or killed else _BLAMED
            ends, failures = (ends + 1, failures + weight) if soon else (0, 0.0)
            if failures >= _TRIES:
                log.error("%s ended %d times in a row soon after its start: giving up", name, ends)
                self._end_with(1)
            elif failures:
                await asyncio.wait([self._over], timeout=_PAUSE_S * 2 ** max(0.0, failures - 1))

    async def _live(self, role: str, number: int, listener: socket.socket, life: Life) -> int:
        """A process from its start to its end; its status. OSError where it cannot be started."""
        child = await self._spawn(role, number, listener)
        stalled = False
        try:
            if not self._over.done():
                await life(child)
                # It has hung up; it may need a moment to say why.
                await asyncio.wait([child.ended], timeout=_GOODBYE_S)
        except TimeoutError:
            stalled = not _is_stopped(child.process.pid)
            # One that is stopped tells nothing.
            told = await stacks_of(child.process.pid, self._stacks(role, number)) if stalled else ""
            words = f"%s has not answered for %g s and is killed{'' if stalled else ': somebody has stopped it'}"
            log.error(words, child.name, self._settings.stall_s, extra={"stacks": told} if told else None)  # noqa: TRY400
        except Exception:  # nothing that goes wrong with one process may end the keeping of it
            log.exception("%s is ended", child.name)
        child.kill()
        status = await child.ended
        # A SIGKILL comes from outside; of anything else the model may be the cause that was being computed.
        if role == "engine" and (stalled or status not in (0, -signal.SIGKILL)):
            self._blame(number)
        self._bury(child)
        return status

    def _blame(self, engine: int) -> None:
        digest = running_in(self._running(engine))
        if digest is not None:
            self._registry.died(digest)

    def _running(self, engine: int) -> Path:
        """Where an engine says which model it computes."""
        return self._folder / f"running-{engine}"

    def _stacks(self, role: str, number: int) -> Path:
        """Where a process tells what its threads are at."""
        return self._folder / f"stacks-{role}-{number}"

    async def _spawn(self, role: str, number: int, listener: socket.socket) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs, _deaf():
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "app.worker", role,
                    "--number", str(number),
                    "--listener", str(listener.fileno()),
                    "--control", str(theirs.fileno()),
                    "--metrics", str(self._metrics_folder),
                    "--running", str(self._running(number)),
                    "--stacks", str(self._stacks(role, number)),
                    env=child_environment(),
                    pass_fds=(listener.fileno(), theirs.fileno()),
                    # A Ctrl-C goes to everyone in the terminal's foreground group; this process sees to the others.
                    process_group=0,
                )  # fmt: skip
        except OSError:
            ours.close()
            raise
        child = Child(f"{role}-{number}", process, *await asyncio.open_unix_connection(sock=ours))
        self._children[child.name] = child
        self._snapshot.processes[child.name] = process.pid
        self._publish()
        return child

    def _bury(self, child: Child) -> None:
        child.writer.close()
        del self._children[child.name], self._snapshot.processes[child.name]
        try:
            self._ended.take(child.process.pid)
        except Exception:  # whatever it left behind, its place is to be taken
            log.exception("what %s counted cannot be kept", child.name)
        self._publish()

    # An engine process

    def _keep_engine(self, number: int) -> None:
        path = self._folder / f"engine-{number}"
        # It stays when the process goes: who connects meanwhile waits for the next one.
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
        except OSError:
            listener.close()
            raise
        listener.listen(_BACKLOG)
        generations = itertools.count(1)

        async def life(child: Child) -> None:
            await self._use(child, number, Door(path=str(path), generation=next(generations)))

        self._keep("engine", number, listener, life)
        self._keepers[f"engine-{number}"].add_done_callback(lambda _: listener.close())

    async def _use(self, child: Child, number: int, door: Door) -> None:
        """Load everything on a fresh engine, let it be used, and stay until it is gone."""
        told = await heard(child.reader.readline())
        if not told:
            return
        if not self._devices.done():
            self._devices.set_result(json.loads(told))
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(door.path)
        link = await open_link(connection, queue_rows=self._settings.max_queue_rows)
        loading = asyncio.create_task(self._load(link, number, door))
        try:
            while link.alive:
                link.ping()
                await asyncio.wait([link.lost], timeout=PING_S)
                if loading.done():
                    loading.result()  # an engine with less than everything is of no use
                if link.stalled_s > self._settings.stall_s:
                    raise TimeoutError
        finally:
            link.close()
            await asyncio.wait([loading])
            self._snapshot.devices.pop(number, None)
            self._publish()

    async def _load(self, link: Link, number: int, door: Door) -> None:
        await self._registry.load_on(link)
        if link.alive:
            self._snapshot.devices[number] = door
            self._publish()

    # An HTTP process

    async def _tell(self, child: Child) -> None:
        """It is told of every change by `_publish`; stay until it is gone, or hangs."""
        async with asyncio.timeout(None) as silence:  # its start takes what it takes
            while told := await heard(child.reader.read(_ROOM)):
                silence.reschedule(asyncio.get_running_loop().time() + self._settings.stall_s)
                if CHANGED in told:
                    self._registry.poke()

    def _publish(self) -> None:
        catalogue = self._registry.catalogue
        self._snapshot.models, self._snapshot.trouble = catalogue.models, catalogue.trouble
        self._snapshot.settled = catalogue.settled
        told = self._snapshot.pack()
        for child in self._children.values():
            if child.name.startswith("http"):
                child.writer.write(told)
        try:
            self._ended.follow(served(catalogue.versions()))
        except Exception:  # whatever is in the files, the versions are served
            log.exception("figures of versions that are gone stay")


async def heard(reading: Coroutine[Any, Any, bytes]) -> bytes:
    """What a process says next; nothing once it has hung up.

    One that went without reading what it was told last has hung up too, though the system calls it a reset.
    """
    try:
        return await reading
    except ConnectionError:
        return b""


def _name_of(status: int) -> str:
    """Of the signal that ended a process, where one did."""
    return f" ({signal.Signals(-status).name})" if -status in set(signal.Signals) else ""


def _is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process (SIGSTOP): then its silence is not its own fault."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Listening sockets of one address; the kernel spreads connections over them.

    One for each process instead of one for all: a process that accepts takes all that wait, and leaves the others idle.
    They listen from now on, so that another service that starts at the same time cannot share the address.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    first = _bound(family, kind, address, shared=False)
    if count == 1:
        return [first]
    # The first, which shares with nobody, has shown that the address is free.
    address = first.getsockname()
    first.close()
    return [_bound(family, kind, address, shared=True) for _ in range(count)]


def _bound(family: int, kind: int, address: object, *, shared: bool) -> socket.socket:
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(address)  # type: ignore[arg-type]  # whatever getaddrinfo gave
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Mark our folder as ours, and remove those of services that were killed: nobody else does."""
    with (folder / _MARK).open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        for other in folder.parent.glob(f"{_PREFIX}*/{_MARK}"):
            with contextlib.suppress(OSError):
                _remove_if_left(other)
        yield


def _remove_if_left(mark: Path) -> None:
    """The folder of that mark, if its service is gone. OSError where it is not, or not one of ours: anybody may put
    things into a common folder for temporary ones.
    """
    folder = mark.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid():
        return
    found = os.open(mark, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(found).st_mode):
            # Whoever runs holds theirs, and with the process goes the lock.
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)
    finally:
        os.close(found)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A process started here hears no signal that is meant for all before it has learned to ignore it."""
    meant_for_all = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, meant_for_all)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, meant_for_all)
