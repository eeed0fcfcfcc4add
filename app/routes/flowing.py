"""Answers that are sent piece by piece, as these come."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.errors import DrainingError, ForetellError
from app.handlers import problem_fields
from app.logs import request_id
from app.spans import current

log = logging.getLogger(__name__)


class Flowing(Response):
    """The first piece of bytes, if it is there, the others, and as the last why there are no more, where something went
    wrong. Whatever ends it early, the work ends with it.

    `told` writes a problem as a piece; `what` names the work in logs.
    """

    def __init__(
        self,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        *,
        what: str,
        told: Callable[[dict[str, Any]], bytes],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._first = first
        self._pieces = pieces
        self._what = what
        self._told = told

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it."""
        began = time.perf_counter()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._with_error()) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if (span := current.get()) is not None:
            span.stage("stream", began)

    async def _with_error(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._pieces) as pieces:
                if self._first:
                    yield self._first
                async for piece in pieces:
                    yield piece
        except asyncio.CancelledError:
            # The server calls off what outlasts its drain, and this is its end; whoever has hung up never sees it.
            yield self._error(DrainingError(f"the service ended before the {self._what} was done"))
        except ForetellError as error:
            yield self._error(error)
        except Exception:  # whatever it is, the client gets an opaque piece and the log the rest
            log.exception("a %s failed", self._what)
            yield self._error(ForetellError("an unexpected error; the log has it"))

    def _error(self, error: ForetellError) -> bytes:
        if (span := current.get()) is not None:
            span.problem(error.slug, broken=True)
        return self._told(problem_fields(error, request_id.get() or ""))
