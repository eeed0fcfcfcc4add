"""Runs the application on uvicorn, and ends it in good order."""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from starlette.types import ASGIApp

from app.access.browsers import ALWAYS
from app.access.tls import context_of
from app.edge.connections import Connections, most_connections
from app.lifecycle import Lifecycle, steady
from app.metrics import Metrics
from app.settings import Settings

log = logging.getLogger("app")

_HANDSHAKE_S = 0.25
"""At the end, for handshakes that are under way: longer than any round trip in one continent."""
_LINGER_S = 0.25
"""And then, for requests on connections that nobody closed."""
_GOODBYE_S = 1.0
"""For the client's part in the end of a TLS connection."""
_POLL_S = 0.01
_POLLS = 100
_FILES = 8
"""With so few open files left nobody else is let in: the event loop would accept, and close what it cannot open."""
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
"""Of Linux; Python does not name them."""
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""A program for it: of a TCP header take byte 13, the flags, and drop what has SYN."""


class _Server(uvicorn.Server):
    """uvicorn, but whoever has connected is served: nobody else is let in where there is no room, or at the end."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self.has_room = True
        """Whether there are files for further connections."""

    async def on_tick(self, counter: int) -> bool:
        """Look, as often as uvicorn looks at all, whether there are files for further connections."""
        has_room = _can_open(_FILES)
        if has_room != self.has_room:
            self.has_room = has_room
            if has_room:
                log.info("new connections are taken again")
            else:
                log.error("no file is left to be opened: new connections wait, those that there are go on")
            for listener in self._listeners():
                _let_connect(listener, allowed=has_room)
        return await super().on_tick(counter)

    def _listeners(self) -> list[socket.socket]:
        return [listener for server in self.servers for listener in server.sockets]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else connect, take in who has, hear who is idle for a moment more, finish, and end."""
        self._lifecycle.draining = True
        listeners = self._listeners()
        for listener in listeners:
            _let_connect(listener, allowed=False)
        await asyncio.sleep(_HANDSHAKE_S)
        await _taken_in(listeners)
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        await asyncio.sleep(_LINGER_S)
        await super().shutdown(sockets)


class Server(_Server):
    """The only one. A SIGTERM first makes the service unready and lets the load balancer notice, for `grace_s`."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, grace_s: float) -> None:
        super().__init__(config, lifecycle)
        self._grace_s = grace_s

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """SIGTERM drains first; a second one, or Ctrl-C, ends at once with what is under way finished."""
        if sig == signal.SIGTERM and not self._lifecycle.draining:
            self._lifecycle.draining = True
            log.info("SIGTERM: not ready from now on, serving for another %g s", self._grace_s)
            loop = asyncio.get_running_loop()
            # A signal can come while the loop sleeps; only this call wakes it.
            loop.call_soon_threadsafe(loop.call_later, self._grace_s, self._stop)
        else:
            self._lifecycle.draining = True
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self._stop()

    def _stop(self) -> None:
        # uvicorn's own way would end the process with the signal: ending as told is no failure.
        self.should_exit = True


class Worker(_Server):
    """One of several: signals are the supervisor's to take."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    def stop(self) -> None:
        """Take no more connections, finish what was accepted, and end."""
        self.should_exit = True


def serve(app: ASGIApp, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> int:
    """Serve in this process until told to stop by a signal; the exit status, 1 where it cannot listen."""
    server = Server(config(app, settings, lifecycle, metrics), lifecycle, settings.grace_s)
    steady()
    try:
        server.run()
    except SystemExit:  # uvicorn has said why
        return 1
    return 0


class _Loop(uvloop.Loop):
    """uvloop's, but a TLS handshake has as long as a head, not a minute."""

    def __init__(self, handshake_s: float) -> None:
        super().__init__()
        self._handshake_s = handshake_s

    async def create_server(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401  whatever uvicorn gives
        """As uvloop's."""
        if named.get("ssl") is not None:
            named["ssl_handshake_timeout"] = self._handshake_s
            # Who has been told the end and does not answer: uvloop's 30 s would be those of the whole process.
            named["ssl_shutdown_timeout"] = _GOODBYE_S
        return await super().create_server(*given, **named)


def _let_connect(listener: socket.socket, *, allowed: bool) -> None:
    """Answer handshakes, or none from now on; those who have connected already wait to be accepted all the same.

    A client whose handshake is not answered tries again after a second, and then less and less often.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    # Where the system has no such filter, the moment between the last look and the close has to do.
    with contextlib.suppress(OSError):
        if allowed:
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        else:
            filtering = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)


def _can_open(files: int) -> bool:
    """Whether so many more, about, could be opened: the next one gets the lowest number that is free."""
    try:
        lowest = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return False
    os.close(lowest)
    # It may have been changed from outside.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit == resource.RLIM_INFINITY or lowest + files < limit


async def _taken_in(listeners: Sequence[socket.socket]) -> None:
    """Once nobody waits to be accepted; the event loop accepts."""
    for _ in range(_POLLS):
        if not select.select(listeners, (), (), 0)[0]:
            return
        await asyncio.sleep(_POLL_S)


def config(app: ASGIApp, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> uvicorn.Config:
    """What both kinds of server have in common."""
    tls = context_of(settings)
    most = most_connections(settings.max_connections, log.warning)
    connections = Connections(metrics, lifecycle, most=most, head_s=settings.head_s, body_s=settings.body_s)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # It is called as a class would be.
        http=cast(type[asyncio.Protocol], connections.protocol),
        ws="none",
        # A factory does as well as the name of one.
        loop=cast(str, partial(_Loop, settings.head_s)),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.drain_s) or 1,
        server_header=False,
        headers=ALWAYS,
        # Nothing here asks who the client is.
        proxy_headers=False,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
