"""Runs the application on uvicorn, and ends it in good order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.lifecycle import Lifecycle, freeze
from app.main import Application
from app.settings import Settings

log = logging.getLogger("app")


class Gathering:
    """A transport that sends once a turn of the event loop what is written in it.

    uvicorn writes the head of an answer and then its body, each with a system call of its own, which are the most
    expensive part of a small answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send it, soon."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever else a transport has
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._written:
            written, self._written = self._written, []
            # Its client may have gone since; a closed transport of uvloop's takes no more, and complains.
            if not self._transport.is_closing():
                self._transport.write(b"".join(written))


class Protocol(HttpToolsProtocol):
    """uvicorn's, on a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
        """A client is there."""
        super().connection_made(cast(asyncio.Transport, Gathering(transport)))


class Server(uvicorn.Server):
    """uvicorn, but a SIGTERM first makes the service unready and lets the load balancer notice, for `grace_s`."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, grace_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
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


class Worker(uvicorn.Server):
    """One of several: signals are the supervisor's to take."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    def stop(self) -> None:
        """Take no more connections, finish what was accepted, and end."""
        self.should_exit = True


def serve(app: Application, settings: Settings, lifecycle: Lifecycle) -> int:
    """Serve in this process until told to stop by a signal; the exit status, 1 where it cannot listen."""
    server = Server(config(app, settings), lifecycle, settings.grace_s)
    freeze()
    try:
        server.run()
    except SystemExit:  # uvicorn has said why
        return 1
    return 0


def config(app: Application, settings: Settings) -> uvicorn.Config:
    """What both kinds of server have in common."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        loop="uvloop",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.drain_s) or 1,
        server_header=False,
        # Nothing here asks who the client is.
        proxy_headers=False,
    )
