"""How a process that serves ends. With a load on the real service this is tests/chaos/test_rolling.py."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.edge.connections import Connections
from app.edge.server import Worker
from app.lifecycle import Lifecycle
from app.metrics import Metrics

pytestmark = pytest.mark.anyio

CROWD = 50
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Place:
    """A listening socket and a process, as it were, that serves it."""

    def __init__(self, stack: ExitStack) -> None:
        self.lifecycle = Lifecycle()
        connections = Connections(Metrics(), self.lifecycle, most=10 * CROWD, head_s=60, body_s=60)
        http = cast(type[asyncio.Protocol], connections.protocol)
        config = uvicorn.Config(app, interface="asgi3", lifespan="off", ws="none", http=http, log_config=None)
        self.worker = Worker(config, self.lifecycle)
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * CROWD))
        self._stack = stack

    def connect(self, data: bytes = b"") -> socket.socket:
        """A client comes and sends this."""
        client = self._stack.enter_context(socket.create_connection(self.listener.getsockname()))
        client.settimeout(0)
        client.sendall(data)
        return client

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Until the block ends, and then to its end."""
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.worker.serve([self.listener]))
            await holds(lambda: self.worker.started or serving.done())
            yield
            self.worker.stop()


@pytest.fixture
def place() -> Iterator[Place]:
    """One whose clients go with it."""
    with ExitStack() as stack:
        yield Place(stack)


async def holds(condition: Callable[[], bool]) -> None:
    """Once it does."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  what it waits for can only be asked
            await asyncio.sleep(0)


async def all_of(client: socket.socket) -> bytes:
    """What comes until the end."""
    received = b""
    async with asyncio.timeout(60):
        while data := await asyncio.get_running_loop().sock_recv(client, 4096):
            received += data
    return received


async def test_those_who_wait_to_be_accepted_are_answered(place: Place) -> None:
    """Told to end before it has accepted anybody, it accepts and answers all who are there."""
    clients = [place.connect(GET) for _ in range(CROWD)]
    place.worker.stop()
    await place.worker.serve([place.listener])
    for client in clients:
        answer = await all_of(client)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in answer


async def test_request_that_comes_late_on_an_idle_connection(place: Place) -> None:
    """It is answered, as the last one; who sends none sees the end and nothing else."""
    async with place.serving():
        asking, silent = place.connect(GET), place.connect()
        first = await asyncio.get_running_loop().sock_recv(asking, 4096)
        place.worker.stop()
        await holds(lambda: place.listener.fileno() == -1)
        asking.sendall(GET)
        second = await all_of(asking)
    assert b"connection: close" not in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in second
    assert await all_of(silent) == b""


async def test_nobody_connects_without_a_file_for_him(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hardly any is left, whoever comes waits and is served once there are some; who is there is served on."""
    limits = {"now": (8, 1024)}
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.settimeout(0)
        async with place.serving():
            there = place.connect()
            monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
            await holds(lambda: not place.worker.has_room)
            connecting = asyncio.create_task(loop.sock_connect(client, place.listener.getsockname()))
            there.sendall(GET)
            assert (await loop.sock_recv(there, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")
            assert not connecting.done()
            limits["now"] = (1024, 1024)
            await connecting
            client.sendall(GET)
            assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_nobody_connects_once_it_ends(place: Place) -> None:
    """Whoever comes then is not taken for somebody who waits: the handshake is not answered."""
    late = socket.socket()
    late.settimeout(0)
    async with place.serving():
        place.worker.stop()
        await holds(lambda: place.lifecycle.draining)
        address = place.listener.getsockname()
        with late, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.get_running_loop().sock_connect(late, address)
