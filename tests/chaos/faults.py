"""Faults that are injected into a running service and its surroundings: context managers that heal at their end.

    with engine_hangs(scene):
        scene.asking.wait_for_right()

Each works on real processes, files and sockets. Those that need what a machine may lack (root, a library) say so by
`MissingError`, which tests turn into a skip.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from models.store import INDEX
from tests.app.serving import Process, RedisServer, running_of, wait_until
from tests.chaos.client import Load


class MissingError(Exception):
    """What this machine lacks for a fault."""


@dataclass
class Scene:
    """What a fault can be injected into."""

    service: Process
    asking: Load
    redis: RedisServer | None = None
    proxy: "Proxy | None" = None
    store: Path | None = None
    disk: Path | None = None
    """A disk of its own, on which the service has its temporary files."""
    clock: "Clock | None" = None
    """What the service takes for the time."""


# Processes


@contextmanager
def engine_killed(scene: Scene) -> Iterator[None]:
    """SIGKILL to the engine process; the supervisor starts another."""
    _kill(scene, "engine-0")
    yield
    wait_until(scene.service.is_ready)


@contextmanager
def engine_hangs(scene: Scene) -> Iterator[None]:
    """The engine process stops (SIGSTOP); the supervisor is to notice, kill and replace it."""
    with _stopped(scene, "engine-0"):
        yield


@contextmanager
def http_killed(scene: Scene) -> Iterator[None]:
    """SIGKILL to an HTTP process: the connections that it has break, and nothing can be done about that."""
    _kill(scene, "http-0")
    yield
    wait_until(scene.service.is_ready)


@contextmanager
def http_hangs(scene: Scene) -> Iterator[None]:
    """An HTTP process stops: as an event loop that never turns again."""
    with _stopped(scene, "http-0"):
        yield


def _kill(scene: Scene, name: str) -> None:
    pid = scene.service.children[name]
    # Stopped first: so nothing can come to it between the look at its connections and its end.
    os.kill(pid, signal.SIGSTOP)
    scene.asking.doom(peers_of(pid))
    scene.asking.injected()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: scene.service.children.get(name, pid) != pid)


@contextmanager
def _stopped(scene: Scene, name: str) -> Iterator[None]:
    pid = scene.service.children[name]
    os.kill(pid, signal.SIGSTOP)
    # Whoever mends it kills it, and what it had accepted is lost with it; it accepts nothing more.
    scene.asking.doom(peers_of(pid))
    scene.asking.injected()
    try:
        yield
        wait_until(lambda: scene.service.children.get(name, pid) != pid)
        wait_until(scene.service.is_ready)
    finally:
        if running_of([pid]):
            os.kill(pid, signal.SIGCONT)


def peers_of(pid: int) -> set[int]:
    """The remote ports of the TCP connections that a process has accepted, by /proc (IPv4)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[2].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


@contextmanager
def descriptors_run_out(scene: Scene) -> Iterator[None]:
    """No process of HTTP may open any more than it has: nothing can be accepted. Those that are there serve on."""
    limits = {}
    for name, pid in scene.service.children.items():
        if name.startswith("http"):
            limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(
                pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), limits[pid][1])
            )
    scene.asking.injected()
    try:
        yield
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


@contextmanager
def many_connections(scene: Scene, number: int = 600) -> Iterator[None]:
    """So many clients that connect and say nothing."""
    connections = []
    try:
        for _ in range(number):
            connection = socket.socket()
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect(scene.service.address)
            connections.append(connection)
        scene.asking.injected()
        yield
    finally:
        for connection in connections:
            connection.close()


# Redis


def _redis(scene: Scene) -> RedisServer:
    if scene.redis is None:
        raise MissingError("a Redis")
    return scene.redis


@contextmanager
def redis_killed(scene: Scene) -> Iterator[None]:
    """It goes, with all that it kept, and comes back empty."""
    server = _redis(scene)
    scene.asking.injected()
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def redis_hangs(scene: Scene) -> Iterator[None]:
    """It takes connections and answers nothing, and at the end everything at once."""
    server = _redis(scene)
    scene.asking.injected()
    server.hang()
    try:
        yield
    finally:
        server.go_on()


@contextmanager
def redis_full(scene: Scene) -> Iterator[None]:
    """It takes nothing more (maxmemory, noeviction)."""
    server = _redis(scene)
    scene.asking.injected()
    server.client.config_set("maxmemory-policy", "noeviction")
    server.client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        server.client.config_set("maxmemory", 0)


@contextmanager
def redis_wants_a_password(scene: Scene) -> Iterator[None]:
    """Nobody who is not known to it gets anything, those that are connected neither."""
    server = _redis(scene)
    scene.asking.injected()
    server.client.config_set("requirepass", "secret")
    own = server.client.client_id()
    for client in server.client.client_list():
        if int(client["id"]) != own:
            server.client.client_kill_filter(_id=client["id"])
    try:
        yield
    finally:
        server.client.config_set("requirepass", "")


def _answers(client: Redis) -> dict[bytes, bytes]:
    """What it keeps for the service."""
    keys: list[bytes] = client.keys("foretell:1:*")  # type: ignore[assignment]  # the library's
    found = {key: client.get(key) for key in keys if client.type(key) == b"string"}
    return {key: value for key, value in found.items() if isinstance(value, bytes)}


@contextmanager
def redis_poisoned(scene: Scene) -> Iterator[None]:
    """What it keeps is cut short, nonsense, nothing, no numbers, a list, or a longer answer."""
    client = _redis(scene).client
    wait_until(lambda: bool(_answers(client)))  # a fault before this one may have emptied it
    values = _answers(client)
    longest = max(values.values(), key=len)
    scene.asking.injected()
    for number, (key, value) in enumerate(values.items()):
        rubbish = (
            value[:-3],
            b"\xff" * len(value),
            b"",
            value[:_FIRST_NUMBER] + b"\xff" * (len(value) - _FIRST_NUMBER),
            longest if len(longest) > len(value) else value[:-4],
        )
        if number % (len(rubbish) + 1) == len(rubbish):
            client.delete(key)
            client.lpush(key, "a list")
        else:
            client.set(key, rubbish[number % (len(rubbish) + 1)])
    yield


@contextmanager
def redis_flips_bits(scene: Scene) -> Iterator[None]:
    """One bit of each value that it keeps is another, in the exponent of a number: a finite one, of the right shape."""
    client = _redis(scene).client
    wait_until(lambda: bool(_answers(client)))
    scene.asking.injected()
    for key, value in _answers(client).items():
        other = bytearray(value)
        other[_FIRST_NUMBER + 2] ^= 0x40
        client.set(key, bytes(other))
    yield


class Proxy:
    """A Unix socket in front of another one, or of nothing: slow, or talking nonsense."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.url = f"unix://{path}"
        self.delay_s = 0.0
        """Before each piece of an answer is passed on."""
        self.nonsense = False
        """Whether it answers for itself, with what is not the protocol."""
        self._upstream = str(upstream)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more; who is connected stays until either side hangs up."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._upstream)
            except OSError:
                client.close()
                server.close()
                continue
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=(source, sink, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(b"?\x00\xff nonsense \r\n$-7\r\n*3\r\n" if answers and self.nonsense else data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _proxy(scene: Scene) -> Proxy:
    if scene.proxy is None:
        raise MissingError("a proxy before Redis")
    return scene.proxy


@contextmanager
def redis_slow(scene: Scene) -> Iterator[None]:
    """Its answers come, each 200 ms late: later than anybody waits."""
    proxy = _proxy(scene)
    scene.asking.injected()
    proxy.delay_s = 0.2
    try:
        yield
    finally:
        proxy.delay_s = 0.0


@contextmanager
def redis_talks_nonsense(scene: Scene) -> Iterator[None]:
    """Something else answers at its address."""
    proxy = _proxy(scene)
    scene.asking.injected()
    proxy.nonsense = True
    try:
        yield
    finally:
        proxy.nonsense = False


# Disks


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """An empty file system of that size at a folder; MissingError without the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size}", "foretell-chaos", str(folder)]
    if mount is None or os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        raise MissingError("the right to mount a file system (root)")
    try:
        yield folder
    finally:
        # Lazily: processes that are about to end may still have files there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    """Not one more byte can be written where the service has its temporary files."""
    if scene.disk is None:
        raise MissingError("a disk to fill (root, to mount one)")
    filler = scene.disk / "filler"
    scene.asking.injected()
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The disk of that folder, which must be one of its own, becomes read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def index_garbled(scene: Scene) -> Iterator[None]:
    """The store's index is nonsense for a while."""
    with _without_index(scene) as index:
        index.write_bytes(b"\xff\x00{]")
        yield


@contextmanager
def index_cut(scene: Scene) -> Iterator[None]:
    """The store's index ends in the middle for a while."""
    with _without_index(scene) as index:
        index.write_bytes(b'{"models": {"tiny": {"versions": {"1": "sha256:')
        yield


@contextmanager
def index_deleted(scene: Scene) -> Iterator[None]:
    """The store has no index for a while."""
    with _without_index(scene):
        yield


@contextmanager
def index_unreadable(scene: Scene) -> Iterator[None]:
    """Where the index should be is a folder for a while."""
    with _without_index(scene) as index:
        index.mkdir()
        yield


@contextmanager
def _without_index(scene: Scene) -> Iterator[Path]:
    if scene.store is None:
        raise MissingError("a store")
    index = scene.store / INDEX
    kept = index.with_suffix(".kept")
    scene.asking.injected()
    index.rename(kept)
    try:
        yield index
    finally:
        if index.is_dir():
            index.rmdir()
        kept.replace(index)


# The clock

_LIBFAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


# Under libfaketime, with monotonic time left alone, time.sleep fails (EINVAL): it takes the end of the sleep for a time
# of the wall clock.
_SLEEP = "import threading, time; time.sleep = lambda seconds: threading.Event().wait(seconds)\n"


class Clock:
    """The wall clock of processes that were started with it: it can be set, and monotonic time goes on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        """So far from the true time from now on."""
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(f"{seconds:+d}")
        unfinished.replace(self._file)


@contextmanager
def clock_leaps(scene: Scene) -> Iterator[None]:
    """An hour back, and then an hour ahead of the truth."""
    if scene.clock is None:
        raise MissingError("libfaketime (Debian package faketime)")
    scene.asking.injected()
    scene.clock.set(-3600)
    scene.asking.wait_for_right()
    scene.clock.set(3600)
    try:
        yield
    finally:
        scene.clock.set(0)


@contextmanager
def settable_clock(folder: Path) -> Iterator[Clock]:
    """Processes that are started meanwhile have it; MissingError without libfaketime."""
    library = next((str(found) for pattern in _LIBFAKETIME for found in Path("/").glob(pattern[1:])), None)
    if library is None:
        raise MissingError("libfaketime (Debian package faketime)")
    file = folder / "clock"
    clock = Clock(file)
    modules = folder / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(_SLEEP)
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH")))),
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        # Its "fix" makes waits with a time limit end at once: an interpreter that two threads want then does a
        # fourteenth of its work, and an HTTP process is taken for stalled now and then.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }
    with environment(**variables):
        yield clock


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Processes that are started meanwhile have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_FIRST_NUMBER = 20
"""Of a kept answer, behind five lengths."""

Fault = Callable[[Scene], contextlib.AbstractContextManager[None]]

OF_PROCESSES: Sequence[Fault] = (engine_killed, engine_hangs, http_killed, http_hangs, descriptors_run_out)
OF_REDIS: Sequence[Fault] = (
    redis_killed,
    redis_hangs,
    redis_slow,
    redis_full,
    redis_wants_a_password,
    redis_talks_nonsense,
    redis_poisoned,
)
OF_THE_INDEX: Sequence[Fault] = (index_garbled, index_cut, index_deleted, index_unreadable)
