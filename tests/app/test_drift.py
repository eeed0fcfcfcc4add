"""Input drift: what is counted of a request, where it lies among the training values, and what counting may cost."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from app.forecasts import drift
from app.forecasts.drift import Drift
from app.ticket import ModelId
from models.spec import Feature, Spec, Statistics
from tests.app.calibrated import publish, windows
from tests.app.fakes import MODEL, OTHER
from tests.app.serving import metric, serving, until
from tests.app.specs import spec_of

QUARTERS = Statistics(mean=5, std=2, min=0, max=10, quartiles=(2, 4, 7))
OLD = Statistics(mean=5, std=0, min=0, max=10)


class FakeMetrics:
    """Adds up what it is told, by model."""

    def __init__(self) -> None:
        self.values: Counter[tuple[ModelId, str, str]] = Counter()
        self.deviations: Counter[tuple[ModelId, str, str]] = Counter()

    def inputs(
        self, model: ModelId, values: Mapping[tuple[str, str], int], deviations: Mapping[tuple[str, str], float]
    ) -> None:
        self.values.update({(model, *labels): count for labels, count in values.items()})
        for labels, distance in deviations.items():
            self.deviations[model, *labels] += distance  # type: ignore[assignment]  # a Counter of floats


def spec(*statistics: Statistics) -> Spec:
    """Of a model with such features, called a, b and so on."""
    named = zip("abc", statistics, strict=False)
    return spec_of(features=[Feature(name=name, role="target", statistics=of) for name, of in named])


def rows(*values: float) -> np.ndarray:
    """A window for each value, which ends with it; all before is far away."""
    found = np.full((len(values), 4, 1), 1e6, np.float32)
    found[:, -1, 0] = values
    return found


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (-0.1, "below"),
        (0, "first"),
        (2, "first"),
        (2.1, "second"),
        (4, "second"),
        (7, "third"),
        (7.1, "fourth"),
        (10, "fourth"),
        (10.1, "above"),
        (np.nan, "missing"),
    ],
)
def test_range_of_a_value(value: float, where: str) -> None:
    """A quarter takes its upper quartile in, the first the minimum and the last the maximum."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    seen.saw(MODEL, spec(QUARTERS), rows(value))
    seen.count()

    assert watcher.values == {(MODEL, "a", where): 1}


def test_an_extreme_of_the_training_rows_is_within_them() -> None:
    """A value that was rounded to single precision is not below the minimum that it is."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    seen.saw(MODEL, spec(Statistics(mean=0, std=1, min=-0.1, max=0.7, quartiles=(0, 0.3, 0.6))), rows(-0.1, 0.7))
    seen.count()

    assert watcher.values == {(MODEL, "a", "first"): 1, (MODEL, "a", "fourth"): 1}


def test_archive_without_quartiles() -> None:
    """All from the minimum to the maximum is one range; what is outside is told as ever."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    seen.saw(MODEL, spec(OLD), rows(-1, 0, 5, 10, 11, np.nan))
    seen.count()

    assert watcher.values == {
        (MODEL, "a", "below"): 1,
        (MODEL, "a", "inside"): 3,
        (MODEL, "a", "above"): 1,
        (MODEL, "a", "missing"): 1,
    }


def test_distances_from_the_mean() -> None:
    """In standard deviations, by side; ten at most, one where the deviation is zero, and nothing of what is missing."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    seen.saw(MODEL, spec(QUARTERS, OLD), np.array([[[4, 4]], [[8, 7]], [[1e38, np.nan]]], np.float32))
    seen.count()

    assert watcher.deviations == {
        (MODEL, "a", "below"): 0.5,
        (MODEL, "a", "above"): 11.5,
        (MODEL, "b", "below"): 1,
        (MODEL, "b", "above"): 2,
    }


def test_counts_once() -> None:
    """What was counted is not counted again, each model has its own, and nothing is counted of nothing."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    seen.saw(MODEL, spec(QUARTERS), rows(1, 1))
    seen.saw(OTHER, spec(QUARTERS), rows(8))
    seen.count()
    seen.saw(MODEL, spec(QUARTERS), rows(1))
    seen.count()
    seen.count()

    assert watcher.values == {(MODEL, "a", "first"): 3, (OTHER, "a", "fourth"): 1}


def test_is_bounded() -> None:
    """However many requests come, so many rows of a model are kept and nothing of the requests themselves."""
    watcher = FakeMetrics()
    seen = Drift(watcher)
    kept = rows(*[1.0] * 100)
    for _ in range(1000):
        seen.saw(MODEL, spec(QUARTERS), kept)
    seen.saw(OTHER, spec(QUARTERS), kept)
    kept[:] = 1e6  # what was kept of it is a copy
    seen.count()

    assert watcher.values == {(MODEL, "a", "first"): 256, (OTHER, "a", "first"): 100}


@pytest.mark.anyio
async def test_goes_on_and_counts_at_the_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A second that cannot be counted is logged and not the last; what is left when it is told to stop is counted."""
    monkeypatch.setattr(drift, "_EVERY_S", 0)
    watcher = FakeMetrics()
    seen = Drift(watcher)
    watching = asyncio.create_task(seen.watch())
    with caplog.at_level(logging.ERROR):
        seen.saw(MODEL, spec(QUARTERS), np.zeros((1, 4, 2), np.float32))  # two columns of a model with one

        async def logged() -> bool:
            return "cannot be counted" in caplog.text

        await until(logged)
    seen.saw(MODEL, spec(QUARTERS), rows(1))
    watching.cancel()
    await watching

    assert watcher.values == {(MODEL, "a", "first"): 1}


@pytest.mark.anyio
async def test_requests_are_counted(tmp_path: Path) -> None:
    """Forecasts are, hits of the cache too, every window of them; what is told or asked of the past is not."""
    publish(tmp_path)
    asked = windows(5)
    low, high = [[10.0]] * 7 + [[6.0]], [[10.0]] * 7 + [[14.0]]
    async with serving(tmp_path) as client:
        for body in ({"windows": asked}, {"window": low}, {"window": high}, {"window": high}):
            assert (await client.post("/predict", json=body)).status_code == 200
        for path in ("/anomalies", "/models/tiny/versions/1/actuals"):
            assert (await client.post(path, json={"window": low, "actual": [[1]]})).status_code == 200
        await client.post("/predict", json={"window": [[6.0]]})

        async def figure(name: str, **labels: str) -> float:
            text = (await client.get("/metrics")).text
            return metric(text, name, model="tiny", version="1", feature="target_0", **labels)

        async def counted() -> bool:
            return await figure("foretell_input_values_total") >= 8

        await until(counted)
        found = [await figure("foretell_input_values_total", range=where) for where in ("below", "inside", "above")]
        above = await figure("foretell_input_deviations_total", side="above")

    last = np.array(asked)[:, -1, 0]
    assert found == [1, 5, 2]
    assert above == pytest.approx(8 + (last - 10).clip(0).sum(), rel=1e-6)
