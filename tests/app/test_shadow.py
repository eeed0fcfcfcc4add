"""Shadows: a candidate is asked what another one was asked, and what comes of it is counted and nothing else."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.errors import EngineDiedError, ForetellError, InvalidError, Place, QueueFullError
from app.forecasts import shadow as shadow_module
from app.forecasts.catalogue import Meant
from app.forecasts.shadow import Prepared, Shadows
from app.link.engine import Done, Outcome
from app.link.frames import Order
from app.ticket import Floats, ModelId
from models.spec import Spec
from models.store import Store
from tests.app.fakes import settle
from tests.app.serving import metric, serving, until
from tests.app.specs import spec_of
from tests.builders import publish_tiny

pytestmark = pytest.mark.anyio

ASKED = ModelId("tiny", 1, f"sha256:{'1' * 64}")
CANDIDATE = ModelId("tiny", 2, f"sha256:{'2' * 64}")


class FakeEngine:
    """Keeps what it is given, until the test answers."""

    def __init__(self) -> None:
        self.orders: list[tuple[Order, Done]] = []
        self.refusal: ForetellError | None = None

    def submit(self, order: Order, done: Done) -> Callable[[], None]:
        if self.refusal is not None:
            raise self.refusal
        self.orders.append((order, done))
        return lambda: None

    def answer(self, numbers: object) -> None:
        """The oldest."""
        _, done = self.orders.pop(0)
        done(Outcome(np.asarray(numbers, np.float32).ravel(), 0.0, 0.0))


class FakeWatcher:
    """Adds up."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.values: Counter[str] = Counter()
        self.differences: dict[str, float] = {}

    def shadowed(self, model: ModelId, shadow: int, result: str) -> None:
        assert (model, shadow) == (ASKED, 2)
        self.results[result] += 1

    def differed(self, model: ModelId, shadow: int, target: str, values: int, difference: float) -> None:
        assert (model, shadow) == (ASKED, 2)
        self.values[target] += values
        self.differences[target] = self.differences.get(target, 0.0) + difference


class World:
    """Version 1 of `asked` answers, and version 2 of `candidate` is its shadow."""

    def __init__(self, asked: Spec | None = None, candidate: Spec | None = None) -> None:
        self.asked = asked or spec_of(["target", "target"])
        self.candidate = candidate or self.asked
        self.engine = FakeEngine()
        self.watcher = FakeWatcher()
        self.shadows = Shadows(self.engine, self.watcher)  # type: ignore[arg-type]  # a fake

    def order(self, windows: int = 1, passes: int = 1) -> Prepared:
        """So many windows, made ready for the candidate."""
        shape = windows, self.candidate.window, len(self.candidate.features)
        known = np.zeros((windows, passes * self.candidate.horizon, 0), np.float32)
        order = Order(
            CANDIDATE.digest, np.zeros(shape, np.float32), np.zeros(windows, np.int64), known, passes, False, True
        )
        return lambda: (self.candidate, order)

    async def ask(self, forecast: Floats, prepared: Prepared | None = None) -> None:
        """A forecast was answered."""
        self.shadows.ask(Meant(ASKED, self.asked), CANDIDATE, prepared or self.order(len(forecast)), forecast)
        assert self.engine.orders == []  # whoever asked has the answer first
        await settle()


def forecast(*values: float, steps: int = 2, outputs: int = 2) -> Floats:
    """[B, N, T]"""
    return np.array(values, np.float32).reshape(-1, steps, outputs)


async def test_difference_is_summed_by_target() -> None:
    """Over windows and steps, without sign; of a whole pass only the steps that were asked for."""
    w = World()
    await w.ask(forecast(1, 10, 2, 20, 5, 50, 6, 60))
    w.engine.answer([[[1.5, 10], [1, 26]], [[5, 49], [8, 60]]])
    await w.ask(forecast(3, 30, steps=1))
    w.engine.answer([[[2, 31], [1000, 1000]]])

    assert w.watcher.results == {"compared": 2}
    assert w.watcher.values == {"target_0": 5, "target_1": 5}
    assert w.watcher.differences == {"target_0": 0.5 + 1 + 2 + 1, "target_1": 6 + 1 + 1}


async def test_targets_are_known_by_their_names() -> None:
    """In whatever order the candidate has them, beside its quantiles; what only one of the two has is left out."""
    names = ["target_1", "target_9", "target_0"]
    w = World(candidate=spec_of(["target"] * 3, targets=names, quantiles=(0.1,)))
    assert w.candidate.outputs == 6
    await w.ask(forecast(1, 10, 2, 20))
    w.engine.answer([[11, 0, 4, 9, 9, 9], [22, 0, 2, 9, 9, 9]])

    assert w.watcher.values == {"target_0": 2, "target_1": 2}
    assert w.watcher.differences == {"target_0": 3.0, "target_1": 3.0}


async def test_what_comes_of_it_is_told() -> None:
    """Refused by the candidate, dropped for want of room, failed on the device or with what is no number."""
    w = World()

    def refuses() -> tuple[Spec, Order]:
        raise InvalidError(Place("window", "8 rows are needed"))

    await w.ask(forecast(1, 10, 2, 20), refuses)
    assert w.watcher.results == {"refused": 1}
    await w.ask(forecast(1, 10, 2, 20), w.order(windows=3))
    assert w.watcher.results == {"refused": 2}
    assert w.engine.orders == []
    w.engine.refusal = QueueFullError("4096 rows are waiting")
    await w.ask(forecast(1, 10, 2, 20))
    w.engine.refusal = None
    assert w.watcher.results == {"refused": 2, "dropped": 1}
    await w.ask(forecast(1, 10, 2, 20))
    w.engine.orders.pop()[1](EngineDiedError("the engine stopped"))
    await w.ask(forecast(1, 10, 2, 20))
    w.engine.answer([1, 10, np.nan, 20])
    assert w.watcher.results == {"refused": 2, "dropped": 1, "failed": 2}
    assert w.watcher.values == {}


async def test_answer_that_cannot_be_read_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It would be raised where everybody's answers come in."""
    w = World()
    await w.ask(forecast(1, 10, 2, 20))
    w.engine.answer([1, 10, 2])

    assert w.watcher.results == {"failed": 1}
    assert "cannot be read" in caplog.text


async def test_slow_candidate_piles_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many questions are under way, whatever became of those before; the others are counted and not asked."""
    monkeypatch.setattr(shadow_module, "_MOST", 2)
    w = World()
    for _ in range(5):
        w.shadows.ask(Meant(ASKED, w.asked), CANDIDATE, w.order(), forecast(1, 10, 2, 20))
    await settle()
    assert len(w.engine.orders) == 2
    assert w.watcher.results == {"dropped": 3}
    w.engine.answer([1, 10, 2, 20])
    w.engine.orders.pop()[1](EngineDiedError("the engine stopped"))
    for _ in range(3):
        w.shadows.ask(Meant(ASKED, w.asked), CANDIDATE, w.order(), forecast(1, 10, 2, 20))
    await settle()
    assert len(w.engine.orders) == 2
    assert w.watcher.results == {"dropped": 4, "compared": 1, "failed": 1}


# In the service


async def test_service_compares_and_answers_as_without(tmp_path: Path) -> None:
    """The sums are those of what both versions answer; a shadow that takes other windows is refused; the answers and
    their model are as they are without any."""
    store = Store(tmp_path)
    for seed, more in ((0, {}), (1, {"horizon": 4}), (2, {"window": 12})):
        publish_tiny(store, seed=seed, **more)
    body = {"windows": [[[10.0 + row + number] for row in range(8)] for number in range(3)]}

    store.point("tiny", "production", 1)

    async with serving(tmp_path, versions="all", poll_s=0.01) as client:
        ask = "/forecast?steps=6&version="
        plain = [(await client.post(f"{ask}{version}", json=body)).json() for version in (1, 2)]
        for shadow in (2, 3):
            store.point("tiny", "production", 1, shadow=shadow)

            async def is_shadowed(shadow: int = shadow) -> bool:
                text = (await client.get("/metrics")).text
                if metric(text, "foretell_shadow_requests_total", shadow=str(shadow)) > 0:
                    return True
                assert (await client.post(f"{ask}production", json=body)).json() == plain[0]
                await asyncio.sleep(0.01)
                return False

            await until(is_shadowed)
        text = (await client.get("/metrics")).text

    about = {"model": "tiny", "version": "1", "shadow": "2"}
    requests = metric(text, "foretell_shadow_requests_total", **about, result="compared")
    apart = np.abs(np.array(plain[0]["forecasts"]) - np.array(plain[1]["forecasts"])).sum()
    assert requests == metric(text, "foretell_shadow_requests_total", **about) > 0
    assert metric(text, "foretell_shadow_values_total", **about, target="target_0") == requests * 18
    difference = metric(text, "foretell_shadow_difference_total", **about, target="target_0")
    assert difference == pytest.approx(requests * apart, rel=1e-4)
    assert metric(text, "foretell_shadow_requests_total", shadow="3", result="refused") > 0
    assert metric(text, "foretell_shadow_values_total", shadow="3") == 0
