"""The way to the devices: what the predictor submits to. A device is at the other end of a Unix socket, in a thread of
this process or in a process of its own; nobody here can tell which (docs/decisions/0009).

Shapes: n windows, L window, F features, H steps a pass, P passes, K known-future covariates, T targets, R attention
rows a pass.
"""

import asyncio
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import orjson

from app.errors import DrainingError, EngineDiedError, ForetellError, NotReadyError, QueueFullError, unpacked
from app.link import frames
from app.link.frames import Busy, FrameError, Kind, Order
from app.spans import Ran
from app.ticket import Floats, ModelId
from models.spec import Spec

log = logging.getLogger(__name__)

PING_S = 1.0
"""How often a device is asked whether it still answers."""

_FRESH_S = 0.1
"""What a device said longer ago keeps nobody out: whoever made it busy may have hung up. One that has a lot to do says
how much with every answer.
"""


class LoadError(Exception):
    """A device does not take a model, and why."""


class EngineStoppedError(LoadError):
    """The device ended while it loaded, or was not there."""


class Outcome(NamedTuple):
    """What an order was answered: its numbers, the forecast [n, P * H, T] and after it the attention [n, P * R, L]."""

    numbers: Floats
    queued_s: float
    device_s: float
    ran: Ran | None = None
    """In which batches, where it is traced."""


Done = Callable[[Outcome | ForetellError], None]
"""Told once, from the event loop."""


Told = Callable[[int, Floats], None]
"""Told, from the event loop, what so many passes more gave: forecast [n, p * H, T] and attention [n, p * R, L]."""

Failing = Callable[[ModelId, str], None]
"""Told which model fails again and again on a device, and how."""


class _Waiting(NamedTuple):
    digest: str
    rows: int
    bulk: bool
    done: Done
    told: Told | None
    ran: Ran | None = None


class _Heard:
    """How busy a device is for orders of one model, as it said last, and what was sent since."""

    __slots__ = ("at", "busy", "row_passes", "rows")

    def __init__(self, busy: Busy, at: float) -> None:
        self.busy = busy
        self.at = at
        self.rows = 0
        self.row_passes = 0

    def now(self) -> Busy:
        """What that comes to now: a second later the device has done a second of it."""
        busy, gone_s = self.busy, time.monotonic() - self.at
        return busy._replace(
            rows=busy.rows + self.rows,
            backlog_s=max(0.0, busy.backlog_s - gone_s) + self.row_passes * busy.row_s,
            wait_s=max(0.0, busy.wait_s - gone_s) + self.rows * busy.row_s,
        )


class Link(asyncio.BufferedProtocol):
    """A connection to one device."""

    def __init__(self, queue_rows: int) -> None:
        self._queue_rows = queue_rows
        self._reader = frames.Reader()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._waiting: dict[int, _Waiting] = {}
        self._loading: dict[int, asyncio.Future[Spec]] = {}
        self._numbers = itertools.count(1)
        self._asked: float | None = None
        self._stalled_s = 0.0
        self._mine = [0, 0]
        """Rows that were submitted and are not answered yet: of orders, and of bulk orders."""
        self._held: tuple[dict[str, int], dict[str, int]] = ({}, {})
        """The same by model."""
        self._told_rows = 0
        self._backlog_s = 0.0
        self._heard: dict[str, _Heard] = {}
        """By digest."""
        self.failing: Failing = lambda _model, _reason: None
        self._empty: asyncio.Future[None] | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, from whichever side."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        for kind, frame in self._reader.frames(nbytes):
            told = frames.read_told(frame)
            number, self._told_rows, self._backlog_s = told[:3]
            if number in self._waiting:
                self._heard[self._waiting[number].digest] = _Heard(told.busy, time.monotonic())
            if kind == Kind.ANSWER:
                self._answer(number, frame)
            elif kind == Kind.PART:
                self._tell_part(number, frame)
            elif kind == Kind.RAN:
                self._note(number, frame)
            elif kind == Kind.REFUSED:
                self._tell(number, unpacked(orjson.loads(frames.told_content(frame))))
            elif kind == Kind.PONG:
                self._asked, self._stalled_s = None, 0.0
                self._hear_all(orjson.loads(frames.told_content(frame)))
            elif kind == Kind.FAILING:
                *model, reason = orjson.loads(frames.told_content(frame))
                self.failing(ModelId(*model), reason)
            elif kind == Kind.LOADED:
                self._settle(number, Spec.model_validate_json(bytes(frames.told_content(frame))))
            elif kind == Kind.NOT_LOADED:
                self._settle(number, LoadError(orjson.loads(frames.told_content(frame))))
            else:
                raise FrameError(f"a frame of kind {kind}")

    def connection_lost(self, _error: Exception | None) -> None:
        # First: who is told must not come back to a dead device.
        if not self.lost.done():
            self.lost.set_result(None)
        waiting, self._waiting, self._mine, self._held = self._waiting, {}, [0, 0], ({}, {})
        for one in waiting.values():
            one.done(EngineDiedError("the engine stopped before the forecast was done"))
        for number in list(self._loading):
            self._settle(number, EngineStoppedError("the engine stopped"))

    # What the engine calls

    @property
    def alive(self) -> bool:
        """Whether it is connected."""
        return not self.lost.done()

    @property
    def rows(self) -> int:
        """Rows that wait there and are not of bulk orders: mine, or everybody's as it last said."""
        return max(self._mine[False], self._told_rows)

    @property
    def bulk_rows(self) -> int:
        """Rows of my bulk orders that wait there."""
        return self._mine[True]

    @property
    def stalled_s(self) -> float:
        """For how long it has not answered while this side was awake, to about PING_S."""
        return self._stalled_s

    def check(
        self,
        rows: int = 1,
        passes: int = 1,
        digest: str | None = None,
        *,
        bulk: bool = False,
        patience_s: float = math.inf,
        max_wait_s: float = math.inf,
    ) -> None:
        """QueueFullError where an order of so many rows would be refused; there is as much room again for bulk orders.

        By what this side has sent, and for a model that is named also by how busy the device was when it last said so.
        """
        mine = self._mine[bulk]
        if mine + rows > self._queue_rows:
            held = mine if digest is None else self._held[bulk].get(digest, 0)
            if held + rows > frames.SHARE * self._queue_rows:
                raise QueueFullError(
                    f"{mine} rows are waiting, of at most {self._queue_rows}",
                    retry_after_s=max(1, math.ceil(self._backlog_s)),
                )
        heard = None if digest is None or bulk else self._heard.get(digest)
        if heard is not None and heard.busy.rows and time.monotonic() - heard.at < _FRESH_S:
            heard.now().check(rows, passes, patience_s, max_wait_s)

    def submit(self, order: Order, done: Done, told: Told | None = None) -> int:
        """Send an order; its number. `told` is of one that is wanted in parts, before `done`."""
        number = next(self._numbers)
        rows, held = len(order.windows), self._held[order.bulk]
        self._waiting[number] = _Waiting(order.digest, rows, order.bulk, done, told)
        self._mine[order.bulk] += rows
        held[order.digest] = held.get(order.digest, 0) + rows
        if not order.bulk and (heard := self._heard.get(order.digest)) is not None:
            heard.rows += rows
            heard.row_passes += rows * order.passes
        self._send(frames.submit(number, order))
        return number

    def drop(self, number: int) -> None:
        """Nobody waits for it any more; `done` is not told."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self._leave(waiting)
            # What the device said of how busy it is counted that order.
            self._heard.clear()
            self._send(frames.short(Kind.DROP, number))

    def ping(self) -> None:
        """Ask whether it still answers, unless it has been asked; to be called every PING_S.

        A process that was stopped, or whose event loop was, finds its own absence in the clock and the answer
        unread: of the time between two calls no more counts than a late one takes.
        """
        now = time.monotonic()
        if self._asked is None:
            self._send(frames.short(Kind.PING, 0))
        else:
            self._stalled_s += min(now - self._asked, 2 * PING_S)
        self._asked = now

    async def load(self, model: ModelId, archive: Path) -> Spec:
        """Have it load a model; LoadError."""
        number = next(self._numbers)
        loading: asyncio.Future[Spec] = asyncio.get_running_loop().create_future()
        if not self.alive:
            raise EngineStoppedError("the engine stopped")
        self._loading[number] = loading
        self._send(frames.short(Kind.LOAD, number, [*model, str(archive)]))
        return await loading

    def unload(self, model: ModelId) -> None:
        """Have it forget a model."""
        self._send(frames.short(Kind.UNLOAD, 0, list(model)))

    async def drained(self) -> None:
        """Wait until everything that was submitted is answered, or the connection is lost."""
        if self._waiting and self.alive:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty, self.lost], return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Hang up; what has not been sent is of no use any more, and may never be taken."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, frame: bytes) -> None:
        """With everything else of this turn of the event loop: one system call, and one pass for all of it."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and self.alive:
            self._transport.write(b"".join(unsent))

    def _answer(self, number: int, frame: memoryview) -> None:
        # Whoever has dropped it meanwhile is told nothing, so nothing is copied.
        waiting = self._waiting.get(number)
        if waiting is not None:
            queued_s, device_s, numbers = frames.read_answer(frame)
            self._tell(number, Outcome(numbers, queued_s, device_s, waiting.ran))

    def _note(self, number: int, frame: memoryview) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            self._waiting[number] = waiting._replace(ran=frames.read_ran(frame))

    def _tell_part(self, number: int, frame: memoryview) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None and waiting.told is not None:
            waiting.told(*frames.read_part(frame))

    def _tell(self, number: int, outcome: Outcome | ForetellError) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self._leave(waiting)
            waiting.done(outcome)

    def _leave(self, waiting: _Waiting) -> None:
        self._mine[waiting.bulk] -= waiting.rows
        held = self._held[waiting.bulk]
        held[waiting.digest] -= waiting.rows
        if not held[waiting.digest]:
            del held[waiting.digest]
        if self._empty is not None and not self._waiting and not self._empty.done():
            self._empty.set_result(None)

    def _hear_all(self, busy: dict[str, list[float]]) -> None:
        """Of all models that are loaded there, and of no others."""
        at = time.monotonic()
        self._heard = {digest: _Heard(Busy._make(fields), at) for digest, fields in busy.items()}

    def _settle(self, number: int, result: Spec | LoadError) -> None:
        loading = self._loading.pop(number, None)
        if loading is None or loading.done():
            return
        if isinstance(result, LoadError):
            loading.set_exception(result)
        else:
            loading.set_result(result)


async def open_link(connection: socket.socket, *, queue_rows: int) -> Link:
    """A link to the device at the other end of a connected Unix socket."""
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: Link(queue_rows), sock=connection)
    return link


class Engine:
    """All devices. Every model is on every device; orders go where the fewest rows of their kind are waiting."""

    def __init__(self, *, queue_rows: int, max_wait_s: float = math.inf) -> None:
        self.queue_rows = queue_rows
        self._max_wait_s = max_wait_s
        self._links: dict[int, Link] = {}
        self._closing = False
        self._pinging = asyncio.get_running_loop().create_task(self._ping(), name="ping")

    def use(self, device: int, link: Link) -> None:
        """From now on the device of that number is at the other end of this link; a link that it had is closed."""
        former = self._links.get(device)
        self._links[device] = link
        if former is not None:
            former.close()

    @property
    def rows(self) -> int:
        """Submitted and not yet answered, on all devices, but for bulk orders."""
        return sum(link.rows for link in self._links.values())

    def check(self, rows: int = 1, passes: int = 1, digest: str | None = None, *, patience_s: float = math.inf) -> None:
        """Raise what `submit` would raise for such an order now: a full engine refuses before anyone parses.

        Whatever waits of bulk orders. Without a digest no more is known than how many rows wait.
        """
        self._idlest().check(rows, passes, digest, patience_s=patience_s, max_wait_s=self._max_wait_s)

    def submit(self, order: Order, done: Done, told: Told | None = None) -> Callable[[], None]:
        """Send an order to one device; QueueFullError, DrainingError or EngineDiedError at once.

        Gives what calls it off: then neither `done` is told nor, of an order in parts, `told`.
        """
        link = self._idlest(bulk=order.bulk)
        link.check(
            len(order.windows),
            order.passes,
            order.digest,
            bulk=order.bulk,
            patience_s=order.patience_s,
            max_wait_s=self._max_wait_s,
        )
        return partial(link.drop, link.submit(order, done, told))

    def serves(self, stall_s: float) -> bool:
        """Whether some device is connected and has answered within so many seconds."""
        return any(link.alive and link.stalled_s <= stall_s for link in self._links.values())

    def healthy(self, stall_s: float) -> bool:
        """Whether every device that was ever used is and has."""
        return all(link.alive and link.stalled_s <= stall_s for link in self._links.values())

    async def close(self, within_s: float) -> None:
        """Refuse from now on, finish what was accepted, for so long at most; then tell the rest and hang up."""
        self._closing = True
        self._pinging.cancel()
        draining = [asyncio.ensure_future(link.drained()) for link in self._links.values()]
        if draining:
            await asyncio.wait(draining, timeout=within_s)
        for link in self._links.values():
            link.close()
        await asyncio.gather(*(link.lost for link in self._links.values()))

    def _idlest(self, *, bulk: bool = False) -> Link:
        if self._closing:
            raise DrainingError("the service is shutting down")
        alive = [link for link in self._links.values() if link.alive]
        if not alive:
            if self._links:
                raise EngineDiedError("the engine has stopped; it takes no more work")
            raise NotReadyError("no device is ready yet")
        if len(alive) == 1:
            return alive[0]
        return min(alive, key=lambda link: (link.bulk_rows, link.rows) if bulk else (link.rows, link.bulk_rows))

    async def _ping(self) -> None:
        while True:
            for link in self._links.values():
                link.ping()
            await asyncio.sleep(PING_S)
