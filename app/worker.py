"""One process of several, started by the supervisor: `python -m app.worker engine|http ...`."""

import argparse
import contextlib
import json
import logging
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from app import logs
from app.lifecycle import Lifecycle, leave, steady
from app.processes.stacks import tell_in
from app.settings import Settings
from app.spans import Tracer, tracer_of

log = logging.getLogger("app")


def main() -> None:
    """Exit status 2 where there is no such device, 3 where the device was lost."""
    parser = argparse.ArgumentParser(prog="python -m app.worker", description="Started by python -m app.")
    parser.add_argument("role", choices=("engine", "http"))
    parser.add_argument("--number", type=int, required=True, help="which of its kind")
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--metrics", type=Path, required=True, help="folder of the metrics of all processes")
    parser.add_argument("--running", type=Path, help="file in which an engine says whose pass is under way")
    parser.add_argument("--stacks", type=Path, required=True, help="file in which it says where it hangs")
    given = parser.parse_args()
    # Signals are the supervisor's to take: some send them to every process there is.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell_in(given.stacks)
    settings = Settings.read()
    logs.configure(settings.log_level)
    listener, control = socket.socket(fileno=given.listener), socket.socket(fileno=given.control)
    if given.role == "engine":
        _engine(settings, given.number, listener, control, given.metrics, given.running)
    else:
        _http(settings, given.number, listener, control, given.metrics)


def _engine(
    settings: Settings,
    number: int,
    listener: socket.socket,
    control: socket.socket,
    metrics_folder: Path,
    running: Path | None,
) -> None:
    # Torch is only in processes that compute.
    from app.device.loop import device_of
    from app.device.runtime import devices
    from app.errors import DeviceLostError
    from app.metrics import Metrics

    try:
        names = devices(settings.device)
    except ValueError as error:
        sys.stderr.write(f"foretell: {error}\n")
        sys.exit(2)
    if number >= len(names):
        log.error("device %d of before is not there any more (there are: %s)", number, ", ".join(names))
        sys.exit(3)
    metrics = Metrics(metrics_folder)
    tracer = tracer_of(settings, f"engine-{number}", metrics)
    device = device_of(settings, names[number], metrics, running, tracer)
    device.listen(listener)
    device.leash(control)
    patience_s = settings.drain_s + settings.stall_s
    metrics.follow(lambda: device.models)
    threading.Thread(target=metrics.sweep_for_ever, name="sweep", daemon=True).start()
    threading.Thread(target=_leave_after, args=(control, patience_s), name="leash", daemon=True).start()
    steady()
    with contextlib.suppress(OSError):  # the supervisor is gone: the leash tells
        control.sendall(json.dumps(names).encode() + b"\n")
    try:
        device.serve()
    except DeviceLostError:
        log.exception("%s is lost", names[number])
        _leave(tracer, 3)
    _leave(tracer, 0)


def _leave(tracer: Tracer | None, status: int) -> NoReturn:
    if tracer is not None:
        tracer.close()
    leave(status)


def _leave_after(control: socket.socket, patience_s: float) -> None:
    """A pass that never ends would outlive a supervisor that was killed, with nobody left to notice."""
    select.select([control], [], [])
    time.sleep(patience_s)
    leave(1)


def _http(
    settings: Settings, number: int, listener: socket.socket, control: socket.socket, metrics_folder: Path
) -> None:
    from app.edge.server import Worker, config
    from app.main import create_app
    from app.processes.backend import Remote

    lifecycle = Lifecycle()
    backend = Remote(control, metrics_folder, lifecycle, lambda: server.stop())  # noqa: PLW0108  it is made below
    app = create_app(settings, lifecycle, backend, process=f"http-{number}")
    server = Worker(config(app, settings, lifecycle, backend.metrics), lifecycle)
    steady()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
