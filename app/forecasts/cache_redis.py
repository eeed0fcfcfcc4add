"""The response cache of all replicas, in Redis. It fails open: no Redis, no cache, no error (docs/decisions/0004)."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.forecasts.cache import CacheWatcher

log = logging.getLogger(__name__)

_FAULTS_TO_OPEN = 3
_OPEN_S = 5.0
_CONNECTIONS = 32
_SEAL = 8
"""Bytes."""
_MAX_PUTS = 64
"""Writes under way at once; more are dropped, so that a slow Redis cannot pile up memory here."""


class Breaker:
    """Stops asking after a few faults in a row, and lets one request in now and then to see whether it is over."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._faults = 0
        self._retry_at = 0.0

    def allows(self) -> bool:
        """Whether to try. While open, true once in a while for a single trial."""
        if self._faults < _FAULTS_TO_OPEN:
            return True
        if self._now() < self._retry_at:
            return False
        self._retry_at = self._now() + _OPEN_S
        return True

    def succeeded(self) -> None:
        """It answered: closed again."""
        if self._faults >= _FAULTS_TO_OPEN:
            log.info("Redis answers again")
        self._faults = 0

    def failed(self, error: BaseException) -> None:
        """It did not answer."""
        self._faults += 1
        self._retry_at = self._now() + _OPEN_S
        if self._faults == _FAULTS_TO_OPEN:
            log.warning("Redis does not answer (%s); going on without the cache", type(error).__name__)


def connect(url: str, *, connections: int, timeout_s: float) -> Redis:
    """A client whose every wait ends in time, and that tries nothing twice."""
    # Who asks waits for a free connection, within its time limit: without a bound a burst would open hundreds, and
    # with the usual pool the next one too many would count as a fault of Redis.
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=None,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


def _seal(key: str, kept: bytes) -> bytes:
    """What tells a value from one that was damaged on its way, or is another key's. Against somebody who means harm it
    is of no use: whoever may write there could write a seal.
    """
    return hashlib.blake2b(
        kept, digest_size=_SEAL, person=hashlib.blake2b(key.encode(), digest_size=16).digest()
    ).digest()


def _whole(key: str, sealed: bytes) -> bytes | None:
    kept = sealed[_SEAL:]
    return kept if sealed[:_SEAL] == _seal(key, kept) else None


class RedisCache:
    """GET and SET with a time to live, each for `timeout_s` at most. Faults are counted as `error` and read as None."""

    def __init__(self, url: str, watcher: CacheWatcher, *, ttl_s: float, timeout_s: float) -> None:
        self._redis = connect(url, connections=_CONNECTIONS, timeout_s=timeout_s)
        self._watcher = watcher
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._timeout_s = timeout_s
        self._breaker = Breaker()
        self._puts: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> bytes | None:
        if not self._breaker.allows():
            return None
        try:
            # Over everything, since connecting, authenticating and reading each have a time limit of their own.
            async with asyncio.timeout(self._timeout_s):
                kept = await self._redis.get(key)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None
        self._breaker.succeeded()
        return _whole(key, kept) if isinstance(kept, bytes) else None

    def put(self, key: str, kept: bytes) -> None:
        if len(self._puts) < _MAX_PUTS and self._breaker.allows():
            task = asyncio.get_running_loop().create_task(self._put(key, kept))
            self._puts.add(task)
            task.add_done_callback(self._puts.discard)

    async def close(self) -> None:
        for task in self._puts:
            task.cancel()
        await asyncio.gather(*self._puts, return_exceptions=True)
        await self._redis.aclose()

    async def _put(self, key: str, kept: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.set(key, _seal(key, kept) + kept, px=self._ttl_ms)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
        else:
            self._breaker.succeeded()

    def _failed(self, error: BaseException) -> None:
        self._watcher.cached("error")
        self._breaker.failed(error)
