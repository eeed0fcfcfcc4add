"""How many connections there may be. What may come over one is in tests/chaos/test_raw_http.py."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.connections import Connection, Connections, most_connections
from app.metrics import Metrics
from tests.app.fakes import settle
from tests.app.serving import metric

pytestmark = pytest.mark.anyio

MOST = 3
RESERVE = 16
BUSY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what is sent over it, or sends nothing on while it is `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.stuck = 0
        self.eof = False
        self.closed = False

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


class Place:
    """Where connections come in."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._connections = Connections(self.metrics, most=MOST, head_s=60, body_s=60)
        self._config, self._state = uvicorn.Config(self._app, interface="asgi3", ws="none"), ServerState()

    async def _app(self, _scope: object, _receive: object, _send: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    def connect(self, data: bytes = b"") -> tuple[Connection, Wire]:
        """A client comes and sends this."""
        wire, connection = (
            Wire(),
            self._connections.protocol(config=self._config, server_state=self._state, app_state={}),
        )
        connection.connection_made(wire)
        if data:
            connection.data_received(data)
        return connection, wire

    async def end(self) -> None:
        """Nobody works any more."""
        for task in self._state.tasks:
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    def cuts(self, reason: str) -> float:
        """So many were ended for that."""
        return metric(self.metrics.exposition().decode(), "foretell_connections_cut_total", reason=reason)


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
    assert place.cuts("idle") == 1


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
    assert place.cuts("limit") == 0
    assert metric(place.metrics.exposition().decode(), "foretell_connections") == 0


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
    assert place.cuts("limit") == 2


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
