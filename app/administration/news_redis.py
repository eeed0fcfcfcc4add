"""Tells the other replicas through Redis that the store has changed. Without it they notice by looking, a little later.

It fails open like the cache (docs/decisions/0004): what is said while Redis is away is lost, and nobody minds.
"""

import asyncio
import logging
from collections.abc import Callable

from redis.exceptions import RedisError

from app.forecasts.cache_redis import connect

log = logging.getLogger(__name__)

_CHANNEL = "foretell:1:store"
_BREATH_S = 0.05
_PAUSE_S = 5.0
"""Before Redis is tried again."""


class RedisNews:
    """What is said, and what is heard."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        # One to listen, one to speak.
        self._redis = connect(url, connections=2, timeout_s=timeout_s)
        self._telling: set[asyncio.Task[None]] = set()

    def tell(self) -> None:
        """All replicas, soon."""
        task = asyncio.get_running_loop().create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call it whenever somebody tells, for ever."""
        failing = False
        while True:
            try:
                async with self._redis.pubsub() as heard:
                    await heard.subscribe(_CHANNEL)
                    # What was said while nobody listened is known to the store.
                    changed()
                    failing = False
                    while True:
                        if await heard.get_message(ignore_subscribe_messages=True, timeout=None) is not None:
                            changed()
                            # Whoever may write there may do so without end.
                            await asyncio.sleep(_BREATH_S)
            except (RedisError, OSError, TimeoutError) as error:
                if not failing:
                    log.warning("Redis tells no news of the store (%s); looking for them", type(error).__name__)
                failing = True
            await asyncio.sleep(_PAUSE_S)

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.gather(*self._telling, return_exceptions=True)
        await self._redis.aclose()

    async def _tell(self) -> None:
        try:
            await self._redis.publish(_CHANNEL, b"")
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("Redis takes no news of the store (%s)", type(error).__name__)
