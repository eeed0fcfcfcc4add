"""What a request costs the parts of the service, in seconds of a core; measured by `measure.py`, read by the models.

A process pays for each time that it is woken, so that a request is dearer where little is asked, and besides:

    HTTP process   read a request of a kind, write its answer
    engine         pass + begin * (rows that begin with it) + row * (all rows in it)
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request."""

    name: str
    read_s: float
    """From its bytes to an order, in the HTTP process."""
    write_s: float
    """From the engine's numbers to the bytes of the answer."""
    rows: int = 1
    """Windows."""
    passes: int = 1
    client_s: float = 0.0
    """What the generator takes, where it shares the cores."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A pass."""

    pass_s: float
    begin_s: float
    """For each row that has its first pass: its order, its window."""
    row_s: float
    """For each row."""
    wake_s: float = 0.0
    """Where the engine had nothing to do before."""

    def seconds(self, begun: float, rows: float) -> float:
        """Of a pass of `rows` rows, of which `begun` have their first."""
        return self.pass_s + self.begin_s * begun + self.row_s * rows


@dataclass(frozen=True, slots=True)
class Costs:
    """All of it."""

    kinds: dict[str, Kind]
    engine: Engine
    http_wake_s: float = 0.0
    refusal_s: float = 0.0
    """Of the HTTP process, for a request that is turned away."""
    hit_s: float = 0.0
    """Of the HTTP process, for an answer from the cache in place of `read_s` and `write_s`."""
    others: dict[str, float] = field(default_factory=dict)
    """What the limits of shared parts need: names say the unit."""
    about: str = ""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Costs":
        """ValueError naming the file where it is not what `save` writes."""
        try:
            given: dict[str, Any] = json.loads(path.read_text())
            kinds = {name: Kind(**kind) for name, kind in given.pop("kinds").items()}
            return cls(kinds=kinds, engine=Engine(**given.pop("engine")), **given)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no costs: {error}") from error


@dataclass(frozen=True, slots=True)
class Service:
    """A replica and its settings, as `python -m app` has them."""

    cores: int = 2
    http_processes: int = 1
    batch_rows: int = 64
    queue_rows: int = 1024
    max_wait_s: float = 5.0
    deadline_s: float = float("inf")


Mix = Mapping[str, float]
"""Share of each kind; they add up to 1."""


def mix_of(text: str, costs: Costs) -> dict[str, float]:
    """`predict=0.8,forecast=0.2`; ValueError for a kind that was not measured or shares that are none."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name not in costs.kinds:
            raise ValueError(f"{name!r} is none of {', '.join(costs.kinds)}")
        shares[name] = float(share or 1)
    total = sum(shares.values())
    if not total > 0 or min(shares.values()) < 0:
        raise ValueError(f"{text!r} has no shares")
    return {name: share / total for name, share in shares.items()}


def http_s(costs: Costs, mix: Mix) -> float:
    """Of the HTTP process for a request of the mix, when it is never idle."""
    return sum(share * (costs.kinds[name].read_s + costs.kinds[name].write_s) for name, share in mix.items())


def engine_s(costs: Costs, mix: Mix, batch_rows: int) -> float:
    """Of the engine for a request of the mix in full passes, the cheapest there are."""
    engine = costs.engine
    found = 0.0
    for name, share in mix.items():
        kind = costs.kinds[name]
        each = kind.passes * (engine.pass_s / batch_rows + engine.row_s) + engine.begin_s
        found += share * kind.rows * each
    return found


def capacity(costs: Costs, mix: Mix, service: Service) -> tuple[float, str]:
    """Requests a second that a replica's fullest part can do, and which part that is."""
    parts = {
        "HTTP process": service.http_processes / http_s(costs, mix) if http_s(costs, mix) else np.inf,
        "engine": 1 / engine_s(costs, mix, service.batch_rows),
    }
    total = http_s(costs, mix) + engine_s(costs, mix, service.batch_rows)
    parts["cores"] = service.cores / total
    first = min(parts, key=lambda part: parts[part])
    return parts[first], first


def fitted(spent: Sequence[float], counts: Sequence[Sequence[float]]) -> tuple[Doubles, Doubles]:
    """Costs [c] >= 0 of things that were counted in cells [n, c] which took `spent` [n], by least squares of relative
    errors; and these errors [n].
    """
    took = np.asarray(spent, np.float64)
    scaled = np.asarray(counts, np.float64) / took[:, None]
    columns = scaled.shape[1]
    best, least = np.zeros(columns), np.inf
    # Few columns, so every choice of those that are not zero can be tried: the optimum is among them.
    for size in range(1, columns + 1):
        for chosen in itertools.combinations(range(columns), size):
            found = np.linalg.lstsq(scaled[:, chosen], np.ones(len(took)), rcond=None)[0]
            error = float(np.square(scaled[:, chosen] @ found - 1).sum())
            if (found >= 0).all() and error < least - 1e-15:
                best, least = np.zeros(columns), error
                best[list(chosen)] = found
    return best, scaled @ best - 1
