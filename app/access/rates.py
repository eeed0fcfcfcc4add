"""How often a key may ask: a rate, and the algorithm that holds it.

GCRA, the generic cell rate algorithm (ITU-T I.371, Annex A; as a limit of requests: brandur.org/rate-limiting): of each
key one number is kept, the time at which all that it has asked for would be done if it had asked evenly.
"""

import math
import re
from typing import NamedTuple, Self

_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_WRITTEN = re.compile(r"([1-9]\d{0,8})/(second|minute|hour|day)(?: burst ([1-9]\d{0,8}))?")
_SLACK = 1e-6
"""Of a request, for what doubles lose."""


class Rate(NamedTuple):
    """So many requests in a period, evenly; as many as `burst` at once after a rest."""

    requests: int
    period_s: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`600/minute` or `600/minute burst 50`; ValueError saying so for anything else.

        Without a burst it is the count: who rests for a period may ask for all of it at once.
        """
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError("a quota is written as 600/minute or 600/minute burst 50 (of second, minute, hour, day)")
        count = int(match[1])
        return cls(count, _PERIODS[match[2]], int(match[3] or count))

    @property
    def interval_s(self) -> float:
        """Between two requests of a client that asks evenly."""
        return self.period_s / self.requests


class Verdict(NamedTuple):
    """Whether one more request is within the rate."""

    allowed: bool
    remaining: int
    """Further ones that are, at once."""
    wait_s: float
    """Until the next one is; 0 where one is now."""
    whole_s: float
    """Until a whole burst is."""

    @classmethod
    def of(cls, rate: Rate, *, allowed: bool, ahead_s: float) -> Self:
        """From how far ahead of an even client this one is, this request included if it is allowed."""
        spare = rate.burst + _SLACK - ahead_s / rate.interval_s
        remaining = math.floor(spare) if allowed and spare >= 1 else 0
        return cls(allowed, remaining, 0.0 if remaining else max(0.0, (1 - spare) * rate.interval_s), ahead_s)


def counted(rate: Rate, even_s: float, now_s: float) -> tuple[float, Verdict]:
    """The key's number after one more request at `now_s`, and what becomes of the request. A refused one counts not."""
    # More than a burst ahead is of a clock, or of a rate, that was another.
    ahead_s = min(max(even_s - now_s, 0.0), rate.burst * rate.interval_s)
    allowed = ahead_s + rate.interval_s <= (rate.burst + _SLACK) * rate.interval_s
    if allowed:
        ahead_s += rate.interval_s
    return now_s + ahead_s, Verdict.of(rate, allowed=allowed, ahead_s=ahead_s)
