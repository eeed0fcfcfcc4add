"""The engine's side of the socket: one loop that takes what waits, runs a pass, and sends what is done.

Everything happens in one thread, so nothing is handed from thread to thread for a pass and nothing needs a lock; only
models load beside it. Whether that thread is the main one of an engine process or one of several in a process that
also speaks HTTP, nobody on the other side of the socket can tell (docs/decisions/0009).
"""

import contextlib
import logging
import math
import os
import selectors
import socket
import struct
import sys
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
from app.device.scheduler import TURN_S, Scheduler, Watcher
from app.errors import ForetellError, NotReadyError, UnavailableError
from app.link import frames
from app.link.frames import Busy, FrameError, Kind, Told
from app.link.running import Running
from app.settings import Settings
from app.spans import CONTEXT_BYTES, Batches, Ran, Value
from app.ticket import Floats, ModelId, Part, Ticket
from models.artifact import Artifact, ArtifactError
from models.spec import Spec

log = logging.getLogger(__name__)

_CPU_BULK_ROWS = 8
"""So many windows in a pass, a CPU does five of six of what it ever does in a second, and is soon through with them."""

_NICE = 10
"""The priority of a thread that warms a model: a tenth of the time of a core that others want as well.

Not the lowest there is, and not while it reads an archive: TorchScript holds the interpreter's lock for tens of
milliseconds then, and those that answer would wait for it to get them.
"""

_MOST_BATCHES = 16
"""Of one order, that are traced: the first of them. A long forecast is in hundreds."""
_MOST_REQUESTS = 128
"""That the span of a batch is linked with; it would forget others."""

_LOAD = TypeAdapter(tuple[str, int, str, str])
"""Name, version, digest, archive."""
_UNLOAD = TypeAdapter(tuple[str, int, str])


Run = Callable[[Sequence[Ticket]], Sequence[Part]]
"""Takes tickets through a pass, or several in a row."""


class DeviceWatcher(Watcher, Protocol):
    """The same, and how much waits."""

    def waiting(self, device: str, rows: int) -> None:
        """Rows accepted and not yet through."""


class Runtime(Protocol):
    """What runs the passes (app.device.runtime.Runtime)."""

    device: str

    def load(self, model: ModelId, archive: Path, give_way: Callable[[], None]) -> Artifact:
        """In a thread, beside passes; it gives way before it warms what it has read."""

    def install(self, model: ModelId, loaded: Artifact) -> None:
        """From now on its tickets can run."""

    def unload(self, model: ModelId) -> None:
        """Forget a model."""

    def give_back(self) -> None:
        """Give memory that nothing uses any more back to the system; in a thread, beside passes."""

    def run(self, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> Sequence[Part]:
        """One pass, and further ones while `go_on`."""


def device_of(
    settings: Settings,
    name: str,
    watcher: DeviceWatcher,
    running: Path | None = None,
    tracer: Batches | None = None,
) -> "Device":
    """The device of that name, with nothing loaded; where there is a file `running`, it says whose pass is under way
    (app.link.running).
    """
    rows = settings.max_batch_rows
    runtime = runtimes.Runtime(name, threads=settings.torch_threads, batch_rows=rows, precision=settings.precision)
    bulk_rows = settings.bulk_batch_rows or (_CPU_BULK_ROWS if name == "cpu" else rows)
    return Device(
        runtime,
        watcher,
        queue_rows=settings.max_queue_rows,
        batch_rows=rows,
        bulk_batch_rows=min(rows, bulk_rows),
        max_wait_s=settings.max_wait_ms / 1000,
        failures=settings.failures,
        running=None if running is None else Running(running),
        tracer=tracer,
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

    __slots__ = ("client", "left", "number", "tickets", "told", "traced")

    def __init__(self, client: Client, number: int, trace: bytes = b"") -> None:
        self.client = client
        self.number = number
        self.traced = Traced(trace) if trace else None
        self.told = 0
        """Passes that its client has been told of; of an order that is told in parts."""
        self.tickets: list[Ticket] = []
        self.left = 0


class Traced:
    """Of an order that is traced: what it is computed for, and in which batches it has been."""

    __slots__ = ("batches", "began_ns", "contexts", "ended_ns", "request")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.batches = 0
        self.began_ns = 0
        self.ended_ns = 0
        self.contexts = b""

    def was_in(self, context: bytes, began_ns: int, ended_ns: int) -> None:
        """One more."""
        if not self.batches:
            self.began_ns = began_ns
        self.batches += 1
        self.ended_ns = ended_ns
        if self.wants_more:
            self.contexts += context

    @property
    def wants_more(self) -> bool:
        """Whether further batches are to be told of by themselves."""
        return len(self.contexts) < _MOST_BATCHES * CONTEXT_BYTES

    @property
    def ran(self) -> Ran:
        """All that is told of it."""
        return Ran(self.began_ns, self.ended_ns, self.batches, self.contexts)


class _Load:
    """A LOAD under way in a thread."""

    __slots__ = ("called_off", "client", "model", "number")

    def __init__(self, client: Client, number: int, model: ModelId) -> None:
        self.client = client
        self.number = number
        self.model = model
        self.called_off = False
        """An UNLOAD came meanwhile."""


class Device:
    """One device with its models, its queue and those who are connected to it."""

    def __init__(
        self,
        runtime: Runtime,
        watcher: DeviceWatcher,
        *,
        queue_rows: int,
        batch_rows: int,
        bulk_batch_rows: int,
        max_wait_s: float = math.inf,
        turn_s: float = TURN_S,
        failures: int = 5,
        running: Running | None = None,
        tracer: Batches | None = None,
    ) -> None:
        self._runtime = runtime
        self._watcher = watcher
        self._batch_rows = batch_rows
        self._bulk_batch_rows = bulk_batch_rows
        self._running = running
        run: Run = partial(runtime.run, go_on=self._goes_on)
        if running is not None:
            run = partial(_said, running, run)
        self._scheduler = Scheduler(
            run if tracer is None else partial(_traced, tracer, runtime.device, run),
            time.monotonic,
            watcher,
            queue_rows=queue_rows,
            batch_rows=batch_rows,
            bulk_batch_rows=bulk_batch_rows,
            max_wait_s=max_wait_s,
            turn_s=turn_s,
            failures=failures,
            failing=self._tell_failing,
            split=_split,
        )
        self._models: dict[str, tuple[ModelId, Spec]] = {}
        """Those that take orders, by digest."""
        self._leaving: dict[str, tuple[ModelId, Spec]] = {}
        """Those that take none any more, while what they have accepted is finished."""
        self._in_parts: set[OrderUnderWay] = set()
        """Orders whose steps are wanted as they are done."""
        self._loads: set[_Load] = set()
        self._clients: set[Client] = set()
        self._unsent: set[Client] = set()
        self._selector = selectors.DefaultSelector()
        self._loaded: list[Callable[[], None]] = []
        self._bell, self._clapper = socket.socketpair()
        self._bell.settimeout(0)
        self._closed = False
        self._is_loose = False
        """Whoever started this process is no more."""
        self._watched_rows = 0
        self._watch(self._bell, self._rung)

    def listen(self, listener: socket.socket) -> None:
        """Take connections there."""
        listener.settimeout(0)
        self._watch(listener, lambda _: self._accept(listener))

    def leash(self, end: socket.socket) -> None:
        """Close once the other end says so; where it has just ended, as soon as nobody is connected any more."""
        self._watch(end, lambda _: self._let_loose(end))

    @property
    def models(self) -> list[ModelId]:
        """Those that take orders; from any thread."""
        return [model for model, _ in list(self._models.values())]

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
                through = self._scheduler.turn()
                if through:
                    self._settle_all(through)
                if self._in_parts:
                    self._tell_parts()
                if self._leaving:
                    self._let_go()
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

    def _goes_on(self) -> bool:
        """Whether those in the pass may go straight on: nobody who would come first or along wants anything, or there
        is a crowd, and they keep their places for a while. In a crowd somebody always wants something.
        """
        if self._scheduler.undisturbed:
            return not self._selector.select(0)
        return self._scheduler.stays()

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

    def _let_loose(self, end: socket.socket) -> None:
        self._selector.unregister(end)
        self._is_loose = True
        try:
            told = end.recv(1)
        except OSError:
            told = b""  # it had not even read what it was told
        # Who is connected finishes what it has accepted, and ends by itself.
        if told or not self._clients:
            self.close()

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
        if self._is_loose and not self._clients:
            self.close()

    def _obey(self, client: Client, kind: int, frame: memoryview) -> None:
        if kind == Kind.SUBMIT:
            self._submit(client, frame)
        elif kind == Kind.DROP:
            order = client.orders.pop(frames.number_of(frame), None)
            if order is not None:
                self._call_off(order)
        elif kind == Kind.PING:
            self._pong(client, frames.number_of(frame))
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
        order = OrderUnderWay(client, number, asked.trace)
        rows = min(self._scheduler.room(model), self._bulk_batch_rows if asked.bulk else self._batch_rows)
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
            self._scheduler.submit(order.tickets, asked.patience_s)
        except UnavailableError as error:
            self._refuse(client, number, error, model)
        else:
            client.orders[number] = order
            if asked.in_parts:
                self._in_parts.add(order)

    def _settle_all(self, through: Sequence[Ticket]) -> None:
        # They are of one pass, and have left: all of them are told the same.
        busy = self._scheduler.busy(through[0].model)
        for ticket in through:
            self._settle(ticket, busy)

    def _settle(self, ticket: Ticket, busy: Busy) -> None:
        """A ticket is through; its order is when all of its tickets are, or when one failed."""
        order: OrderUnderWay = ticket.owner
        order.left -= 1
        if ticket.error is None and order.left:
            return
        self._in_parts.discard(order)
        if order.client.orders.pop(order.number, None) is None:
            return  # another of its tickets failed before
        if ticket.error is not None:
            self._call_off(order)
            self._refuse(order.client, order.number, ticket.error, ticket.model)
            return
        tickets = order.tickets
        queued_s = max(one.queued_s or 0.0 for one in tickets)
        device_s = sum(one.device_s for one in tickets)
        forecast = _joined([one.forecast() for one in tickets])
        weights = [weights for one in tickets if (weights := one.weights()) is not None]
        told = Told(order.number, *busy)
        if order.traced is not None and order.traced.batches:
            order.client.unsent.append(frames.ran(told, order.traced.ran))
        order.client.unsent += frames.answer(told, queued_s, device_s, forecast, _joined(weights) if weights else None)
        self._unsent.add(order.client)

    def _tell_parts(self) -> None:
        """What the last turn added to the orders that are told in parts: passes that all of their rows have done."""
        for order in self._in_parts:
            tickets = order.tickets
            done = min(ticket.done for ticket in tickets)
            if done == order.told:
                continue
            parts = [ticket.passed(order.told, done) for ticket in tickets]
            forecast = _joined([part.forecast for part in parts])
            weights = [part.attention for part in parts if part.attention is not None]
            told = self._told(order.number, tickets[0].model)
            order.client.unsent += frames.part(told, done - order.told, forecast, _joined(weights) if weights else None)
            order.told = done
            self._unsent.add(order.client)

    def _call_off(self, order: OrderUnderWay) -> None:
        self._in_parts.discard(order)
        for ticket in order.tickets:
            self._scheduler.drop(ticket)

    def _refuse(self, client: Client, number: int, error: ForetellError, model: ModelId | None = None) -> None:
        self._say(client, frames.telling(Kind.REFUSED, self._told(number, model), orjson.dumps(error.packed())))

    def _pong(self, client: Client, number: int) -> None:
        """With how busy it is for each model: whoever sends a model nothing hears nothing else of it."""
        busy = {digest: list(self._scheduler.busy(model)) for digest, (model, _) in self._models.items()}
        self._say(client, frames.telling(Kind.PONG, self._told(number), orjson.dumps(busy)))

    # Models

    def _load(self, client: Client, number: int, content: object) -> None:
        name, version, digest, archive = _checked(_LOAD, content)
        model = ModelId(name, version, digest)
        leaving = self._leaving.get(digest)
        if leaving is not None and leaving[0] == model:
            # All of it is still there.
            del self._leaving[digest]
            self._serve_model(client, number, *leaving, leaving[1].model_dump_json().encode())
            return
        load = _Load(client, number, model)
        self._loads.add(load)
        # Not one that the process would wait for at its end.
        name = f"loader-{self._runtime.device}"
        threading.Thread(target=self._read, args=(load, Path(archive)), name=name, daemon=True).start()

    def _read(self, load: _Load, archive: Path) -> None:
        """In a thread of its own, which gives way to those that answer."""
        model = load.model
        try:
            loaded = self._runtime.load(model, archive, _give_way)
            _check_identity(loaded.spec, model)
            spec = loaded.spec.model_dump_json().encode()
        except (ArtifactError, OSError) as error:
            reason = error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
            self._later(partial(self._tell_not_loaded, load, reason))
        except Exception as error:
            # Whatever a network does on its first rows keeps that one out, never the next.
            log.exception("%s version %d does not load", model.name, model.version)
            self._later(partial(self._tell_not_loaded, load, f"its network fails: {type(error).__name__}"))
        else:
            self._later(partial(self._install, load, loaded, spec))

    def _later(self, call: Callable[[], None]) -> None:
        """Have the loop do it; from the loader's thread."""
        self._loaded.append(call)
        self._ring()

    def _ring(self) -> None:
        # Once the loop has ended, nobody hears it.
        with contextlib.suppress(OSError):
            self._clapper.send(b"!")

    def _install(self, load: _Load, loaded: Artifact, spec: bytes) -> None:
        if load.called_off:
            self._tell_not_loaded(load, "it was unloaded before it was loaded")
            self._clean_up()
            return
        self._loads.discard(load)
        self._runtime.install(load.model, loaded)
        self._leaving.pop(load.model.digest, None)
        self._serve_model(load.client, load.number, load.model, loaded.spec, spec)

    def _serve_model(self, client: Client, number: int, model: ModelId, spec: Spec, packed: bytes) -> None:
        self._models[model.digest] = (model, spec)
        self._scheduler.renew(model)
        self._say(client, frames.telling(Kind.LOADED, self._told(number), packed))

    def _tell_not_loaded(self, load: _Load, reason: str) -> None:
        self._loads.discard(load)
        self._say(load.client, frames.telling(Kind.NOT_LOADED, self._told(load.number), orjson.dumps(reason)))

    def _unload(self, content: object) -> None:
        """No further orders; what was accepted is finished, and then the model is forgotten."""
        model = ModelId(*_checked(_UNLOAD, content))
        for load in self._loads:
            if load.model == model:
                load.called_off = True
        found = self._models.pop(model.digest, None)
        if found is not None:
            self._leaving[model.digest] = found

    def _let_go(self) -> None:
        """Forget the models that are left by the last of their rows."""
        gone = [model for model, _ in self._leaving.values() if not self._scheduler.holds(model)]
        for model in gone:
            del self._leaving[model.digest]
            self._scheduler.forget(model)
            self._runtime.unload(model)
        if gone:
            self._clean_up()

    def _clean_up(self) -> None:
        """In a thread: it takes the C library milliseconds, and more the more there is."""
        name = f"cleaner-{self._runtime.device}"
        threading.Thread(target=self._give_back, name=name, daemon=True).start()

    def _give_back(self) -> None:
        _give_way()
        try:
            self._runtime.give_back()
        except Exception:
            # Passes will tell what is wrong with the device, if anything is.
            log.exception("memory of %s cannot be given back", self._runtime.device)

    def _tell_failing(self, model: ModelId, reason: str) -> None:
        if model.digest not in self._models:
            return  # it is leaving anyhow
        log.error("%s version %d: %s", model.name, model.version, reason)
        frame = frames.telling(Kind.FAILING, self._told(0, model), orjson.dumps([*model, reason]))
        for client in self._clients:
            self._say(client, frame)

    # Sending

    def _told(self, number: int, model: ModelId | None = None) -> Told:
        return Told(number, *self._scheduler.busy(model))

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


def _said(running: Running, run: Run, tickets: Sequence[Ticket]) -> Sequence[Part]:
    """Run a pass, and have said whose it is until it has ended."""
    running.begin(tickets[0].model)
    try:
        return run(tickets)
    finally:
        running.end()


def _traced(tracer: Batches, device: str, run: Run, tickets: Sequence[Ticket]) -> Sequence[Part]:
    """Run a pass, or several in a row, and have it traced as one batch where one of those in it is."""
    owners: dict[OrderUnderWay, None] = dict.fromkeys(ticket.owner for ticket in tickets)
    among = [order.traced for order in owners if order.traced is not None]
    if not among:
        return run(tickets)
    linked = [one.request for one in among if one.wants_more][:_MOST_REQUESTS]
    model, rows = tickets[0].model, sum(ticket.rows for ticket in tickets)
    of: dict[str, Value] = {"device": device, "rows": rows, "orders": len(owners)}
    began_ns = time.time_ns()
    try:
        parts = run(tickets)
    except Exception as error:
        if linked:
            tracer.batch(model, began_ns, time.time_ns(), linked, of, type(error).__name__)
        raise
    ended_ns = time.time_ns()
    context = b""
    if linked:
        of |= {"passes": parts[0].passes, "steps": parts[0].forecast.shape[1]}
        context = tracer.batch(model, began_ns, ended_ns, linked, of)
    for one in among:
        one.was_in(context, began_ns, ended_ns)
    return parts


def _split(ticket: Ticket) -> Sequence[Ticket]:
    """The halves of a ticket, in its place among those of its order."""
    order: OrderUnderWay = ticket.owner
    at = order.tickets.index(ticket)
    halves = ticket.halves()
    order.tickets[at : at + 1] = halves
    order.left += 1
    return halves


def _give_way() -> None:
    """From now on this thread has a lower priority; elsewhere than on Linux threads have none of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))


def _check_identity(spec: Spec, model: ModelId) -> None:
    if (spec.name, spec.version) != (model.name, model.version):
        raise ArtifactError(f"the archive is of {spec.name} version {spec.version}")


def _joined(arrays: Sequence[Floats]) -> Floats:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
