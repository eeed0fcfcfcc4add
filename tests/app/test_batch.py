"""Files of many windows: each gets what /forecast says of it, and what is wrong with one costs no other."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import orjson
import pytest

from app.asked.query import Query
from app.errors import DeadlineError, DrainingError, EngineDiedError, FailedError, ForetellError, QueueFullError
from app.forecasts import batch as batch_module
from app.forecasts.batch import Batch
from app.forecasts.catalogue import Meant
from app.forecasts.predictor import Choice, Forecast, Predictor
from models.store import Store
from tests.app import calibrated
from tests.app.asking import BOUNDED
from tests.app.fakes import MODEL, settle
from tests.app.serving import metric, serving, until
from tests.app.specs import spec_of
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

RICH: dict[str, Any] = {
    "architecture": "attention_lstm",
    "config": {"hidden": 4, "layers": 1, "attention_size": 4},
    "roles": ("target", "past", "future", "target"),
    "horizon": 3,
    "series": "shop",
}
LINES = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}
NPY = {"Content-Type": "application/x-npy"}


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of a model with everything and one with intervals."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), "rich", **RICH)
    publish_tiny(Store(root), "plain", **BOUNDED)
    calibrated.publish(root)
    async with serving(root, max_steps=500, backtest_rows=16) as client:
        yield client


async def lines_of(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], **options: object
) -> list[dict[str, Any]]:
    """What each line of a batch says."""
    response = await client.post("/batch", params=options, content=content, headers=headers)
    assert response.status_code == 200, response.text
    return [orjson.loads(line) for line in response.content.splitlines()]


def npy_of(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def windows_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(10, 1, (count, 8, 1)).astype(np.float32)


# What is answered


@pytest.mark.parametrize("kind", ["npy", "lines"])
@pytest.mark.parametrize("count", [1, 5, 70])
async def test_windows_are_answered_in_order(client: httpx.AsyncClient, kind: str, count: int) -> None:
    """Each with the numbers that /forecast has for it, however many parts they take."""
    windows = windows_of(count)
    if kind == "npy":
        content, headers = npy_of(windows), NPY
    else:
        content = b"\n".join(orjson.dumps({"window": window.tolist()}) for window in windows) + b"\n\n"
        headers = LINES
    options = {"model": "plain", "steps": 3}
    whole = (await client.post("/forecast", params=options, json={"windows": windows[:16].tolist()})).json()

    start, *found, end = await lines_of(client, content, headers, **options)

    assert start["windows"] == count
    assert [line["window"] for line in found] == list(range(count))
    np.testing.assert_allclose([line["forecast"] for line in found[:16]], whole["forecasts"], rtol=1e-5)
    assert end == {"done": count, "failed": 0}


async def test_table_of_many_series(client: httpx.AsyncClient) -> None:
    """Of each series its last window and the known future behind it, as /forecast takes the same table."""
    dice = np.random.default_rng(0)
    names = [f"shop {number}" for number in range(30)]
    text = ["shop,time,target_0,past_1,future_2,target_3"]
    for row in range(15):
        for name in names:
            time = f"2013-06-01T{row:02}:00:00Z"
            values = [f"{value:.3f}" for value in dice.normal(10, 1, 3)]
            seen = values if row < 11 else ["", "", ""]
            text.append(f"{name},{time},{seen[0]},{seen[1]},{20 + row},{seen[2]}")
    content = "\n".join(text).encode()
    options = {"model": "rich", "steps": 4, "attention": "all"}
    response = await client.post("/forecast", params=options, content=content, headers=CSV)
    assert response.status_code == 200, response.text
    whole = response.json()

    start, *found, _ = await lines_of(client, content, CSV, **options)

    assert start["attention"] == {"steps_per_row": 3}
    assert [line["series"] for line in found] == whole["series"] == names
    np.testing.assert_allclose([line["forecast"] for line in found], whole["forecasts"], rtol=1e-5)
    np.testing.assert_allclose([line["attention"] for line in found], whole["attention"]["weights"], atol=1e-5)
    assert [line["timestamps"] for line in found] == whole["timestamps"]


async def test_windows_have_their_intervals(client: httpx.AsyncClient) -> None:
    """Those of /forecast."""
    asked = calibrated.windows(9)
    options = {"model": "tiny", "steps": calibrated.STEPS, "level": "80"}
    whole = (await client.post("/forecast", params=options, json={"windows": asked})).json()["intervals"]["80"]

    _, *found, _ = await lines_of(client, npy_of(np.array(asked)), NPY, **options)

    for side, values in whole.items():
        np.testing.assert_allclose([line["intervals"]["80"][side] for line in found], values, rtol=1e-5)


async def test_windows_count(client: httpx.AsyncClient) -> None:
    """In the figures of the model."""
    before = metric((await client.get("/metrics")).text, "foretell_model_windows_total", model="plain")
    await lines_of(client, npy_of(windows_of(40)), NPY, model="plain", steps=1)

    async def has_counted() -> bool:
        return metric((await client.get("/metrics")).text, "foretell_model_windows_total", model="plain") == before + 40

    await until(has_counted)


# What is wrong


async def test_wrong_windows_cost_no_other(client: httpx.AsyncClient) -> None:
    """A window that the model overflows on, or that has too few rows, is told on its own line."""
    windows = [window.tolist() for window in windows_of(20)]
    windows[7] = [[3e38 * (-1) ** row] for row in range(8)]
    windows[11] = windows[11][:3]
    content = b"\n".join(orjson.dumps({"window": window}) for window in windows)

    _, *found, end = await lines_of(client, content, LINES, model="tiny", steps=2)

    wrong = {line["window"]: line["error"] for line in found if "error" in line}
    assert sorted(wrong) == [7, 11]
    assert wrong[7]["errors"][0]["place"] == "line 8: window"
    assert wrong[7]["type"] == "urn:foretell:problem:not-finite"
    assert wrong[11]["status"] == 422
    assert [line["window"] for line in found] == list(range(20))
    assert end == {"done": 20, "failed": 2}


async def test_wrong_window_among_others_of_a_part(client: httpx.AsyncClient) -> None:
    """It is found, and named by its place in the whole array."""
    windows = windows_of(30)
    windows[17] = np.array([[3e38 * (-1) ** row] for row in range(8)])
    _, *found, end = await lines_of(client, npy_of(windows), NPY, model="tiny", steps=1)
    wrong = [line for line in found if "error" in line]
    assert [(line["window"], line["error"]["errors"][0]["place"]) for line in wrong] == [(17, "array[17]")]
    assert end["failed"] == 1


@pytest.mark.parametrize(
    ("options", "content", "headers", "status", "place"),
    [
        ({"model": "nobody", "steps": 1}, b"", NPY, 404, None),
        ({"model": "plain", "steps": 501}, npy_of(windows_of(1)), NPY, 422, "query.steps"),
        ({"model": "plain"}, npy_of(windows_of(1)), NPY, 422, "query.steps"),
        ({"model": "plain", "steps": 1, "level": "80"}, npy_of(windows_of(1)), NPY, 422, "query.level"),
        ({"model": "plain", "steps": 1, "priority": "interactive"}, npy_of(windows_of(1)), NPY, 422, "query.priority"),
        ({"model": "plain", "steps": 1}, b"{}", {"Content-Type": "application/json"}, 415, None),
        ({"model": "plain", "steps": 1}, b"\n \n", LINES, 422, "body"),
        ({"model": "plain", "steps": 1}, b'{"window": [[1]]}\n{"window"', LINES, 400, None),
        ({"model": "plain", "steps": 1}, b'{"window": [["x"]]}', LINES, 422, "line 1: window[0][0]"),
        ({"model": "plain", "steps": 1}, b'\n{"windows": [[[1.0]]]}', LINES, 422, "line 2: windows"),
        ({"model": "plain", "steps": 1}, b"time,target_0\n", CSV, 422, "csv"),
        ({"model": "rich", "steps": 1}, b"target_0,past_1,future_2,target_3\n,,1,\n", CSV, 422, "csv"),
        ({"model": "rich", "steps": 9}, b"target_0,past_1,future_2,target_3\n1,1,1,1\n,,1,\n", CSV, 422, "csv"),
    ],
)
async def test_refusals_are_whole_problems(
    client: httpx.AsyncClient,
    options: dict[str, Any],
    content: bytes,
    headers: dict[str, str],
    status: int,
    place: str | None,
) -> None:
    """What is wrong with the request as such is told with its status, before anything is computed."""
    response = await client.post("/batch", params=options, content=content, headers=headers)
    assert response.status_code == status, response.text
    if place is not None:
        assert response.json()["errors"][0]["place"] == place


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    """Backtests and batches share the room for large bodies."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    async with serving(tmp_path, max_series_bytes=50, max_body_bytes=20) as client:
        small = await client.post("/batch?steps=1", content=b"\n" * 40, headers=LINES)
        large = await client.post("/batch?steps=1", content=b"\n" * 60, headers=LINES)
    assert (small.status_code, large.status_code) == (422, 413)


# On its way


class FakePredictor:
    """Answers when it is told to, with the tags of the windows."""

    row_steps = 10_000

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.errors: dict[int, list[ForetellError]] = {}
        """By the tag of a first window, what it is answered before its forecast."""
        self.hold: asyncio.Event | None = None
        self.cancelled = 0

    async def forecast(self, query: Query, choice: Choice, *, within_s: float | None = None) -> Forecast:
        tags = [int(window[0, 0]) for window in query.windows]
        self.asked.append(tags)
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors.get(tags[0]):
            raise self.errors[tags[0]].pop(0)
        values = np.array(tags, np.float32).reshape(-1, 1, 1)
        return Forecast(MODEL, choice.meant.spec, values, None, False, None)


def batch_of(predictor: FakePredictor, windows: int, *, rows: int = 16, deadline_s: float | None = None) -> Batch:
    """One of windows with the tags 0, 1 and so on."""
    array = np.zeros((windows, 4, 1), np.float32)
    array[:, 0, 0] = range(windows)
    choice = Choice(Meant(MODEL, spec_of()), 1, "none", None, None, True)
    query = Query(array, None, None, single=False)
    return Batch(cast(Predictor, predictor), [query], choice, rows=rows, deadline_s=deadline_s)


async def tags_of(batch: Batch) -> list[int]:
    """In the order in which they come."""
    found = []
    async with aclosing(batch.answers()) as answers:
        async for answered in answers:
            assert isinstance(answered.result, Forecast)
            assert answered.start == len(found)
            found += answered.result.forecast.ravel().astype(int).tolist()
    return found


async def test_so_many_windows_are_on_their_way() -> None:
    """At most, and no part is larger than a quarter of it."""
    predictor = FakePredictor()
    predictor.hold = asyncio.Event()
    reading = asyncio.create_task(tags_of(batch_of(predictor, 100)))
    await settle()
    assert [len(part) for part in predictor.asked] == [4, 4, 4, 4]
    predictor.hold.set()
    assert await asyncio.wait_for(reading, PATIENCE_S) == list(range(100))


async def test_refusals_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue, for as long as it is full; an engine that has died, until another is there."""
    monkeypatch.setattr(batch_module, "_PAUSE_S", 0.0)
    predictor = FakePredictor()
    full = QueueFullError("full", retry_after_s=0)
    predictor.errors = {4: [full] * 100, 8: [EngineDiedError("gone", retry_after_s=0)] * 60}
    assert await tags_of(batch_of(predictor, 12)) == list(range(12))


@pytest.mark.parametrize(
    ("error", "times"), [(DrainingError("ending"), 1), (EngineDiedError("gone", retry_after_s=0), 61)]
)
async def test_what_does_not_mend_ends_it(monkeypatch: pytest.MonkeyPatch, error: ForetellError, times: int) -> None:
    """And calls off what is under way."""
    monkeypatch.setattr(batch_module, "_PAUSE_S", 0.0)
    predictor = FakePredictor()
    predictor.errors = {0: [error] * times}
    with pytest.raises(type(error)):
        await tags_of(batch_of(predictor, 12))


async def test_deadline_is_of_all_of_it() -> None:
    """A batch that has one is not begun when it has passed."""
    predictor = FakePredictor()
    with pytest.raises(DeadlineError):
        await tags_of(batch_of(predictor, 12, deadline_s=0.0))
    assert predictor.asked == []


async def test_reader_that_leaves_calls_it_off() -> None:
    """Everything that is under way."""
    predictor = FakePredictor()
    predictor.hold = asyncio.Event()
    reading = asyncio.create_task(tags_of(batch_of(predictor, 100)))
    await settle()
    reading.cancel()
    await asyncio.wait([reading])
    assert predictor.cancelled == 4


async def test_only_the_failing_window_fails() -> None:
    """The others of its part are asked again without it."""
    predictor = FakePredictor()
    predictor.errors = {4: [FailedError("failed")] * 3}
    async with aclosing(batch_of(predictor, 8).answers()) as answers:
        found = [answered async for answered in answers]
    failed = [one.start for one in found if isinstance(one.result, ForetellError)]
    assert failed == [4]
    assert sum(1 if isinstance(one.result, ForetellError) else len(one.result.forecast) for one in found) == 8
    assert [part for part in predictor.asked if 4 in part] == [[4, 5, 6, 7], [4, 5], [4]]
