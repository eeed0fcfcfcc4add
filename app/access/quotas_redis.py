"""What keys have used of their quotas, in Redis, for all replicas. Without Redis each machine counts by itself."""

import asyncio

from redis.exceptions import RedisError

from app.access.quotas import Quotas
from app.access.rates import Rate, Verdict
from app.forecasts.cache_redis import Breaker, connect

_CONNECTIONS = 8

# As `rates.counted`, in microseconds of the clock of Redis, which is one for all. What a client would have done by now
# if it asked evenly is as good as nothing, so the key expires then.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local even = tonumber(redis.call('GET', KEYS[1]) or now) or now
local most = burst * interval
local ahead = math.min(math.max(even - now, 0), most)
local allowed = 0
if ahead + interval <= most then
  allowed = 1
  ahead = ahead + interval
end
redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', math.ceil(ahead / 1000))
return {allowed, string.format('%.0f', ahead)}
"""


class RedisQuotas:
    """A number for each key. A request waits `timeout_s` at most, and is counted by `local` where that is in vain."""

    def __init__(self, url: str, local: Quotas, *, timeout_s: float) -> None:
        self._redis = connect(url, connections=_CONNECTIONS, timeout_s=timeout_s)
        self._take = self._redis.register_script(_TAKE)
        self._local = local
        self._timeout_s = timeout_s
        self._breaker = Breaker()

    async def take(self, identity: str, rate: Rate) -> Verdict:
        if self._breaker.allows():
            # Whole microseconds, since those of a day's quota do not fit into a double with more.
            interval_us = max(1, round(rate.interval_s * 1e6))
            try:
                async with asyncio.timeout(self._timeout_s):
                    allowed, ahead_us = await self._take([f"foretell:1:quota:{identity}"], [interval_us, rate.burst])
                verdict = Verdict.of(rate, allowed=bool(allowed), ahead_s=float(ahead_us) / 1e6)
            except (RedisError, OSError, TimeoutError, ValueError, TypeError) as error:
                self._breaker.failed(error)
            else:
                self._breaker.succeeded()
                return verdict
        return await self._local.take(identity, rate)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._local.close()
