"""Runs the application on uvicorn, and ends it in good order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import cast

import uvicorn

from app.access.browsers import ALWAYS
from app.access.tls import context_of
from app.connections import Connections, most_connections
from app.lifecycle import Lifecycle, freeze
from app.main import Application
from app.metrics import Metrics
from app.settings import Settings

log = logging.getLogger("app")


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


def serve(app: Application, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> int:
    """Serve in this process until told to stop by a signal; the exit status, 1 where it cannot listen."""
    server = Server(config(app, settings, metrics), lifecycle, settings.grace_s)
    freeze()
    try:
        server.run()
    except SystemExit:  # uvicorn has said why
        return 1
    return 0


def config(app: Application, settings: Settings, metrics: Metrics) -> uvicorn.Config:
    """What both kinds of server have in common."""
    tls = context_of(settings)
    most = most_connections(settings.max_connections, log.warning)
    connections = Connections(metrics, most=most, head_s=settings.head_s, body_s=settings.body_s)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # It is called as a class would be.
        http=cast(type[asyncio.Protocol], connections.protocol),
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.drain_s) or 1,
        server_header=False,
        headers=ALWAYS,
        # Nothing here asks who the client is.
        proxy_headers=False,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
