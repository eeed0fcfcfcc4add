"""What surrounds every request: its id, its clock, its answer in case of an error, and its body within a limit."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLargeError, DrainingError, ForetellError, MalformedError
from app.handlers import problem
from app.logs import request_id
from app.metrics import Metrics

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_HUNG_UP = 499
"""What nginx made customary for a client that left; only logs and metrics see it."""
_LARGEST_DISCARD = 8
"""So many times the limit of a refused body are read and thrown away: a client that only reads once it has sent
everything would otherwise see a broken connection instead of the 413."""


class Envelope:
    """Outermost: gives the request its id and its time, and answers whatever went wrong inside."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(identity)
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identity
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except ForetellError as error:
            if status:
                raise
            self._metrics.rejected(error.slug)
            await problem(error, identity)(scope, receive, stamped)
        except HungUpError:
            status = _HUNG_UP
        except asyncio.CancelledError:
            if status:
                raise
            # The server calls off what outlasts its drain, and answers in plain text if nobody else does.
            ended = DrainingError("the service ended before the forecast was done")
            self._metrics.rejected(ended.slug)
            await problem(ended, identity)(scope, receive, stamped)
        except Exception:  # whatever it is, the client gets an opaque 500 and the log the rest
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                # The answer has begun: only breaking it off tells the client that it is not whole.
                raise
            await problem(ForetellError("an unexpected error; the log has it"), identity)(scope, receive, stamped)
        finally:
            self._tell(scope, status, time.perf_counter() - began)
            request_id.reset(token)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.answered(scope["method"], route, status, seconds)
        if self._access_log:
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "ms": round(seconds * 1e3, 2)}
            log.info("request", extra=fields)


class HungUpError(Exception):
    """The client left before it was answered."""


class Intake:
    """Takes in the body of a POST, up to the limit, and calls the work off when the client hangs up.

    FastAPI's own limit answers before it has read, which many a client sees as a broken connection.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        body = await self._body(Headers(scope=scope), receive)
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            whole, message = message, None
            return whole

        await self._unless_hung_up(scope, replay, receive, send)

    async def _unless_hung_up(self, scope: Scope, replay: Receive, receive: Receive, send: Send) -> None:
        """Run the application; cancel it, and so whatever it waits for, when the client leaves before the answer."""
        task = asyncio.current_task()
        hung_up = False

        async def watch() -> None:
            nonlocal hung_up
            while (await receive())["type"] != "http.disconnect":
                pass
            hung_up = True
            if task is not None:
                task.cancel()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                watcher.cancel()
            await send(message)

        watcher = asyncio.create_task(watch())
        try:
            await self._app(scope, replay, sending)
        except asyncio.CancelledError:
            if hung_up and task is not None and not task.uncancel():
                raise HungUpError from None
            raise
        finally:
            watcher.cancel()

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        refused = BodyTooLargeError(f"the body may have at most {self._limit} bytes")
        # One that waits for leave to send gets its answer instead of the leave.
        if "expect" in headers and int(headers.get("content-length", "0")) > self._limit:
            raise refused
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUpError
            size += len(message.get("body", b""))
            if size <= self._limit:
                chunks.append(message.get("body", b""))
            elif size > self._limit * _LARGEST_DISCARD:
                raise refused
            more = message.get("more_body", False)
        if size > self._limit:
            raise refused
        if not size and int(headers.get("content-length", "0")):
            # The HTTP parser drops the body of a request that asks for another protocol (Java's client does by itself).
            raise MalformedError("the body did not arrive: send HTTP/1.1 without an Upgrade header")
        return b"".join(chunks)
