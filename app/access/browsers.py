"""What browsers are told: what a page of ours may do, and which other pages may ask the service."""

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = [("X-Content-Type-Options", "nosniff")]
"""What every answer has; the server adds it, to its own too."""
NO_STORE = (b"cache-control", b"no-store")
"""With an answer to a POST, which is of what the client sent: nobody on the way may keep it."""

_PLAYGROUND = "/"
_PAGES = frozenset((_PLAYGROUND, "/docs", "/docs/oauth2-redirect", "/redoc"))
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# Styles may be inline, since both pages make theirs as they run; ReDoc searches in a worker that it makes itself.
_POLICY = (
    "default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Ours needs none of that, and makes no HTML out of text.
_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


class Pages:
    """Says with the pages that they may do nothing but what they came with.

    The scripts of the OpenAPI pages are in the page, so the policy names each by its digest: no other runs. The
    playground has none in it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _PAGES:
            await self._app(scope, receive, send)
            return
        start: Message = {}

        async def guarded(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            headers = MutableHeaders(scope=start)
            strict = scope["path"] == _PLAYGROUND
            headers["Content-Security-Policy"] = _STRICT if strict else _policy(message["body"])
            headers["Referrer-Policy"] = "no-referrer"
            headers["X-Frame-Options"] = "DENY"
            await send(start)
            await send(message)

        await self._app(scope, receive, guarded)


class Cors(CORSMiddleware):
    """Lets the pages of these origins ask, and tells no other page anything."""

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            # What a page of somebody else's may do; administration is not for those.
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Client-ID", "X-Request-ID"),
            expose_headers=("X-Request-ID", "X-Cache", "Server-Timing", "Retry-After", "RateLimit", "RateLimit-Policy"),
        )


def _policy(page: bytes) -> str:
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE.findall(page)]
    return _POLICY.format(scripts=" ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)]))
