"""python -m app: read the settings and serve, in several processes or in this one."""

import argparse
import asyncio
import sys

from app import logs
from app.access.keyring import check_keys
from app.access.tls import context_of
from app.lifecycle import Lifecycle, leave
from app.settings import Settings, SettingsError, http_processes
from app.spans import check_tracing


def main() -> None:
    """Exit status 0 when told to end, 1 where it cannot serve, 2 for a setting that is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve the published models. Settings are environment variables:",
        epilog=Settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = Settings.read()
        check_keys(settings)
        context_of(settings)
        check_tracing(settings)
    except SettingsError as error:
        parser.exit(2, f"foretell: {error}\n")
    logs.configure(settings.log_level)
    # Each kind of process imports what it needs: the supervisor neither torch nor FastAPI.
    if processes := http_processes(settings):
        from app.processes.supervisor import supervise

        sys.exit(asyncio.run(supervise(settings, processes)))
    from app.device.runtime import devices
    from app.edge.server import serve
    from app.main import create_app
    from app.processes.backend import Local

    try:
        devices(settings.device)
    except ValueError as error:
        parser.exit(2, f"foretell: {error}\n")
    lifecycle = Lifecycle()
    backend = Local()
    leave(serve(create_app(settings, lifecycle, backend), settings, lifecycle, backend.metrics))


if __name__ == "__main__":
    main()
