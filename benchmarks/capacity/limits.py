"""What all replicas share, and where each of it ends. Figures that were not measured are parameters with a default."""

from dataclasses import dataclass

from benchmarks.capacity.costs import Costs, Mix, Service, capacity


@dataclass(frozen=True, slots=True)
class Shared:
    """Assumptions; the ceilings of somebody else's programs."""

    proxy_requests_s: float = 50_000.0
    redis_connections: float = 10_000.0
    """`maxclients`, as Redis comes."""
    store_requests_s: float = 5_500.0
    """GET and HEAD on one prefix, as Amazon S3 promises them."""
    polls_a_look: float = 1.0
    poll_s: float = 2.0
    series: float = 2_000_000.0
    """That one Prometheus holds."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A part, and the requests a second at which it is full; infinite where the rate does not matter to it."""

    part: str
    rate: float
    used: float
    """Share of what it can do that the replicas take by being there; above 1 it is full at any rate."""


def limits(costs: Costs, mix: Mix, service: Service, replicas: int, shared: Shared, *, redis: bool) -> list[Limit]:
    """All of them for so many replicas, the tightest first."""
    others = costs.others
    most, part = capacity(costs, mix, service)
    found = [
        Limit(f"{part} of the replicas", replicas * most, 0.0),
        Limit("proxy", shared.proxy_requests_s, 0.0),
        Limit("store", float("inf"), replicas * shared.polls_a_look / shared.poll_s / shared.store_requests_s),
        Limit("Prometheus", float("inf"), replicas * others.get("series", 0.0) / shared.series),
    ]
    if redis and others.get("redis_s_an_op"):
        operations = 1 / others["redis_s_an_op"]
        found.append(Limit("Redis, operations", operations / others["redis_ops_a_request"], 0.0))
        connections = replicas * others["redis_connections"] * service.http_processes
        found.append(Limit("Redis, connections", float("inf"), connections / shared.redis_connections))
    return sorted(found, key=lambda limit: limit.rate if limit.used < 1 else 0.0)


def first_limit(found: list[Limit]) -> str:
    """The tightest in words."""
    first = found[0]
    return (
        f"{first.part} ({first.used:.0%} by being there)" if first.used >= 1 else f"{first.part} ({first.rate:.0f}/s)"
    )


def core_hours_a_million(rate: float, cores: float) -> float:
    """Of requests at that rate on so many cores."""
    return 1e6 / rate * cores / 3600
