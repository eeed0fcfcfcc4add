"""What adaptive intervals remember, in Redis, for all replicas. Redis may be away: then nothing is known or learnt."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError, WatchError

from app.forecasts.adaptive import StateError
from app.forecasts.cache_redis import Breaker, connect

T = TypeVar("T")

_CONNECTIONS = 8
_TRIES = 16
"""Of a change, against those of other replicas; of these one at least gets through at each try."""
_TTL_S = 30 * 24 * 3600
"""After the last change: a version that nobody tells of any more is forgotten."""


class RedisStates:
    """A key for each model. Every operation takes `timeout_s` at most; faults are StateErrors."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._redis = connect(url, connections=_CONNECTIONS, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._breaker = Breaker()
        self._changing = asyncio.Lock()
        """Changes of this process stand in line, so that only those of others come between."""

    async def read(self, digest: str, size: int) -> bytes:
        self._check()
        try:
            async with asyncio.timeout(self._timeout_s):
                kept = await self._redis.getrange(_key(digest), 0, size - 1)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        self._breaker.succeeded()
        # The client is one that leaves bytes as they are, whatever its types say.
        return bytes(kept)  # type: ignore[arg-type]

    async def change(self, digest: str, change: Callable[[bytes], tuple[bytes, T]]) -> T:
        async with self._changing:
            for _ in range(_TRIES):
                self._check()
                try:
                    result = await self._try(_key(digest), change)
                except WatchError:
                    continue
                except (RedisError, OSError, TimeoutError) as error:
                    raise self._failed(error) from error
                self._breaker.succeeded()
                return result
        raise StateError("other replicas changed it again and again")

    async def close(self) -> None:
        await self._redis.aclose()

    async def _try(self, key: str, change: Callable[[bytes], tuple[bytes, T]]) -> T:
        """WatchError where somebody else's change came between."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            async with asyncio.timeout(self._timeout_s):
                await pipeline.watch(key)
                kept = await pipeline.get(key)
            # Beside the event loop, and not within the time that Redis has.
            packed, result = await asyncio.to_thread(change, bytes(kept or b""))  # type: ignore[arg-type]  # as above
            async with asyncio.timeout(self._timeout_s):
                pipeline.multi()  # type: ignore[no-untyped-call]  # the library's
                pipeline.set(key, packed, ex=_TTL_S)
                await pipeline.execute()
        return result

    def _check(self) -> None:
        if not self._breaker.allows():
            raise StateError("Redis does not answer")

    def _failed(self, error: BaseException) -> StateError:
        self._breaker.failed(error)
        return StateError(type(error).__name__)


def _key(digest: str) -> str:
    return f"foretell:1:adaptive:{digest}"
