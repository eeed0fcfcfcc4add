"""The connections of an HTTP process: how many there may be, and how long a client may take to send and to read.

uvicorn's protocol parses and answers. What it leaves without a bound is bounded here: connections, heads, pipelined
requests, and the time that any of them waits for its client. A single timer looks at all connections a few times a
second, so that a request pays for none of it.
"""

import asyncio
import fcntl
import resource
import socket
import termios
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.edge.transport import Flow, Gathering, fresh_identity, last_answer
from app.errors import ForetellError, MalformedError, SlowRequestError, UnavailableError
from app.handlers import problem
from app.lifecycle import Lifecycle
from app.metrics import Metrics

_SPARED = ("/health/", "/metrics")
"""Paths that are answered when there is room for nothing else."""
_RESERVE = 16
"""So many connections beyond the limit get in to ask for these, and as many again to be told that there is no room."""
_FILES = 128
"""Open files that are kept free for everything but connections, or half of those that there may be."""
_KEEP_ALIVE_S = 75.0
"""For the next request on a connection; longer than load balancers keep one (60 s), who would else run into its end."""
_PACE_S = 4.0
"""For each MiB, what a client may take at the slowest: some two Mbit/s."""
_MIB = 2**20
_HEAD = 32 * 2**10
"""Most bytes in a row, about, that bring no body: a head, what goes with chunks, what comes after them."""
_SLICE = 16 * 2**10
"""So much is parsed at a time: what has come in may be thousands of requests."""
_LINGER_S = 1.0
"""An answer that ends a connection is followed by its end this late: what comes in after the end resets it, and the
client may lose the answer."""
_PROBE_S = 0.05
"""Until it is clear whether a client that sends no more has gone."""
_TRIES = 8
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8
"""States, in Linux's `tcp_info`, of a connection that the other end has reset, and on which it sends no more."""


class Reading(Enum):
    """What of a request is on its way in."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class Connections:
    """Those of one process, of which there are at most `most`.

    Within `head_s` a head arrives. Whoever sends no more of a body, or takes no more of an answer, for `body_s`, and
    4 s for each MiB that moved, is let go. While the process drains, every answer is the last on its connection.
    """

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, *, most: int, head_s: float, body_s: float) -> None:
        self.lifecycle = lifecycle
        self.head_s = head_s
        self.body_s = body_s
        self.now = 0.0
        """Of a clock that a stall of this process does not move: clients could not have done anything about it."""
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Those that wait for a head, the one that has waited longest first."""
        self._metrics = metrics
        self._most = most
        self._open: set[Connection] = set()
        self._period_s = min(head_s / 4, body_s / 4, 0.5)
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0

    def protocol(self, **given: Any) -> "Connection":  # noqa: ANN401  whatever uvicorn gives a protocol
        """One more, as uvicorn asks for it."""
        return Connection(self, **given)

    def add(self, connection: "Connection") -> None:
        """It is there, and is let in as far as there is room."""
        if len(self._open) >= self._most:
            self._make_room()
        room = self._most - len(self._open)
        if room <= -2 * _RESERVE:
            connection.turn_away(lingers=False)
        elif room <= -_RESERVE:
            connection.turn_away(lingers=True)
        elif room <= 0:
            connection.narrow()
        if room <= -_RESERVE:
            self.cut("limit")
        if room > -2 * _RESERVE:
            self._open.add(connection)
            self.idle[connection] = None
            self._metrics.connections(len(self._open))
        if self._timer is None:
            self._watch()

    def remove(self, connection: "Connection") -> None:
        """It is no more."""
        self.idle.pop(connection, None)
        self._open.discard(connection)
        self._metrics.connections(len(self._open))

    def cut(self, reason: str) -> None:
        """A connection was ended of our own accord."""
        self._metrics.cut(reason)

    def allowed_s(self, moved: int) -> float:
        """The longest wait for a client that has sent or taken so many bytes meanwhile."""
        return self.body_s + moved / _MIB * _PACE_S

    def _make_room(self) -> None:
        """End the connection that has waited longest for a request, where there is one."""
        for _ in range(min(_TRIES, len(self.idle))):
            connection = next(iter(self.idle))
            if not connection.buffered and connection.end():
                self.remove(connection)
                self.cut("idle")
                return
            # The last of its answer is still on the way, or its next request has come.
            self.idle.move_to_end(connection)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked = loop.time()
        self._timer = loop.call_later(self._period_s, self._look)

    def _look(self) -> None:
        self.now += min(asyncio.get_running_loop().time() - self._looked, 2 * self._period_s)
        for connection in list(self._open):
            connection.check()
        self._timer = None
        if self._open:
            self._watch()


class Connection(HttpToolsProtocol):
    """uvicorn's, on a transport that gathers, and bounded."""

    def __init__(self, connections: Connections, **given: Any) -> None:  # noqa: ANN401  uvicorn's own arguments
        super().__init__(**given)
        self._all = connections
        self._running: RequestResponseCycle | None = None
        """The request that is being answered, or was last; uvicorn's `cycle` is the one that was last read."""
        self._reading = Reading.NOTHING
        self._since = 0.0
        """When what is waited for from the client was begun to wait for."""
        self._received = 0
        """Bytes of the body that came since then."""
        self._progress = 0
        self._barren = 0
        """Bytes that brought nothing on since the last that did."""
        self._held = memoryview(b"")
        """What came in behind a request that still waits for its turn."""
        self._is_over = False
        """Nothing more is read of what this client sends."""
        self._fault: ForetellError | None = None
        """Why, to be told once the requests before are answered."""
        self._is_late = False
        self._is_leaving = False
        """The process ends, and with it whatever is idle."""
        self._last: RequestResponseCycle | None = None
        """The request whose answer was made the last one because the process drains."""
        self._is_half_closed = False
        self._has_probed = False
        self._is_narrow = False
        self._stuck_since: float | None = None
        self._stuck_at = 0
        self._wire: asyncio.Transport
        self._gathering: Gathering

    # What uvicorn's server and transport call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
        """A client is there."""
        self._wire = transport
        self._gathering = Gathering(transport)
        super().connection_made(cast(asyncio.Transport, self._gathering))
        self.flow = Flow(self.transport, self.pipeline)
        self._since = self._all.now
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone; uvicorn tells only the request that was read last."""
        super().connection_lost(exc)
        self._all.remove(self)
        self._is_over = True
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse it, but not far beyond the request that is being answered."""
        if self._is_over:
            return
        if self.pipeline or len(data) > _SLICE:
            self._held = memoryview(bytes(self._held) + data if self._held else data)
            self._go_on()
        else:
            self._feed(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's own
        """The client sends no more. It may have gone, or wait for what it asked for: true where that is to be seen."""
        running = self._running
        if running is None or running.response_complete or running.disconnected or self.scheme == "https":
            # The answer may have been written in this very turn, and is not to be lost.
            self._gathering.close()
            return False
        if running is self.cycle and running.more_body:
            return False
        self.cycle.keep_alive = False
        self._gathering.linger = None
        self._is_half_closed = True
        self._check_gone()
        self.loop.call_later(_PROBE_S, self._check_gone)
        return True

    def on_response_complete(self) -> None:
        """The next request, where it has come in already."""
        self.server_state.total_requests += 1
        if self._gathering.is_closing() or self._running is self._last:
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self._go_on()
        elif self._fault is not None:
            self._answer(self._fault)
        else:
            self._rest()
        self.flow.resume_reading()

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._reading = Reading.HEAD
        self._since = self._all.now

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of a head; what comes after a body could contradict what was decided by then, and is dropped."""
        if self._reading is Reading.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request is there, but for its body. MalformedError for what RFC 9112 wants refused and llhttp lets pass."""
        version = self.parser.get_http_version()
        _check_head(version, self.headers)
        if version == "1.0":
            self.app = partial(_in_one, self.app)
            self.expect_100_continue = False
        super().on_headers_complete()
        if self._is_narrow:
            self.cycle.keep_alive = False
        if self._all.lifecycle.draining:
            self._make_last()
        self._reading = Reading.BODY
        self._since = self._all.now
        self._received = 0
        self._is_late = False
        self._progress += 1
        self._all.idle.pop(self, None)

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._progress += 1
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._progress += 1
        self._reading = Reading.NOTHING
        super().on_message_complete()
        if self.cycle.response_complete:
            self._rest()

    def shutdown(self) -> None:
        """The process ends: an idle connection does too, and any other once what came over it is answered."""
        self._is_leaving = True
        if self in self._all.idle and self._reading is Reading.NOTHING and not self._is_over:
            self.end()

    # What the other connections call

    @property
    def buffered(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self._wire.get_write_buffer_size()

    def end(self) -> bool:
        """Close it; whatever its client has not taken is sent. False where it sends the next request already."""
        if self._has_unread():
            return False
        self._is_over = True
        self._gathering.close()
        return True

    def turn_away(self, *, lingers: bool) -> None:
        """There is no room: say so without reading anything."""
        self._answer(_full(), lingers=lingers)

    def narrow(self) -> None:
        """Room only for who asks how the service is, and that once."""
        self._is_narrow = True
        self.app = partial(_spared, self.app)

    def check(self) -> None:
        """Let the client go where it has kept this connection waiting for too long."""
        if self._all.lifecycle.draining:
            self._make_last()
        if self._is_stuck():
            self._cut("slow-reader")
        elif self._is_half_closed:
            self._check_gone()
        elif self._gathering.is_closing():
            return
        elif self._is_over:
            if self._all.now - self._since > _LINGER_S and self._fault is None:
                self._gathering.close()
        elif self.flow.read_paused:
            # The end of what is sent would not be noticed.
            self._check_gone()
            self._since = self._all.now
            self._received = 0
        elif self._reading is Reading.HEAD:
            if self._all.now - self._since > self._all.head_s:
                self._all.cut("slow-head")
                self._refuse(SlowRequestError("the head did not arrive in time"))
        elif self._reading is Reading.BODY:
            if self._all.now - self._since > self._all.allowed_s(self._received):
                self._end_body()
        elif self in self._all.idle and self._all.now - self._since > self._patience_s():
            self.end()

    # Parsing

    def _go_on(self) -> None:
        while self._held and not self.pipeline and not self._is_over:
            piece, self._held = self._held[:_SLICE], self._held[_SLICE:]
            self._feed(piece)
        if not self._held or self._is_over:
            self._held = memoryview(b"")

    def _feed(self, piece: bytes | memoryview) -> None:
        progress = self._progress
        rest = piece
        while rest:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                # It is answered without the other protocol. Its body, if any, the parser would take for a request.
                rest = rest[upgrade.args[0] :]
                if any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
                    self.cycle.keep_alive = False
                    self._is_over = True
                    return
            except httptools.HttpParserError as error:
                self._all.cut("malformed")
                self._refuse(_told(error))
                return
        if self._progress > progress:
            self._barren = 0
            return
        self._barren += len(piece)
        if self._barren > _HEAD:
            self._all.cut("malformed")
            self._refuse(MalformedError(f"what goes around a body may have at most {_HEAD} bytes"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401  uvicorn's kind of ASGI
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: ForetellError) -> None:
        """Answer the requests that are whole, then with the error, and end."""
        self._is_over = True
        running = self._running
        if running is None or running.response_complete:
            self._answer(error)
        elif running is not self.cycle or not running.more_body:
            if self.pipeline and self.cycle.more_body:
                self.pipeline.popleft()
            self._fault = error
        elif running.response_started:
            self._gathering.abort()
        else:
            running.disconnected = True
            running.message_event.set()
            self._answer(error)

    def _answer(self, error: ForetellError, *, lingers: bool = True) -> None:
        """The last answer, and the end of what is sent."""
        self._is_over = True
        self._fault = None
        self._gathering.write(last_answer(error, self.server_state.default_headers))
        self._gathering.linger = self._linger if lingers and self._wire.can_write_eof() else None
        self._gathering.close()

    def _make_last(self) -> None:
        """Have the request that was read last be answered as the last one, and those before it not, as they may be."""
        last = self._last
        if self.cycle is None or self.cycle is last or self.cycle.response_started:
            return
        if last is not None:
            if last.response_started:
                return
            last.keep_alive = True
            self._last = None
            self._gathering.linger = None
        if self.cycle.keep_alive:
            self._last = self.cycle
            self._last.keep_alive = False
            self._gathering.linger = self._linger if self._wire.can_write_eof() else None

    def _linger(self) -> None:
        """The client has been told that nothing follows; it is to close first."""
        self._is_over = True
        self._since = self._all.now
        self._all.idle[self] = None

    # Waiting

    def _rest(self) -> None:
        """Nothing is under way: wait for the next request."""
        if self._reading is Reading.NOTHING:
            self._since = self._all.now
            self._all.idle[self] = None

    def _patience_s(self) -> float:
        if self._is_leaving:
            return 0.0
        return self._all.head_s if self.cycle is None else _KEEP_ALIVE_S

    def _has_unread(self) -> bool:
        """Whether something has come in that this process has not read yet."""
        count = fcntl.ioctl(self._wire.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(count)

    def _end_body(self) -> None:
        """It has not come. Whoever reads it is told, and answers."""
        if self.cycle.response_complete:
            self._cut("slow-body")
        elif not self._is_late:
            self._is_late = True
            self._all.cut("slow-body")
            self.cycle.scope["state"]["late"] = True
            self.cycle.message_event.set()

    def _is_stuck(self) -> bool:
        """Whether the client has not taken its answer in time."""
        buffered = self.buffered
        if not buffered:
            self._stuck_since = None
            return False
        sent = self._gathering.written - buffered
        if self._stuck_since is None:
            self._stuck_since, self._stuck_at = self._all.now, sent
        return self._all.now - self._stuck_since > self._all.allowed_s(sent - self._stuck_at)

    def _check_gone(self) -> None:
        """End it where the client, which sends no more, does not listen either."""
        running = self._running
        if self._wire.is_closing() or running is None:
            return
        state = self._wire.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _TCP_CLOSE:
            self._wire.abort()
        elif state == _TCP_CLOSE_WAIT and not self._has_probed and not running.response_started:
            self._has_probed = True
            # Whoever has gone resets the connection when something comes, and any client of HTTP/1.1 reads past this.
            if running.scope["http_version"] == "1.1":
                self._gathering.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _cut(self, reason: str) -> None:
        self._all.cut(reason)
        self._wire.abort()


def most_connections(wanted: int, complain: Callable[..., None]) -> int:
    """As many as this process may have files open for, at most those wanted. Raises the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return wanted
    most = max(1, min(wanted, hard - min(_FILES, hard // 2) - 2 * _RESERVE))
    if most < wanted:
        complain("at most %d connections, not %d: this process may have %d files open", most, wanted, hard)
    return most


def _check_head(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if version not in ("1.1", "1.0"):
        raise MalformedError(f"HTTP/{version} is not spoken here; send HTTP/1.1")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise MalformedError(f"exactly one Host header is needed, not {hosts}")
    if b"transfer-encoding" in names:
        if version == "1.0":
            raise MalformedError("HTTP/1.0 has no Transfer-Encoding")
        if dict(headers)[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedError("the only Transfer-Encoding read here is chunked")


def _told(error: httptools.HttpParserError) -> ForetellError:
    """What a client is told of what the parser, or a method that it called, makes of its request."""
    if not isinstance(error, httptools.HttpParserCallbackError):
        return MalformedError(f"not a request of HTTP/1.1: {error}")
    found = error.__context__
    return found if isinstance(found, ForetellError) else MalformedError("the target of the request cannot be read")


async def _in_one(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """The application, less its answers in parts: HTTP/1.0 has none."""
    start: Message = {}
    parts: list[bytes] = []

    async def gather(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            body = b"".join(parts)
            others = [header for header in start["headers"] if header[0].lower() != b"content-length"]
            await send({**start, "headers": [*others, (b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})

    await app(scope, receive, gather)


async def _spared(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as the application does for these paths, and for others that there is no room."""
    answers = app if scope["path"].startswith(_SPARED) else problem(_full(), fresh_identity(), scope["path"])
    await answers(scope, receive, send)


def _full() -> UnavailableError:
    return UnavailableError("there are as many connections as there may be")
