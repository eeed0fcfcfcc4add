"""How many connections there may be. What may come over one is in tests/chaos/test_raw_http.py."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.edge.connections import Connection, Connections, most_connections
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from tests.app.fakes import settle
from tests.app.serving import metric

pytestmark = pytest.mark.anyio

MOST = 3
RESERVE = 16
BUSY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what is sent over it, or sends nothing on while it is `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.stuck = 0
        self.eof = False
        self.closed = False
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = socket.create_connection(listener.getsockname())
            self.near, _ = listener.accept()

    def write(self, data: bytes) -> None:  # type: ignore[override]  # bytes are what is sent here
        self.sent += data

    def write_eof(self) -> None:
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.near if name == "socket" else default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    @property
    def answers(self) -> list[bool]:
        """Of each answer that was sent, whether it is to be the last."""
        return [b"\r\nconnection: close\r\n" in answer for answer in self.sent.split(b"HTTP/1.1 ")[1:]]


class Place:
    """Where connections come in."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.lifecycle = Lifecycle()
        self._connections = Connections(self.metrics, self.lifecycle, most=MOST, head_s=60, body_s=60)
        self.go_on = asyncio.Event()
        self._wires: list[Wire] = []
        self._config, self._state = uvicorn.Config(self._app, interface="asgi3", ws="none"), ServerState()

    async def _app(self, scope: Scope, _receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):
            await self.go_on.wait()
            if scope["method"] == "GET":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})

    def connect(self, data: bytes = b"") -> tuple[Connection, Wire]:
        """A client comes and sends this."""
        wire, connection = (
            Wire(),
            self._connections.protocol(config=self._config, server_state=self._state, app_state={}),
        )
        self._wires.append(wire)
        connection.connection_made(wire)
        if data:
            connection.data_received(data)
        return connection, wire

    async def end(self) -> None:
        """Nobody works any more."""
        for task in self._state.tasks:
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for wire in self._wires:
            wire.near.close()
            wire.far.close()

    async def cuts(self, reason: str) -> float:
        """So many were ended for that."""
        text = (await self.metrics.exposition()).decode()
        return metric(text, "foretell_connections_cut_total", reason=reason)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """One with room for a few; whoever works there ends with it."""
    place = Place()
    yield place
    await settle()
    await place.end()


async def test_the_one_that_has_waited_longest_goes(place: Place) -> None:
    """When there is no room; one that works does not."""
    _, busy = place.connect(BUSY)
    _, first = place.connect()
    _, second = place.connect()
    _, third = place.connect()
    assert [wire.closed for wire in (busy, first, second, third)] == [False, True, False, False]
    assert await place.cuts("idle") == 1


async def test_the_one_that_takes_its_answer_is_let(place: Place) -> None:
    """A connection with something still to be sent is not ended while there is another."""
    wires = [place.connect()[1] for _ in range(MOST)]
    wires[0].stuck = 1
    place.connect()
    assert [wire.closed for wire in wires] == [False, True, False]


async def test_room_comes_back(place: Place) -> None:
    """With the end of a connection, whatever became of it."""
    for _ in range(3):
        connections = [place.connect(BUSY)[0] for _ in range(MOST)]
        for connection in connections:
            connection.connection_lost(None)
    assert await place.cuts("limit") == 0
    assert metric((await place.metrics.exposition()).decode(), "foretell_connections") == 0


async def test_without_any_room_nothing_is_read(place: Place) -> None:
    """Where even the reserve works, a problem is sent and the connection ended."""
    wires = [place.connect(BUSY)[1] for _ in range(MOST + RESERVE)]
    assert not any(wire.sent or wire.closed for wire in wires)
    turned_away = [place.connect(BUSY)[1] for _ in range(2)]
    for wire in turned_away:
        head, _, body = wire.sent.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\nConnection: close\r\n" in head
        assert orjson.loads(body)["type"] == "urn:foretell:problem:unavailable"
        assert wire.eof
    assert await place.cuts("limit") == 2


async def test_the_one_that_asks_already_is_let(place: Place) -> None:
    """A connection whose next request has come, though nobody has read it, is not ended while there is another."""
    wires = [place.connect()[1] for _ in range(MOST)]
    wires[0].far.sendall(GET)
    place.connect()
    assert [wire.closed for wire in wires] == [False, True, False]


# The end of the process


async def test_answers_while_the_process_drains(place: Place) -> None:
    """Each is the last on its connection and says so; then it is for the client to close."""
    place.go_on.set()
    connection, wire = place.connect(GET)
    await settle()
    assert wire.answers == [False]
    place.lifecycle.draining = True
    connection.data_received(GET)
    await settle()
    assert wire.answers == [False, True]
    assert (wire.eof, wire.closed) == (True, False)
    connection.data_received(GET)
    connection.eof_received()
    await settle()
    assert wire.answers == [False, True]
    assert wire.closed


async def test_requests_under_way_when_the_process_drains(place: Place) -> None:
    """Of pipelined ones, those read before and after, only the last answer is the last."""
    connection, wire = place.connect(GET * 2)
    place.lifecycle.draining = True
    connection.check()
    assert wire.answers == []
    connection.data_received(GET * 2)
    connection.check()
    place.go_on.set()
    await settle()
    assert wire.answers == [False, False, False, True]
    assert wire.eof


async def test_client_that_sends_no_more_while_the_process_drains(place: Place) -> None:
    """Its connection is closed with its answer: nothing more can come over it."""
    place.lifecycle.draining = True
    connection, wire = place.connect(GET)
    await settle()
    assert connection.eof_received()
    place.go_on.set()
    await settle()
    assert wire.answers == [True]
    assert wire.closed


async def test_idle_connections_at_the_end(place: Place) -> None:
    """They are closed, but for those over which something comes: that is answered first."""
    place.go_on.set()
    (idle, silent), (asking, crossing), (sending, halfway) = place.connect(), place.connect(), place.connect(GET[:-4])
    place.lifecycle.draining = True
    crossing.far.sendall(GET)
    for connection in (idle, asking, sending):
        connection.shutdown()
    assert [wire.closed for wire in (silent, crossing, halfway)] == [True, False, False]
    asking.data_received(crossing.near.recv(1024))
    sending.data_received(GET[-4:])
    await settle()
    assert [wire.answers for wire in (silent, crossing, halfway)] == [[], [True], [True]]
    assert crossing.eof
    assert halfway.eof


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The limit of open files, soft and hard, as the system has it."""
    limit = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limit.update(now=wanted))
    return limit


@pytest.mark.parametrize(
    ("now", "most"),
    [
        ((1024, 4096), 2048),
        ((1024, 2048), 2048 - 128 - 32),
        ((1024, 1024), 1024 - 128 - 32),
        ((100, 100), 100 - 50 - 32),
        ((10, 10), 1),
        ((1024, resource.RLIM_INFINITY), 2048),
    ],
)
def test_connections_leave_files_for_all_else(files: dict[str, Any], now: tuple[int, int], most: int) -> None:
    """The limit is raised as far as it goes; where that is not enough, whoever runs the service is told."""
    complaints: list[object] = []
    files["now"] = now
    assert most_connections(2048, lambda *told: complaints.append(told)) == most
    assert files["now"] == (now[1], now[1])
    assert bool(complaints) == (most < 2048)
