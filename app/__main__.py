"""python -m app: read the settings, serve, and leave in good order when told to."""

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
from types import FrameType

import uvicorn

from app import logs, runtime
from app.lifecycle import Lifecycle
from app.main import create_app
from app.settings import Settings, SettingsError

log = logging.getLogger("app")


class Server(uvicorn.Server):
    """uvicorn, but a SIGTERM first makes the service unready and lets the load balancer notice, for `grace_s`."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, grace_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._grace_s = grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM drains first; a second one, or Ctrl-C, ends at once with what is under way finished."""
        if sig == signal.SIGTERM and not self._lifecycle.draining:
            self._lifecycle.draining = True
            log.info("SIGTERM: not ready from now on, serving for another %g s", self._grace_s)
            loop = asyncio.get_running_loop()
            # A signal can come while the loop sleeps; only this call wakes it.
            loop.call_soon_threadsafe(loop.call_later, self._grace_s, super().handle_exit, sig, frame)
        else:
            self._lifecycle.draining = True
            super().handle_exit(sig, frame)


def main() -> None:
    """Exit status 2 for a setting that is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve the published models. Settings are environment variables:",
        epilog=Settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = Settings.read()
        runtime.devices(settings.device)
    except (SettingsError, ValueError) as error:
        parser.exit(2, f"foretell: {error}\n")
    logs.configure(settings.log_level)
    lifecycle = Lifecycle()
    config = uvicorn.Config(
        create_app(settings, lifecycle),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.drain_s) or 1,
        server_header=False,
    )
    # The libraries' 200 000 objects live as long as the process. Left to the collector, they stop everything for up to
    # 100 ms each time it looks through them, which with bodies of many lists is several times a second.
    gc.collect()
    gc.freeze()
    # uvicorn raises the signal once more when it is done; after Ctrl-C that is no error.
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, lifecycle, settings.grace_s).run()


if __name__ == "__main__":
    main()
