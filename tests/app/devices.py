"""A device in a thread with a runtime that the test holds, and those who are connected to it.

with served(runtime, clients=2) as s: ...

Shapes: n windows, L window, F features, H steps a pass, P passes, K known-future covariates, T targets, R attention
rows a pass.
"""

import math
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import orjson

from app.device.loop import Device
from app.device.scheduler import TURN_S
from app.link import frames
from app.link.engine import Outcome
from app.link.frames import Kind, Order, Told
from app.link.running import Running
from app.spans import Batches
from app.ticket import ModelId, NoRoomError, Part, Ticket
from models.artifact import Artifact
from models.spec import Spec
from tests.app.fakes import MODEL, FakeWatcher
from tests.builders import network, spec_for
from tests.patience import PATIENCE_S


@cache
def spec() -> Spec:
    """Of the model that fake runtimes load: two targets, attention, one known-future covariate, two steps a pass."""
    config = {"hidden": 4, "layers": 1, "attention_size": 4}
    built = network("attention_lstm", config, roles=("target", "past", "future", "target"), horizon=2)
    return spec_for(built, architecture="attention_lstm", config=config)


class FakeRuntime:
    """Its passes wait in the device's thread while it is held; its answers show for whom and of what they are."""

    def __init__(self, *, held: bool = False) -> None:
        self.device = "fake"
        self.models: list[ModelId] = []
        self.loaded: list[tuple[ModelId, Path]] = []
        self.given_back = 0
        self.niceness = 0
        """Of the last thread that loaded, once it had given way."""
        self.passes: list[list[Ticket]] = []
        self.bad: set[int] = set()
        """Windows with any of these tags fail."""
        self.error: Exception = ValueError("a bad row")
        self.load_error: Exception | None = None
        self.name: str | None = None
        """Of which model the archives are, if not of the one that is asked for."""
        self.may_load = threading.Event()
        self.may_load.set()
        self.most: int | None = None
        """Passes of more rows do not fit into memory."""
        self.go_on: Callable[[], bool] = lambda: False
        """What the last pass was given to ask whether another may follow."""
        self._held = held
        self._steps = threading.Semaphore(0)
        self._begun: queue.Queue[list[Ticket]] = queue.Queue()

    # What a device calls

    def load(self, model: ModelId, archive: Path, give_way: Callable[[], None]) -> Artifact:
        self.loaded.append((model, archive))
        assert self.may_load.wait(PATIENCE_S)
        give_way()
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if self.load_error is not None:
            raise self.load_error
        names = {"name": self.name or model.name, "version": model.version}
        return cast(Artifact, SimpleNamespace(spec=spec().model_copy(update=names)))

    def install(self, model: ModelId, loaded: Artifact) -> None:
        self.models.append(model)

    def unload(self, model: ModelId) -> None:
        if model in self.models:
            self.models.remove(model)

    def give_back(self) -> None:
        self.given_back += 1

    def run(self, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> list[Part]:
        self.go_on = go_on
        self.passes.append(list(tickets))
        self._begun.put(list(tickets))
        if self._held:
            assert self._steps.acquire(timeout=PATIENCE_S)
        if self.most is not None and sum(ticket.rows for ticket in tickets) > self.most:
            raise NoRoomError("out of memory")
        if any(int(tag) in self.bad for ticket in tickets for tag in ticket.window[:, 0, 0]):
            raise self.error
        return [part_of(ticket) for ticket in tickets]

    # What a test calls

    def begun(self) -> list[Ticket]:
        """The next pass that has begun and was not asked for yet; waits for it."""
        return self._begun.get(timeout=PATIENCE_S)

    def step(self) -> None:
        """Let one pass end."""
        self._steps.release()

    def let_go(self) -> None:
        """Hold no pass any more."""
        self._held = False
        self._steps.release()
        self.may_load.set()


def part_of(ticket: Ticket) -> Part:
    """What the fake model gives for a ticket's next pass: something of all that it was given."""
    done, horizon = ticket.done, spec().horizon
    known = ticket.known[:, done * horizon : (done + 1) * horizon].sum(2)
    forecast = 100 * ticket.window[:, :1, 0] + 10 * done + known + ticket.time[:, None]
    weights = ticket.window[:, None, :, 1] + np.full((1, spec().attention_rows, 1), done)
    return Part(
        np.stack([forecast, -forecast], 2).astype(np.float32),
        weights.astype(np.float32) if ticket.attention else None,
    )


def order(
    tag: int,
    *,
    rows: int = 1,
    passes: int = 1,
    attention: bool = False,
    bulk: bool = False,
    model: ModelId = MODEL,
    patience_s: float = math.inf,
    trace: bytes = b"",
) -> Order:
    """An order of windows with the tags `tag`, `tag + 1` and so on."""
    s, random = spec(), np.random.default_rng(tag)
    windows = random.integers(0, 9, (rows, s.window, len(s.features))).astype(np.float32)
    windows[:, 0, 0] = np.arange(tag, tag + rows)
    known = random.integers(0, 9, (rows, passes * s.horizon, len(s.known))).astype(np.float32)
    return Order(model.digest, windows, np.arange(rows), known, passes, attention, bulk, patience_s, trace=trace)


def numbers_of(asked: Order) -> np.ndarray:
    """The right answer to an order: all of its forecast, and then all of its attention."""
    one = Ticket(MODEL, asked.windows, asked.time, asked.known, asked.passes, asked.attention)
    while not one.finished:
        one.take(part_of(one))
    weights = one.weights()
    return np.concatenate([one.forecast().ravel(), [] if weights is None else weights.ravel()])


def is_answer(outcome: object, asked: Order) -> bool:
    """Whether it is the right answer to that order."""
    return isinstance(outcome, Outcome) and np.array_equal(outcome.numbers, numbers_of(asked))


class Heard(NamedTuple):
    """A frame of the engine."""

    kind: int
    told: Told
    frame: bytes

    @property
    def content(self) -> object:
        """Its JSON."""
        return orjson.loads(frames.told_content(memoryview(self.frame)))

    @property
    def numbers(self) -> np.ndarray:
        """Those of an answer."""
        assert self.kind == Kind.ANSWER, self
        return frames.read_answer(memoryview(self.frame))[2]


class Peer:
    """One connection to a device, from the side of who asks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connection = connection
        self._reader = frames.Reader()
        self._heard: deque[Heard] = deque()

    def send(self, *sent: bytes) -> None:
        """Send frames in one piece."""
        self.connection.sendall(b"".join(sent))

    def ask(self, number: int, asked: Order) -> None:
        """Submit an order."""
        self.send(frames.submit(number, asked))

    def drop(self, number: int) -> None:
        """Nobody waits for it any more."""
        self.send(frames.short(Kind.DROP, number))

    def load(self, model: ModelId = MODEL, archive: str = "model.pt") -> Heard:
        """Have a model loaded; what comes of it."""
        self.send(frames.short(Kind.LOAD, 99, [*model, archive]))
        return self.hear()

    def ping(self) -> Told:
        """How the device is; everything that was sent before has been obeyed."""
        self.send(frames.short(Kind.PING, 77))
        heard = self.hear()
        assert (heard.kind, heard.told.order) == (Kind.PONG, 77), heard
        return heard.told

    def hear(self) -> Heard:
        """The next frame; waits for it."""
        while not self._heard:
            received = self.connection.recv_into(self._reader.room())
            assert received, "the connection has ended"
            for kind, frame in self._reader.frames(received):
                self._heard.append(Heard(kind, frames.read_told(frame), bytes(frame)))
        return self._heard.popleft()

    def answers(self, count: int) -> dict[int, np.ndarray]:
        """The numbers of the next so many answers, by order."""
        heard = [self.hear() for _ in range(count)]
        assert len({one.told.order for one in heard}) == count
        return {one.told.order: one.numbers for one in heard}

    def has_ended(self) -> bool:
        """Wait for the other side's next word, which must be its last: whether it hung up."""
        try:
            return not self._heard and not self.connection.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


class Served:
    """A device under way in a thread."""

    def __init__(self, device: Device, runtime: FakeRuntime, watcher: FakeWatcher, peers: list[Peer]) -> None:
        self.device = device
        self.runtime = runtime
        self.watcher = watcher
        self.peers = peers
        self.error: BaseException | None = None
        """What it ended with."""
        self.thread = threading.Thread(target=self._serve, name="device", daemon=True)

    def _serve(self) -> None:
        try:
            self.device.serve()
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def wait(self) -> None:
        """Until it has ended."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the device does not end"


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection."""
    return socket.socketpair()


@contextmanager
def served(
    runtime: FakeRuntime | None = None,
    *,
    clients: int = 1,
    queue_rows: int = 100,
    batch_rows: int = 4,
    bulk_batch_rows: int | None = None,
    loaded: bool = True,
    prepare: Callable[[Device], None] = lambda _: None,
    theirs: Callable[[], tuple[socket.socket, socket.socket]] = pair,
    max_wait_s: float = math.inf,
    turn_s: float = TURN_S,
    failures: int = 5,
    running: Path | None = None,
    tracer: Batches | None = None,
) -> Iterator[Served]:
    """A device that serves so many clients, with MODEL loaded unless told otherwise."""
    runtime, watcher = runtime or FakeRuntime(), FakeWatcher()
    device = Device(
        runtime,
        watcher,
        queue_rows=queue_rows,
        batch_rows=batch_rows,
        bulk_batch_rows=bulk_batch_rows or batch_rows,
        max_wait_s=max_wait_s,
        turn_s=turn_s,
        failures=failures,
        running=None if running is None else Running(running),
        tracer=tracer,
    )
    peers = []
    for _ in range(clients):
        ours, other = theirs()
        device.connect(other)
        peers.append(Peer(ours))
    prepare(device)
    made = Served(device, runtime, watcher, peers)
    made.thread.start()
    try:
        if loaded:
            assert peers[0].load().kind == Kind.LOADED
        yield made
    finally:
        runtime.let_go()
        device.close()
        for peer in peers:
            peer.close()
        made.wait()
