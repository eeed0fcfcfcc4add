"""Services for the client's tests: a real one with keys, ones that answer what they are told, and one that hangs.

with real(folder) as service: Client(service.url, service.admin)
Client("http://test", transport=Told(reply(503), reply(200, {...})), sleep=slept.append)
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.app.calibrated import publish
from tests.app.keys import Keys
from tests.app.serving import Process, metric, process

ADMIN = "correct-horse-battery"
URL = "http://test"
WINDOW = [[10.0 + row, 15.0 - row] for row in range(8)]
LONG = 100_000
"""Steps that take a while."""
START = "2026-01-01T00:00:00Z"
CSV = "time,target_0,past_1\n" + "".join(
    f"2026-01-01T{row:02}:00:00Z,{target},{past}\n" for row, (target, past) in enumerate(WINDOW)
)
"""The same as a table."""


@dataclass(frozen=True)
class Service:
    """One that runs, whose only model, `load`, has two versions with intervals at 80 and 90 %."""

    process: Process
    url: str
    key: str
    """May predict and read."""
    spent: str
    """May ask once in a quarter of an hour."""
    admin: str = ADMIN

    def metric(self, name: str, **labels: str) -> float:
        """A figure of its /metrics."""
        said = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.admin}"})
        return metric(said.raise_for_status().text, name, **labels)


@contextmanager
def real(folder: Path) -> Iterator[Service]:
    """`python -m app` in which every request needs a key."""
    store = folder / "store"
    for seed in (0, 1):
        publish(store, "load", roles=("target", "past"), architecture="lstm", config=_BOUNDED, clock=False, seed=seed)
    keys = Keys(folder)
    key, spent = keys.add("client", "predict", "read"), keys.add("spent", "read", quota="4/hour burst 1")
    ample = {"MAX_STEPS": LONG, "MAX_ROW_STEPS": 10 * LONG}
    with process(store, KEYS_FILE=keys.file, ADMIN_KEY=ADMIN, HTTP_PROCESSES=0, **ample) as running:
        yield Service(running, running.url, key, spent)


_BOUNDED = {"hidden": 4, "layers": 1, "residual": False}
Answer = httpx.Response | Exception
FORECAST = {
    "model": "load",
    "version": 1,
    "digest": "sha256:0",
    "targets": ["a"],
    "steps": 2,
    "forecast": [[1.5], [2.5]],
    "attention": None,
}


HEAD = {"model": "load", "version": 1, "digest": "sha256:0", "targets": ["a"], "steps": 2, "attention": None}
STEPS = [{"step": 1, "forecast": [1.5]}, {"step": 2, "forecast": [2.5]}]
ENDED = {"done": True, "steps": 2}
RESULTS = [{"window": 0, "forecast": [[1.5], [2.5]]}, {"window": 1, "forecast": [[3.5], [4.5]]}]
SUMMARY = {"done": 2, "failed": 0}


def lines(*said: object) -> httpx.Response:
    """An answer in lines of JSON; bytes are put in as they are."""
    content = b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in said)
    return httpx.Response(200, content=content, headers={"Content-Type": "application/x-ndjson"})


def reply(status: int, content: object = None, **headers: str) -> httpx.Response:
    """An answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(content, bytes):
        return httpx.Response(status, content=content, headers=named)
    return httpx.Response(status, json=content, headers=named)


def problem(status: int, slug: str, **headers: str) -> httpx.Response:
    """A problem of the service."""
    said = {"type": f"urn:foretell:problem:{slug}", "title": "T", "status": status, "detail": "why", "request_id": "r"}
    return reply(status, said, content_type="application/problem+json", **headers)


class Told(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Gives one answer after the other, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """For Client."""
        request.read()
        return self._next(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """For AsyncClient."""
        await request.aread()
        return self._next(request)

    def _next(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@contextmanager
def raw(answer: Callable[[socket.socket], Any]) -> Iterator[str]:
    """A server that does with each connection what it is told, and its address; connections are kept until the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()
