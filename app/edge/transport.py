"""How an HTTP process sends: answers gathered into few system calls, and those that need no application."""

import asyncio
import os
from collections.abc import Callable, Sized
from typing import Any

import orjson
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.errors import ForetellError
from app.handlers import PROBLEM, problem_fields


class Flow(FlowControl):
    """uvicorn's, but nothing more is read while a request that has come in waits for its turn."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, if there is nothing that waits."""
        if not self._waiting:
            super().resume_reading()


class Gathering:
    """A transport that sends once a turn of the event loop what is written in it.

    uvicorn writes the head of an answer and then its body, each with a system call of its own, which are the most
    expensive part of a small answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._written: list[bytes] = []
        self.written = 0
        """Bytes that went on to the transport."""
        self.is_closing = transport.is_closing
        self.linger: Callable[[], None] | None = None
        """Called by `close`, which then only says that nothing follows: the client is to close first."""

    def write(self, data: bytes) -> None:
        """Send it, soon."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def write_eof(self) -> None:
        """Send what was written, then that nothing follows."""
        self._flush()
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Send what was written, then close; or linger."""
        self._flush()
        if self.linger is None:
            self._transport.close()
        else:
            linger, self.linger = self.linger, None
            self.write_eof()
            linger()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever else a transport has
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._written:
            written, self._written = b"".join(self._written), []
            # Its client may have gone since; a closed transport of uvloop's takes no more, and complains.
            if not self._transport.is_closing():
                self.written += len(written)
                self._transport.write(written)


def last_answer(error: ForetellError, defaults: list[tuple[bytes, bytes]]) -> bytes:
    """The answer that ends a connection, head and body."""
    content = orjson.dumps(problem_fields(error, identity := fresh_identity()))
    lines = [f"{name}: {value}\r\n".encode() for name, value in {**error.headers, "Connection": "close"}.items()]
    return b"".join(
        [
            STATUS_LINE[error.status],
            *(b"%b: %b\r\n" % header for header in defaults),
            *lines,
            b"content-type: %b\r\ncontent-length: %d\r\n" % (PROBLEM.encode(), len(content)),
            b"x-request-id: %b\r\n\r\n" % identity.encode(),
            content,
        ]
    )


def fresh_identity() -> str:
    """For a request that has none of its own, or was never read."""
    return os.urandom(16).hex()
