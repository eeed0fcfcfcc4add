"""The engine's side of the socket: one loop that takes what waits, runs a pass, and sends what is done.

Everything happens in one thread, so nothing is handed from thread to thread for a pass and nothing needs a lock; only
models load beside it. Whether that thread is the main one of an engine process or one of several in a process that
also speaks HTTP, nobody on the other side of the socket can tell (docs/decisions/0009).
"""

import contextlib
import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from app.device import runtime as runtimes
from app.device.scheduler import Scheduler, Watcher
from app.errors import ForetellError, NotReadyError, UnavailableError
from app.link import frames
from app.link.frames import FrameError, Kind, Told
from app.settings import Settings
from app.ticket import Floats, ModelId, Part, Ticket
from models.artifact import Artifact, ArtifactError
from models.spec import Spec

log = logging.getLogger(__name__)

_CPU_BULK_ROWS = 8
"""So many windows in a pass, a CPU does five of six of what it ever does in a second, and is soon through with them."""

_LOAD = TypeAdapter(tuple[str, int, str, str])
"""Name, version, digest, archive."""
_UNLOAD = TypeAdapter(tuple[str, int, str])


class DeviceWatcher(Watcher, Protocol):
    """The same, and how much waits."""

    def waiting(self, device: str, rows: int) -> None:
        """Rows accepted and not yet through."""


class Runtime(Protocol):
    """What runs the passes (app.device.runtime.Runtime)."""

    device: str

    def load(self, model: ModelId, archive: Path) -> Artifact:
        """In a thread, beside passes."""

    def install(self, model: ModelId, loaded: Artifact) -> None:
        """From now on its tickets can run."""

    def unload(self, model: ModelId) -> None:
        """Forget a model."""

    def run(self, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> Sequence[Part]:
        """One pass, and further ones while `go_on`."""


def device_of(settings: Settings, name: str, watcher: DeviceWatcher) -> "Device":
    """The device of that name, with nothing loaded."""
    rows = settings.max_batch_rows
    runtime = runtimes.Runtime(name, threads=settings.torch_threads, batch_rows=rows, precision=settings.precision)
    bulk_rows = settings.bulk_batch_rows or (_CPU_BULK_ROWS if name == "cpu" else rows)
    return Device(
        runtime, watcher, queue_rows=settings.max_queue_rows, batch_rows=rows, bulk_batch_rows=min(rows, bulk_rows)
    )


class Client:
    """One connection: who asks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.connection = connection
        self.reader = frames.Reader()
        self.orders: dict[int, OrderUnderWay] = {}
        self.unsent: list[bytes] = []
        self.stuffed = False
        """It has not taken all that was sent; the selector tells when it takes more."""

    def send(self) -> bool:
        """Send what can be sent now; whether all of it was."""
        if self.unsent:
            data = self.unsent[0] if len(self.unsent) == 1 else b"".join(self.unsent)
            try:
                sent = self.connection.send(data)
            except BlockingIOError:
                sent = 0
            self.unsent = [data[sent:]] if sent < len(data) else []
        return not self.unsent


class OrderUnderWay:
    """An order and its tickets: one, or several where its windows do not fit into one pass."""

    __slots__ = ("client", "left", "number", "tickets")

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number
        self.tickets: list[Ticket] = []
        self.left = 0


class Device:
    """One device with its models, its queue and those who are connected to it."""

    def __init__(
        self, runtime: Runtime, watcher: DeviceWatcher, *, queue_rows: int, batch_rows: int, bulk_batch_rows: int
    ) -> None:
        self._runtime = runtime
        self._watcher = watcher
        self._batch_rows = batch_rows
        self._bulk_batch_rows = bulk_batch_rows
        self._scheduler = Scheduler(
            partial(runtime.run, go_on=self._is_quiet),
            time.monotonic,
            watcher,
            queue_rows=queue_rows,
            batch_rows=batch_rows,
            bulk_batch_rows=bulk_batch_rows,
        )
        self._models: dict[str, tuple[ModelId, Spec]] = {}
        self._clients: set[Client] = set()
        self._unsent: set[Client] = set()
        self._selector = selectors.DefaultSelector()
        self._loaded: list[Callable[[], None]] = []
        self._bell, self._clapper = socket.socketpair()
        self._bell.settimeout(0)
        self._closed = False
        self._watched_rows = 0
        self._watch(self._bell, self._rung)

    def listen(self, listener: socket.socket) -> None:
        """Take connections there."""
        listener.settimeout(0)
        self._watch(listener, lambda _: self._accept(listener))

    def leash(self, end: socket.socket) -> None:
        """Close once the other end is closed, however its process ended."""
        self._watch(end, lambda _: self.close())

    def connect(self, connection: socket.socket) -> None:
        """Serve a connection."""
        client = Client(connection)
        self._clients.add(client)
        self._watch(connection, lambda ready: self._serve_client(client, ready))

    def close(self) -> None:
        """Have `serve` end after the pass under way; from any thread."""
        self._closed = True
        self._ring()

    def serve(self) -> None:
        """Until closed, or until the device is lost (DeviceLostError). Whoever is connected sees the end as an EOF."""
        try:
            while not self._closed:
                self._take_in()
                self._tell_watcher()
                for ticket in self._scheduler.turn():
                    self._settle(ticket)
                self._send_out()
                self._tell_watcher()
        finally:
            self._selector.close()
            for connection in (self._bell, self._clapper, *(client.connection for client in self._clients)):
                connection.close()

    def _take_in(self) -> None:
        """What has arrived; waits for something where there is nothing to do."""
        for key, ready in self._selector.select(0 if not self._scheduler.idle else None):
            key.data(ready)

    def _send_out(self) -> None:
        for client in list(self._unsent):
            self._flush(client)

    def _is_quiet(self) -> bool:
        """Whether nobody who would come first or along wants anything: then those in the pass may go straight on."""
        return self._scheduler.undisturbed and not self._selector.select(0)

    def _tell_watcher(self) -> None:
        rows = self._scheduler.rows + self._scheduler.bulk_rows
        if rows != self._watched_rows:
            self._watched_rows = rows
            self._watcher.waiting(self._runtime.device, self._watched_rows)

    def _watch(self, source: socket.socket, call: Callable[[int], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, call)

    def _rung(self, _ready: int) -> None:
        self._bell.recv(1024)
        while self._loaded:
            self._loaded.pop(0)()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # whoever it was has left again
        self.connect(connection)

    def _serve_client(self, client: Client, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._unsent.add(client)
        if not ready & selectors.EVENT_READ:
            return
        try:
            received = client.connection.recv_into(client.reader.room())
        except BlockingIOError:
            return
        except OSError:
            received = 0
        if not received:
            self._forget(client)
            return
        try:
            for kind, frame in client.reader.frames(received):
                self._obey(client, kind, frame)
        except (FrameError, struct.error) as error:
            log.error("a connection to %s is closed: %s", self._runtime.device, error)  # noqa: TRY400  no bug of ours
            self._forget(client)

    def _forget(self, client: Client) -> None:
        """It has gone, and what it asked for costs no further pass."""
        self._selector.unregister(client.connection)
        client.connection.close()
        self._clients.discard(client)
        self._unsent.discard(client)
        for order in client.orders.values():
            self._call_off(order)
        client.orders.clear()

    def _obey(self, client: Client, kind: int, frame: memoryview) -> None:
        if kind == Kind.SUBMIT:
            self._submit(client, frame)
        elif kind == Kind.DROP:
            order = client.orders.pop(frames.number_of(frame), None)
            if order is not None:
                self._call_off(order)
        elif kind == Kind.PING:
            self._say(client, frames.telling(Kind.PONG, self._told(frames.number_of(frame))))
        elif kind == Kind.LOAD:
            self._load(client, frames.number_of(frame), frames.content_of(frame))
        elif kind == Kind.UNLOAD:
            self._unload(frames.content_of(frame))
        else:
            raise FrameError(f"a frame of kind {kind}")

    # Forecasts

    def _submit(self, client: Client, frame: memoryview) -> None:
        number = frames.number_of(frame)
        found = self._models.get(frames.read_digest(frame))
        if found is None:
            self._refuse(client, number, NotReadyError("the model is not loaded on this device"))
            return
        model, spec = found
        asked = frames.read_submit(frame, (spec.window, len(spec.features)), (spec.horizon, len(spec.known)))
        if number in client.orders:
            raise FrameError(f"a second order {number}")
        order = OrderUnderWay(client, number)
        rows = self._bulk_batch_rows if asked.bulk else self._batch_rows
        order.tickets = [
            Ticket(
                model=model,
                window=asked.windows[start : start + rows],
                time=asked.time[start : start + rows],
                known=asked.known[start : start + rows],
                passes=asked.passes,
                attention=asked.attention,
                bulk=asked.bulk,
                owner=order,
            )
            for start in range(0, len(asked.windows), rows)
        ]
        order.left = len(order.tickets)
        try:
            self._scheduler.submit(order.tickets)
        except UnavailableError as error:
            self._refuse(client, number, error)
        else:
            client.orders[number] = order

    def _settle(self, ticket: Ticket) -> None:
        """A ticket is through; its order is when all of its tickets are, or when one failed."""
        order: OrderUnderWay = ticket.owner
        order.left -= 1
        if ticket.error is None and order.left:
            return
        if order.client.orders.pop(order.number, None) is None:
            return  # another of its tickets failed before
        if ticket.error is not None:
            self._call_off(order)
            self._refuse(order.client, order.number, ticket.error)
            return
        tickets = order.tickets
        queued_s = max(one.queued_s or 0.0 for one in tickets)
        device_s = sum(one.device_s for one in tickets)
        forecast = _joined([one.forecast() for one in tickets])
        weights = [weights for one in tickets if (weights := one.weights()) is not None]
        told = self._told(order.number)
        order.client.unsent += frames.answer(told, queued_s, device_s, forecast, _joined(weights) if weights else None)
        self._unsent.add(order.client)

    def _call_off(self, order: OrderUnderWay) -> None:
        for ticket in order.tickets:
            self._scheduler.drop(ticket)

    def _refuse(self, client: Client, number: int, error: ForetellError) -> None:
        self._say(client, frames.telling(Kind.REFUSED, self._told(number), orjson.dumps(error.packed())))

    # Models

    def _load(self, client: Client, number: int, content: object) -> None:
        name, version, digest, archive = _checked(_LOAD, content)
        model = ModelId(name, version, digest)

        def load() -> None:
            try:
                loaded = self._runtime.load(model, Path(archive))
                _check_identity(loaded.spec, model)
            except (ArtifactError, OSError) as error:
                reason = error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
                self._later(lambda: self._tell_not_loaded(client, number, reason))
            except Exception as error:
                # Whatever a network does on its first rows keeps that one out, never the next.
                log.exception("%s version %d does not load", name, version)
                reason = f"its network fails: {type(error).__name__}"
                self._later(lambda: self._tell_not_loaded(client, number, reason))
            else:
                self._later(lambda: self._install(client, number, model, loaded))

        # Not one that the process would wait for at its end.
        threading.Thread(target=load, name=f"loader-{self._runtime.device}", daemon=True).start()

    def _later(self, call: Callable[[], None]) -> None:
        """Have the loop do it; from the loader's thread."""
        self._loaded.append(call)
        self._ring()

    def _ring(self) -> None:
        # Once the loop has ended, nobody hears it.
        with contextlib.suppress(OSError):
            self._clapper.send(b"!")

    def _install(self, client: Client, number: int, model: ModelId, loaded: Artifact) -> None:
        self._runtime.install(model, loaded)
        self._models[model.digest] = (model, loaded.spec)
        self._say(client, frames.telling(Kind.LOADED, self._told(number), loaded.spec.model_dump_json().encode()))

    def _tell_not_loaded(self, client: Client, number: int, reason: str) -> None:
        self._say(client, frames.telling(Kind.NOT_LOADED, self._told(number), orjson.dumps(reason)))

    def _unload(self, content: object) -> None:
        model = ModelId(*_checked(_UNLOAD, content))
        self._models.pop(model.digest, None)
        self._runtime.unload(model)

    # Sending

    def _told(self, number: int) -> Told:
        return Told(number, self._scheduler.rows, self._scheduler.backlog_s)

    def _say(self, client: Client, frame: bytes) -> None:
        if client in self._clients:
            client.unsent.append(frame)
            self._unsent.add(client)

    def _flush(self, client: Client) -> None:
        self._unsent.discard(client)
        try:
            done = client.send()
        except OSError:
            self._forget(client)
            return
        if done == client.stuffed:
            client.stuffed = not done
            wanted = selectors.EVENT_READ if done else selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(client.connection, wanted, self._selector.get_key(client.connection).data)


T = TypeVar("T")


def _checked(adapter: TypeAdapter[T], content: object) -> T:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        raise FrameError(f"{content!r} is not what it must be") from error


def _check_identity(spec: Spec, model: ModelId) -> None:
    if (spec.name, spec.version) != (model.name, model.version):
        raise ArtifactError(f"the archive is of {spec.name} version {spec.version}")


def _joined(arrays: Sequence[Floats]) -> Floats:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
