"""What surrounds every request: its id, its clock, its answer in case of an error, and its body within a limit."""

import asyncio
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.browsers import NO_STORE
from app.access.keyring import ANONYMOUS
from app.errors import (
    BodyTooLargeError,
    DrainingError,
    ForetellError,
    MalformedError,
    MediaTypeError,
    QueueFullError,
    SlowRequestError,
)
from app.handlers import header, problem
from app.logs import request_id
from app.metrics import Metrics
from app.spans import Request, Tracer, Value, current

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_HUNG_UP = 499
"""What nginx made customary for a client that left; only logs and metrics see it."""
_LONGEST_ECHO = 80
_PATIENCE_S = 0.05
"""A client that hangs up sooner than this after its request is noticed this late."""
_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""By Content-Encoding, what zlib calls what it is to expect."""
_MOST_UNPACKED_HERE = 4 * 2**20
"""Bytes that are unpacked on the event loop, in some ten milliseconds."""
_LARGEST_DISCARD = 8
"""So many times the limit of a refused body are read and thrown away: a client that only reads once it has sent
everything would otherwise see a broken connection instead of the 413."""


class Envelope:
    """Outermost: gives the request its id and its time, and answers whatever went wrong inside."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: bool, tracer: Tracer | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        identity = _identity(scope)
        stamp = (b"x-request-id", identity.encode())
        stamps = (stamp, NO_STORE) if scope["method"] == "POST" else (stamp,)
        token = request_id.set(identity)
        span = None if self._tracer is None else _traced(self._tracer, scope, identity, began)
        status = 0
        method = scope["method"]
        if method == "HEAD":
            # Whatever answers a GET; the server sends the answer's head alone.
            scope = {**scope, "method": "GET"}

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *stamps]
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except ForetellError as error:
            if status:
                raise
            self._metrics.rejected(error.slug)
            await problem(error, identity, scope["path"])(scope, receive, stamped)
        except HungUpError:
            status = _HUNG_UP
        except asyncio.CancelledError:
            if status:
                raise
            # The server calls off what outlasts its drain, and answers in plain text if nobody else does.
            ended = DrainingError("the service ended before the forecast was done")
            self._metrics.rejected(ended.slug)
            await problem(ended, identity, scope["path"])(scope, receive, stamped)
        except Exception:  # whatever it is, the client gets an opaque 500 and the log the rest
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                # The answer has begun: only breaking it off tells the client that it is not whole.
                raise
            opaque = ForetellError("an unexpected error; the log has it")
            await problem(opaque, identity, scope["path"])(scope, receive, stamped)
        finally:
            self._tell(method, scope, status, time.perf_counter() - began)
            if span is not None:
                _end(span, scope, status)
            request_id.reset(token)

    def _tell(self, method: str, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.answered(method, route, status, seconds)
        cost = scope["state"].get("cost") if "state" in scope else None
        if cost is not None:
            self._metrics.asked(cost, status, seconds)
        if self._access_log:
            fields = {"method": method, "path": scope["path"], "status": status, "ms": round(seconds * 1e3, 2)}
            log.info("request", extra=fields)


def _traced(tracer: Tracer, scope: Scope, identity: str, began: float) -> Request | None:
    """Its span, where it is to have one; until that is ended, whoever works for the request finds it."""
    span = tracer.request(scope["method"], scope["scheme"], scope["path"], scope["headers"], began, request_id=identity)
    # None is set, too: a request that was pipelined begins in the context of the one before it.
    current.set(span)
    return span


def _end(span: Request, scope: Scope, status: int) -> None:
    """With what has become known of the request on its way."""
    current.set(None)
    state = scope.get("state", {})
    of: dict[str, Value] = {}
    cost = state.get("cost")
    if cost is not None:
        of = {"model.name": cost.model.name, "model.version": cost.model.version, "windows": cost.windows}
        if cost.cache is not None:
            of["cache"] = cost.cache
    principal = state.get("principal")
    if principal is not None and principal.name != ANONYMOUS.name:
        of["key"] = principal.name
    span.end(status, getattr(scope.get("route"), "path", None), **of)


def _identity(scope: Scope) -> str:
    """The request's own id where it has a sensible one, else a fresh one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return str(given, "ascii")
    # As random as a UUID, at a quarter of its price.
    return os.urandom(16).hex()


class HungUpError(Exception):
    """The client left before it was answered."""


@dataclass(slots=True)
class Ample:
    """What a path with bodies of its own size takes: so large, and so many at a time, until they are answered."""

    what: str
    """They are called, in the plural."""
    max_body_bytes: int
    most: int
    taken: int = 0

    def refusal(self) -> QueueFullError:
        """For one too many."""
        # How long they take is anybody's guess.
        return QueueFullError(f"{self.taken} {self.what} are under way, of at most {self.most}", retry_after_s=10)


class _Allowance(NamedTuple):
    """How much of a body is kept, how much is read, and what is said of more than is kept."""

    kept: int
    read: int
    refuse: Callable[[], ForetellError]


class Intake:
    """Takes in the body of a POST, up to the limit, and calls the work off when the client hangs up.

    FastAPI's own limit answers before it has read, which many a client sees as a broken connection.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, ample: Mapping[str, Ample] | None = None) -> None:
        self._app = app
        self._usual = _allowance(max_body_bytes)
        self._ample = ample or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        ample = self._ample.get(scope["path"])
        if ample is None:
            await self._answer(scope, receive, send, self._usual)
        elif ample.taken < ample.most:
            ample.taken += 1
            try:
                await self._answer(scope, receive, send, _allowance(ample.max_body_bytes))
            finally:
                ample.taken -= 1
        else:
            # Its body is read all the same, see `_LARGEST_DISCARD`; not even one without any goes on.
            await self._answer(scope, receive, send, _Allowance(-1, ample.max_body_bytes, ample.refusal))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, allowance: _Allowance) -> None:
        # Nowhere but there, so that whoever needs a large one no more can have it freed.
        state = scope.setdefault("state", {})
        span = current.get()
        began = 0.0 if span is None else time.perf_counter()
        state["body"] = await self._body(scope, receive, allowance)
        encoding = header(scope, b"content-encoding")
        if encoding is not None:
            state["body"] = await _unpacked(state["body"], encoding, allowance.kept)
        if span is not None:
            span.stage("read", began, bytes=len(state["body"]))
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": state.get("body", b""), "more_body": False}

        watch = _Watch(receive, send)
        try:
            await self._app(scope, replay, watch.send)
        except asyncio.CancelledError:
            if watch.hung_up and watch.task is not None and not watch.task.uncancel():
                raise HungUpError from None
            raise
        else:
            # An answer in parts ends in good order all the same.
            if watch.hung_up:
                raise HungUpError
        finally:
            watch.end()

    async def _body(self, scope: Scope, receive: Receive, allowance: _Allowance) -> bytes:
        # One that waits for leave to send gets its answer instead of the leave.
        if header(scope, b"expect") is not None and _announced(scope) > allowance.kept:
            raise allowance.refuse()
        message = await receive()
        body: bytes = message.get("body", b"")
        if not body or message.get("more_body", False) or len(body) > allowance.kept:
            return await self._gathered(scope, message, receive, allowance)
        return body

    async def _gathered(self, scope: Scope, message: Message, receive: Receive, allowance: _Allowance) -> bytes:
        """A body in several pieces, or none, or one that is too large."""
        gathered = bytearray()
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise HungUpError
            piece = message.get("body", b"")
            size += len(piece)
            if size <= allowance.kept:
                gathered += piece
            elif size > allowance.read:
                raise allowance.refuse()
            if not message.get("more_body", False):
                break
            # The connection keeps the time, and tells once that it is up; a piece may come in the same moment.
            if scope["state"].get("late", False):
                raise SlowRequestError("the body did not arrive in time")
            message = await receive()
        if size > allowance.kept:
            raise allowance.refuse()
        if not size and _announced(scope):
            # The HTTP parser drops the body of a request that asks for another protocol (Java's client does by itself).
            raise MalformedError("the body did not arrive: send HTTP/1.1 without an Upgrade header")
        return bytes(gathered)


def _allowance(limit: int) -> _Allowance:
    refuse = partial(BodyTooLargeError, f"the body may have at most {limit} bytes")
    return _Allowance(limit, limit * _LARGEST_DISCARD, refuse)


async def _unpacked(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body as it was before it was packed.

    MediaTypeError where nothing here unpacks it, MalformedError where it is not what it says, BodyTooLargeError as
    soon as more than `limit` bytes have come out.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    window_bits = _WINDOW_BITS.get(name)
    if window_bits is None:
        shown = encoding[:_LONGEST_ECHO].decode("latin-1")
        raise MediaTypeError(
            f"Content-Encoding {shown!r} is not read here; send gzip, deflate, or the body as it is",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    if limit > _MOST_UNPACKED_HERE:
        return await asyncio.to_thread(_inflated, body, window_bits, limit)
    return _inflated(body, window_bits, limit)


def _inflated(body: bytes, window_bits: int, limit: int) -> bytes:
    """What zlib makes of it, one after the other where it was packed in several parts, as gzip allows."""
    whole = bytearray()
    rest = body
    while rest:
        part = zlib.decompressobj(window_bits)
        try:
            whole += part.decompress(rest, limit + 1 - len(whole))
        except zlib.error as error:
            raise MalformedError(f"the body is not packed as its Content-Encoding says: {error}") from None
        if len(whole) > limit:
            raise BodyTooLargeError(f"the body may have at most {limit} bytes, unpacked")
        if not part.eof:
            raise MalformedError("the body ends in the middle of what its Content-Encoding packed")
        rest = part.unused_data
    return bytes(whole)


def _announced(scope: Scope) -> int:
    return int(header(scope, b"content-length") or 0)


class _Watch:
    """Cancels a request's task when its client hangs up.

    It begins to listen only after a moment: for the many that are answered sooner, it would cost more than it saves.
    """

    __slots__ = ("_receive", "_send", "_timer", "_watcher", "hung_up", "task")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._begin)
        self.task = asyncio.current_task()
        self.hung_up = False

    async def send(self, message: Message) -> None:
        """Once all is sent, the server says that the client has gone, whether it has or not."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.end()
        await self._send(message)

    def end(self) -> None:
        """Stop listening."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        if self.task is not None:
            self.task.cancel()
