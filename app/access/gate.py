"""Lets in who may: finds out who asks, whether they may ask for that, and whether they have not asked too often."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keyring import ANONYMOUS, Keyring, Principal
from app.access.needs import Need, need_of
from app.access.quotas import Quotas, SharedQuotas
from app.access.rates import Rate, Verdict
from app.errors import ForbiddenError, ForetellError, QuotaError, UnauthorizedError
from app.handlers import header
from app.metrics import Metrics
from app.settings import Settings
from app.spans import current


class Access:
    """What all gates of an application have in common."""

    def __init__(self, settings: Settings, metrics: Metrics, served: Callable[[Scope], bool]) -> None:
        self.keyring = Keyring(settings)
        self._settings = settings
        self._metrics = metrics
        self._served = served
        self._quotas: Quotas | None = None
        # The most that anybody may send; what is refused is read as far as that and thrown away.
        self._most_bytes = max(settings.max_body_bytes, settings.max_series_bytes)

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[None]:
        """Follow the file of keys, and count in the folder that all HTTP processes of the service share."""
        if not self.keyring.guarded:
            yield
            return
        self._quotas = _quotas(self._settings, folder)
        try:
            async with self.keyring.followed():
                yield
        finally:
            await self._quotas.close()

    async def admitted(self, scope: Scope) -> Principal:
        """Who asks; UnauthorizedError, ForbiddenError or QuotaError where they may not."""
        need = need_of(scope, self._served)
        if need == "open":
            return ANONYMOUS
        principal = self._principal(header(scope, b"authorization"), need)
        if principal.id:
            await self._count(principal, scope)
        return principal

    async def discard(self, receive: Receive) -> None:
        """Read a body that nobody wants: a client that reads only once it has sent everything would otherwise see a
        broken connection instead of its answer.
        """
        size = 0
        while size <= self._most_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    def _principal(self, given: bytes | None, need: Need) -> Principal:
        keyring = self.keyring
        found = None
        if given is not None:
            scheme, _, key = given.partition(b" ")
            if scheme.lower() == b"bearer":
                found = keyring.find(key.strip())
        principal = found or keyring.anonymous
        if need in principal.scopes:
            return principal
        if found is not None:
            self._metrics.key_used(principal.name, "forbidden")
            raise ForbiddenError(f"the key {principal.name!r} is not for {need}")
        if not keyring.administered:
            raise ForbiddenError("administration is off; FORETELL_ADMIN_KEY or FORETELL_KEYS_FILE turns it on")
        if given is None:
            raise UnauthorizedError("a key is needed: send Authorization: Bearer and the key")
        raise UnauthorizedError("this key is not known; it is sent as Authorization: Bearer and the key")

    async def _count(self, principal: Principal, scope: Scope) -> None:
        """A request of a key; QuotaError where it is one too many."""
        if principal.quota is not None and self._quotas is not None:
            began = time.perf_counter()
            verdict = await self._quotas.take(principal.id, principal.quota)
            if (span := current.get()) is not None:
                span.stage("quota", began)
            scope["state"]["quota"] = _told(principal.quota, verdict)
            if not verdict.allowed:
                self._metrics.key_used(principal.name, "over-quota")
                raise QuotaError(
                    f"the key {principal.name!r} has used up its quota for now",
                    retry_after_s=max(1, math.ceil(verdict.wait_s)),
                )
        self._metrics.key_used(principal.name, "admitted")


class Gate:
    """Between what answers refusals and what reads bodies; `state["principal"]` says to those within who asks."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            state["principal"] = await self._access.admitted(scope)
        except ForetellError as error:
            error.headers.update(state.get("quota", {}))
            # One that waits for leave to send gets its answer instead of the leave.
            if header(scope, b"expect") is None:
                await self._access.discard(receive)
            raise
        told = state.get("quota")
        await self._app(scope, receive, send if told is None else _telling(send, told))


def principal_of(scope: Scope) -> Principal:
    """Who asks; nobody in particular where no gate was passed."""
    principal: Principal = scope["state"].get("principal", ANONYMOUS)
    return principal


def _quotas(settings: Settings, folder: Path) -> Quotas:
    local = SharedQuotas(folder)
    if settings.redis_url is None:
        return local
    # Redis is only in processes that use it.
    from app.access.quotas_redis import RedisQuotas

    return RedisQuotas(settings.redis_url, local, timeout_s=settings.redis_timeout_ms / 1000)


def _told(rate: Rate, verdict: Verdict) -> dict[str, str]:
    """As draft-ietf-httpapi-ratelimit-headers has it."""
    return {
        "RateLimit-Policy": f'"key";q={rate.burst};w={math.ceil(rate.burst * rate.interval_s)}',
        "RateLimit": f'"key";r={verdict.remaining};t={math.ceil(verdict.whole_s)}',
    }


def _telling(send: Send, told: dict[str, str]) -> Send:
    fields = [(name.lower().encode(), value.encode()) for name, value in told.items()]

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *fields]
        await send(message)

    return telling
