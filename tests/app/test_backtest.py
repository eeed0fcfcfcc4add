"""Backtests: which windows count, what their errors are, that nobody in a hurry waits for them, and how they end."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import numpy as np
import orjson
import pytest
import torch
from starlette.types import Message, Receive, Scope, Send

from app.asked.layout import lay_out
from app.asked.query import Query, Series
from app.edge.middleware import Ample, Intake
from app.errors import (
    DeadlineError,
    EngineDiedError,
    ForetellError,
    InvalidError,
    NotReadyError,
    QueueFullError,
    SlowRequestError,
)
from app.hindsight.backtest import Backtest, Coverage, Job, Line, cut
from app.link.engine import Done, Engine, Link, Outcome, open_link
from app.link.frames import Order
from app.processes.backend import Parts
from models.core import Surroundings
from models.intervals import Base
from models.spec import Calendar, Gaps, Metrics, Role, Scores, Spec
from models.store import Store
from tests.app import calibrated, devices
from tests.app.devices import FakeRuntime, numbers_of, order, pair, served
from tests.app.fakes import MODEL, settle
from tests.app.serving import application, metric, serving, until
from tests.app.specs import spec_of
from tests.builders import START, network, publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

NPY = {"content-type": "application/x-npy"}
CSV = {"content-type": "text/csv"}


def metrics_of(*targets: str, season: int) -> Metrics:
    """Of a training whose seasonal-naive forecast was off by 2 in the mean."""
    scores = {target: Scores(mae=[1.0], rmse=[1.5], r2=[0.5], mase=[0.5]) for target in targets}
    return Metrics(steps=1, windows=100, season=season, model=scores, baselines={})


def npy_of(values: np.ndarray) -> bytes:
    """As NumPy writes it."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def walk(rows: int, columns: int = 1, seed: int = 0) -> np.ndarray:
    """A series [R, C] of plausible values."""
    return np.random.default_rng(seed).normal(10, 1, (rows, columns)).astype(np.float32)


# Which windows count


def is_taken(series: Series, spec: Spec, start: int, steps: int) -> bool:
    """Whether the service would take that window as a request, and knows all that came after it."""
    window, ahead = np.split(series.values[start : start + spec.window + steps], [spec.window])
    columns = [feature.role != "static" for feature in spec.features]
    known = [feature.role == "future" for feature in spec.features]
    wanted = [feature.role == "target" or feature.is_known for feature in spec.features]
    if np.isnan(ahead[:, wanted]).any():
        return False
    future = ahead[None, :, known] if any(known) else None
    query = Query(window[None, :, columns], future, None, single=True, gaps=True)
    try:
        lay_out(query, spec, steps, most=1)
    except InvalidError:
        return False
    return True


@pytest.mark.parametrize("gaps", ["refuse", *(Gaps(method="carry_forward", limit=limit) for limit in (1, 2, 9))])
@pytest.mark.parametrize("shortest", [None, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_windows_that_count_are_those_that_the_service_takes(
    gaps: Literal["refuse"] | Gaps, shortest: int | None, steps: int
) -> None:
    """Of every window of series full of holes, at every stride; the others of a series are counted as skipped."""
    spec = spec_of(("target", "past", "future"), gaps=gaps, shortest=shortest)
    random, counted = np.random.default_rng(0), 0
    for share, stride in itertools.product((0.1, 0.3, 0.6), (1, 2, 5)):
        values = walk(60, 3)
        values[random.random(values.shape) < share] = np.nan
        values[random.random(60) < share / 2] = np.nan
        series = Series(None, values, None)
        starts, skipped = cut(series, spec, steps, stride)
        every = range(0, 60 - spec.window - steps + 1, stride)
        assert starts.tolist() == [start for start in every if is_taken(series, spec, start, steps)]
        assert skipped == len(every) - len(starts)
        counted += len(starts)
    assert counted


def test_series_too_short_for_a_window_has_none() -> None:
    """A row short of one there is none, and none is skipped; with that row there is one."""
    spec = spec_of()
    assert [len(cut(Series(None, walk(rows), None), spec, 3, 1).starts) for rows in (0, 6, 7, 8)] == [0, 0, 1, 2]
    assert cut(Series(None, walk(6), None), spec, 3, 1).skipped == 0


# How it goes on


class FakeEngine:
    """Keeps what is submitted until the test answers it, by default with what the fake model gives."""

    def __init__(self) -> None:
        self.orders: list[tuple[Order, Done]] = []
        self.waiting: list[tuple[Order, Done]] = []
        self.submitted = asyncio.Event()

    def submit(self, order: Order, done: Done) -> Callable[[], None]:
        one = order, done
        self.orders.append(one)
        self.waiting.append(one)
        self.submitted.set()
        return lambda: self.waiting.remove(one)

    def answer(self, index: int = 0, outcome: ForetellError | None = None) -> None:
        """One of those that wait."""
        order, done = self.waiting.pop(index)
        done(outcome or Outcome(numbers_of(order), 0.0, 0.0))


def fake_job(rows: int = 40, *, deadline: float | None = None) -> Job:
    """Of the fake devices' model: two targets, two steps a pass."""
    values = np.random.default_rng(1).integers(0, 9, (rows, 4)).astype(np.float32)
    return Job(MODEL, devices.spec(), [Series(None, values, 0)], steps=3, stride=1, deadline=deadline)


class Running:
    """A backtest under way whose lines are kept."""

    def __init__(self, backtest: Backtest) -> None:
        self.lines: list[Line] = []
        self.task = asyncio.create_task(self._run(backtest))

    async def _run(self, backtest: Backtest) -> None:
        async with aclosing(backtest.lines()) as lines:
            async for line in lines:
                self.lines.append(line)


async def test_windows_on_their_way_are_bounded() -> None:
    """Never more than told, and the next order follows as soon as one is answered."""
    engine = FakeEngine()
    backtest = Backtest(fake_job(), engine.submit, rows=8)
    running = Running(backtest)
    most = 0
    while not running.task.done():
        await settle()
        most = max(most, sum(len(order.windows) for order, _ in engine.waiting))
        if engine.waiting:
            engine.answer()
    assert most == 8
    assert sum(len(order.windows) for order, _ in engine.orders) == backtest.windows == 40 - 8 - 3 + 1
    assert all(order.bulk and not order.attention for order, _ in engine.orders)
    assert running.lines[-1].keys() == {"result"}


async def test_order_of_answers_changes_nothing() -> None:
    """The result of answers that come in any order is the same to the last digit."""
    results = []
    for index in (0, -1):
        engine = FakeEngine()
        running = Running(Backtest(fake_job(), engine.submit, rows=16))
        while not running.task.done():
            await settle()
            if engine.waiting:
                engine.answer(index)
        results.append(running.lines[-1])
    assert results[0] == results[1]


async def test_at_most_a_hundred_lines_of_progress() -> None:
    """They count up to the end, which is the result's to tell."""
    engine = FakeEngine()
    running = Running(Backtest(fake_job(rows=520), engine.submit, rows=4))
    while not running.task.done():
        await settle()
        while engine.waiting:
            engine.answer()
    done = [line["done"] for line in running.lines[1:-1]]
    assert done == sorted(set(done))
    assert 80 < len(done) <= 100
    assert running.lines[0]["windows"] == 510


@pytest.mark.parametrize("way", ["cancelled", "closed"])
async def test_whoever_leaves_calls_off_the_work(way: str) -> None:
    """No order of it waits any more, and none follows."""
    engine = FakeEngine()
    lines = Backtest(fake_job(), engine.submit, rows=8).lines()
    await anext(lines)
    reading = asyncio.ensure_future(anext(lines))
    await engine.submitted.wait()
    await settle()
    assert len(engine.waiting) == 4
    with anyio.fail_after(PATIENCE_S):
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if way == "closed":
            await lines.aclose()
    assert engine.waiting == []
    assert len(engine.orders) == 4


async def test_error_ends_it_and_calls_off_the_rest() -> None:
    """Whatever an order is refused with comes through, and no other goes on for nothing."""
    engine = FakeEngine()
    running = Running(Backtest(fake_job(), engine.submit, rows=8))
    await settle()
    engine.answer()
    await settle()
    engine.answer(1, NotReadyError("the model is not loaded on this device"))
    engine.answer(0)
    with pytest.raises(NotReadyError):
        await running.task
    assert engine.waiting == []


async def test_full_queue_is_waited_for() -> None:
    """Others' bulk work is no error: the same windows are asked about again, and the result is whole."""
    engine, refused = FakeEngine(), [0]

    def submit(order: Order, done: Done) -> Callable[[], None]:
        refused[0] += 1
        if refused[0] in (2, 3, 7):
            raise QueueFullError("full", retry_after_s=0)
        return engine.submit(order, done)

    running = Running(Backtest(fake_job(), submit, rows=8))
    answered = 0
    while not running.task.done():
        await settle()
        if engine.waiting:
            answered += 1
            engine.answer(0, QueueFullError("full", retry_after_s=0) if answered == 4 else None)
    result = running.lines[-1]["result"]
    assert isinstance(result, dict)
    assert result["windows"] == 30


async def test_deadline_ends_it() -> None:
    """Also between two orders, and while others fill the queue."""
    engine = FakeEngine()
    running = Running(Backtest(fake_job(deadline=asyncio.get_running_loop().time() - 1), engine.submit, rows=8))
    with pytest.raises(DeadlineError):
        await running.task
    assert engine.waiting == []


async def test_windows_without_a_finite_forecast_are_counted_and_left_out() -> None:
    """What no client would get is no part of any error."""
    engine = FakeEngine()
    running = Running(Backtest(fake_job(), engine.submit, rows=400))
    await settle()
    order, done = engine.waiting.pop()
    numbers = numbers_of(order)
    numbers[5] = np.inf
    done(Outcome(numbers, 0.0, 0.0))
    await running.task
    result: Any = running.lines[-1]["result"]
    assert (result["windows"], result["not_finite"]) == (30, 1)
    assert result["model"][devices.spec().targets[0]]["n"] == [29] * 3


async def test_intervals_are_scored_as_they_are_given() -> None:
    """By level, on the windows and the outputs of the model; the callable is the seam to whatever makes them."""
    job = fake_job(rows=30)
    values = job.series[0].values[:, [0, 3]].astype(np.float64)
    truth = np.stack([values[start + 8 : start + 11] for start in range(20)])
    seen: list[tuple[int, ...]] = []

    def bounds(windows: np.ndarray, outputs: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        seen.append((*windows.shape, *outputs.shape))
        shape = outputs[:, :, :2]
        return {"80": (np.full_like(shape, 2), np.full_like(shape, 6)), "50": (np.full_like(shape, 4),) * 2}

    engine = FakeEngine()
    running = Running(Backtest(Job(*_parts(job), bounds), engine.submit, rows=400))
    await settle()
    engine.answer()
    await running.task
    assert seen == [(20, 8, 4, 20, 3, 2)]
    result: Any = running.lines[-1]["result"]
    for level, low, high in (("80", 2, 6), ("50", 4, 4)):
        alpha = 1 - int(level) / 100
        outside = np.maximum(np.maximum(low - truth, truth - high), 0)
        for index, target in enumerate(devices.spec().targets):
            found = result["intervals"][level][target]
            inside = (truth >= low) & (truth <= high)
            assert found["coverage"] == pytest.approx(inside.mean(0)[:, index])
            assert found["width"] == [high - low] * 3
            assert found["winkler"] == pytest.approx((high - low + 2 / alpha * outside).mean(0)[:, index])


def _parts(job: Job) -> tuple[Any, ...]:
    return job.model, job.spec, job.series, job.steps, job.stride


async def test_intervals_are_those_of_the_model(tmp_path: Path) -> None:
    """Of the levels that are asked for; one that its calibration does not support is refused before the first line."""
    calibrated.publish(tmp_path)
    values = walk(60)
    async with serving(tmp_path) as client:
        *_, last = await posted(client, "steps=3&level=80,90.5", npy_of(values))
        asked = [values[start : start + 8].tolist() for start in range(50)]
        forecasts = (await client.post("/forecast?steps=3", json={"windows": asked})).json()["forecasts"]
        beyond = await client.post("/backtest?steps=4&level=80", content=npy_of(values), headers=NPY)
        fine = await client.post("/backtest?steps=3&level=99.9", content=npy_of(values), headers=NPY)
        none = await client.post("/backtest?steps=3&level=much", content=npy_of(values), headers=NPY)
    errors = np.stack([values[start + 8 : start + 11] for start in range(50)]).astype(np.float64) - forecasts
    table = calibrated.table()
    for level in ("80", "90.5"):
        found = last["result"]["intervals"][level]["target_0"]
        lower, upper = (end[0, :, 0] for end in table.bounds(Base(np.zeros((1, 3, 1))), [level])[0])
        inside = (lower <= errors[:, :, 0]) & (errors[:, :, 0] <= upper)
        assert found["coverage"] == pytest.approx(inside.mean(0))
        assert found["width"] == pytest.approx(upper - lower, rel=1e-6)
    assert [response.status_code for response in (beyond, fine, none)] == [422] * 3
    places = [response.json()["errors"][0]["place"] for response in (beyond, fine, none)]
    assert places == ["query.steps", "query.level", "query.level"]


def test_truth_on_an_edge_is_inside() -> None:
    """Both ends belong to an interval, as they do where intervals are calibrated."""
    found = Coverage(90, (1, 1))
    for truth in (1, 2, 3, 4):
        found.add(*(np.full((1, 1, 1), value, np.float32) for value in (2, 3, truth)))
    assert found.told(["x"])["x"]["coverage"] == [0.5]


async def test_one_in_a_hurry_is_in_the_very_next_pass() -> None:
    """While a backtest keeps the device busy, an order that comes in the middle of a pass is in the one after it."""
    runtime = FakeRuntime(held=True)
    engine = Engine(queue_rows=100)
    ours, theirs = pair()
    with served(runtime, clients=0, loaded=False, batch_rows=4, prepare=lambda device: device.connect(theirs)):
        link = await open_link(ours, queue_rows=100)
        await link.load(MODEL, Path("model.pt"))
        engine.use(0, link)
        running = Running(Backtest(fake_job(rows=80), engine.submit, rows=32))
        try:
            for tag in (101, 102, 103):
                assert (await asyncio.to_thread(runtime.begun))[0].bulk
                heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                engine.submit(order(tag), heard.set_result)
                await settle()
                runtime.step()
                (hasty, *along) = await asyncio.to_thread(runtime.begun)
                assert (int(hasty.window[0, 0, 0]), hasty.bulk) == (tag, False)
                assert all(one.bulk for one in along)
                runtime.step()
                with anyio.fail_after(PATIENCE_S):
                    assert np.array_equal((await heard).numbers, numbers_of(order(tag)))
        finally:
            runtime.let_go()
            with anyio.fail_after(PATIENCE_S):
                await running.task
            await engine.close(PATIENCE_S)
    assert running.lines[-1].keys() == {"result"}


# Over HTTP

ROLES: tuple[Role, ...] = ("target", "past", "future", "target")
NAMES = ["target_0", "past_1", "future_2", "target_3"]
TARGETS = ["target_0", "target_3"]
BOUNDED: dict[str, Any] = {"architecture": "lstm", "config": {"hidden": 4, "layers": 1, "residual": False}}


async def posted(client: httpx.AsyncClient, query: str, body: bytes, headers: dict[str, str] = NPY) -> list[Any]:
    """The lines of a backtest."""
    response = await client.post(f"/backtest?{query}", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [orjson.loads(line) for line in response.content.splitlines()]


def table(series: dict[str, np.ndarray], missing: set[tuple[str, int]]) -> bytes:
    """All series, their rows one after the other; the columns in another order, and one that the model knows not."""
    lines = ["remark,target_3,place,future_2,time,past_1,target_0"]
    for row in range(max(map(len, series.values()))):
        time = (START + row * timedelta(hours=1)).isoformat()
        for name, values in series.items():
            if row < len(values) and (name, row) not in missing:
                cells = ["" if np.isnan(value) else repr(float(value)) for value in values[row]]
                lines.append(f"x,{cells[3]},{name},{cells[2]},{time},{cells[1]},{cells[0]}")
    return "\n".join(lines).encode()


def scored(series: list[np.ndarray], stride: int, steps: int, season: int) -> dict[str, Any]:
    """The errors [W, N, T] of the network itself and of the last season, window by window."""
    eager = network("linear", roles=ROLES, window=8, horizon=2)
    forecasts, naive, truth = [], [], []
    for values in series:
        for start in range(0, len(values) - 8 - steps + 1, stride):
            window, ahead = values[start : start + 8], values[start + 8 : start + 8 + steps]
            if np.isnan(window).any() or np.isnan(ahead[:, [0, 2, 3]]).any():
                continue
            future = np.concatenate([ahead[:, 2:3], ahead[-1:, 2:3]])[None]
            with torch.inference_mode():
                answer, _ = eager.rollout(
                    torch.tensor(window[None]), torch.zeros(1, dtype=torch.int64), torch.tensor(future), steps
                )
            forecasts.append(answer[0].double().numpy())
            naive.append([window[8 - season + step % season][[0, 3]] for step in range(steps)])
            truth.append(ahead[:, [0, 3]])
    truths = np.array(truth, np.float64)
    return {
        "model": np.array(forecasts) - truths,
        "seasonal_naive": np.array(naive, np.float64) - truths,
        "truth": truths,
    }


def check_scores(found: dict[str, Any], errors: np.ndarray, truth: np.ndarray, *, mase: bool) -> None:
    """They are those of errors [W, N, T]."""
    for index, target in enumerate(TARGETS):
        error, real = errors[:, :, index], truth[:, :, index]
        scores = found[target]
        assert scores["n"] == [len(error)] * error.shape[1]
        assert scores["mae"] == pytest.approx(np.abs(error).mean(0), rel=1e-5)
        assert scores["rmse"] == pytest.approx(np.sqrt(np.square(error).mean(0)), rel=1e-5)
        assert scores["bias"] == pytest.approx(error.mean(0), rel=1e-4, abs=1e-5)
        assert scores["r2"] == pytest.approx(1 - np.square(error).mean(0) / real.var(0), rel=1e-4)
        assert ("mase" in scores) == mase
        if mase:
            assert scores["mase"] == pytest.approx(np.abs(error).mean(0) / 2.0, rel=1e-5)


async def test_errors_are_those_of_the_network_itself(tmp_path: Path) -> None:
    """Over all windows of two series with rows and values missing, as a table; in total and series by series."""
    metrics = metrics_of(*TARGETS, season=5)
    publish_tiny(Store(tmp_path), roles=ROLES, horizon=2, series="place", metrics=metrics)
    series = {"a": walk(70, 4, seed=1), "b": walk(50, 4, seed=2)}
    series["a"][20, 1] = series["a"][44, 0] = series["b"][30, 2] = np.nan
    body = table(series, {("b", 10), ("b", 11)})
    series["b"][10:12] = np.nan

    async with serving(tmp_path) as client:
        head, *_, last = await posted(client, "steps=3&stride=2", body, CSV)
        figures = (await client.get("/metrics")).text

    every, result = scored([*series.values()], 2, 3, 5), last["result"]
    windows = len(every["truth"])
    assert head.items() >= {"model": "tiny", "version": 1, "targets": TARGETS, "steps": 3, "stride": 2}.items()
    assert (head["series"], head["windows"], head["windows"] + head["skipped"]) == (2, windows, 30 + 20)
    assert (result["windows"], result["not_finite"]) == (windows, 0)
    check_scores(result["model"], every["model"], every["truth"], mase=True)
    check_scores(result["baselines"]["seasonal_naive"], every["seasonal_naive"], every["truth"], mase=True)
    assert [one["series"] for one in result["series"]] == ["a", "b"]
    for one in result["series"]:
        alone = scored([series[one["series"]]], 2, 3, 5)
        # Its naive error on the training rows is not known.
        check_scores(one["model"], alone["model"], alone["truth"], mase=False)
        check_scores(one["baselines"]["seasonal_naive"], alone["seasonal_naive"], alone["truth"], mase=False)
    assert metric(figures, "foretell_pass_rows_sum") == 2 * windows
    assert metric(figures, "foretell_requests_total", route="/backtest", status="200") == 1


async def test_array_is_a_series(tmp_path: Path) -> None:
    """Without a name, a time or a row missing; beyond the season that the window holds there is no naive forecast."""
    publish_tiny(Store(tmp_path), roles=ROLES, horizon=2, metrics=metrics_of(*TARGETS, season=9))
    values = walk(30, 4)
    async with serving(tmp_path) as client:
        head, *_, last = await posted(client, "steps=1", npy_of(values.astype(np.float64)))
    every = scored([values], 1, 1, 5)
    assert (head["windows"], head["skipped"]) == (22, 0)
    check_scores(last["result"]["model"], every["model"], every["truth"], mase=True)
    assert last["result"]["baselines"] == {}
    assert "series" not in last["result"]


async def test_same_as_the_service_forecasts(tmp_path: Path) -> None:
    """A series of a single window has the error of what `/forecast` answers to that window, clock and gaps included."""
    surroundings = Surroundings(gaps=Gaps(method="carry_forward", limit=2), calendar=Calendar(features=("hour",)))
    publish_tiny(Store(tmp_path), roles=ROLES, horizon=2, surroundings=surroundings)
    values = walk(11, 4)
    body = table({"a": values}, {("a", 3)})
    async with serving(tmp_path) as client:
        _, last = await posted(client, "steps=3", body, CSV)
        future = values[8:, 2:3].tolist()
        window = [None if row == 3 else value for row, value in enumerate(values[:8].tolist())]
        asked = {"window": [row or [None] * 4 for row in window], "future": future, "start": START.isoformat()}
        response = await client.post("/forecast?steps=3", json=asked)
    assert response.status_code == 200, response.text
    error = np.array(response.json()["forecast"]) - values[8:, [0, 3]]
    for index, target in enumerate(TARGETS):
        assert last["result"]["model"][target]["bias"] == pytest.approx(error[:, index], rel=1e-5)


async def test_no_more_series_are_listed_than_a_hundred(tmp_path: Path) -> None:
    """All count in the total."""
    publish_tiny(Store(tmp_path), series="place")
    lines = [f"s{name},{row}.5" for name in range(103) for row in range(9)]
    body = "\n".join(["place,target_0", *lines]).encode()
    async with serving(tmp_path) as client:
        head, *_, last = await posted(client, "steps=1", body, CSV)
    assert (head["series"], head["windows"]) == (103, 103)
    assert [one["series"] for one in last["result"]["series"]] == [f"s{name}" for name in range(100)]
    assert last["result"]["windows"] == 103


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "detail"),
    [
        (
            "steps=3",
            npy_of(walk(10)),
            NPY,
            422,
            "body: no window: one takes 8 rows and 3 ahead, the longest series has 10",
        ),
        (
            "steps=1",
            npy_of(np.full((20, 1), np.nan)),
            NPY,
            422,
            "body: no window: in each of the 9 rows that one takes",
        ),
        ("steps=3", npy_of(walk(20, 2)), NPY, 422, "array: 2 columns; the model takes 1: target_0"),
        ("steps=3", npy_of(walk(20)[None]), NPY, 422, "array: 3 dimensions; send [rows, columns]"),
        ("steps=3", b"temp\n1\n", CSV, 422, "csv header: no column 'target_0'"),
        ("steps=3", b"target_0\n1\nx\n", CSV, 422, "csv row 2, column 'target_0': 'x' is not a number"),
        ("steps=3", b"target_0\n", CSV, 422, "csv: no rows under the header"),
        ("steps=3", b"{}", {"content-type": "application/json"}, 415, "'application/json' is not read here"),
        ("steps=3", b"target_0\n1\n", {}, 415, "'' is not read here; send text/csv or application/vnd"),
        ("steps=3", b"nothing", NPY, 400, "not .npy"),
        ("", npy_of(walk(20)), NPY, 422, "query.steps: Field required"),
        ("steps=0", npy_of(walk(20)), NPY, 422, "query.steps: Input should be greater than or equal to 1"),
        ("steps=51", npy_of(walk(20)), NPY, 422, "query.steps: 51 is above the ceiling of 50"),
        ("steps=3&stride=0", npy_of(walk(20)), NPY, 422, "query.stride: Input should be greater than or equal to 1"),
        ("steps=3&strid=1", npy_of(walk(20)), NPY, 422, "did you mean 'stride'?"),
        ("steps=3&attention=none", npy_of(walk(20)), NPY, 422, "unknown option 'attention'"),
        ("steps=3&level=80", npy_of(walk(20)), NPY, 422, "query.level: the model has no intervals"),
        ("steps=3&model=other", npy_of(walk(20)), NPY, 404, "there is no model 'other'"),
    ],
)
async def test_refusals_come_before_the_first_line(
    client: httpx.AsyncClient, query: str, body: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    """As ordinary problems that name the place."""
    response = await client.post(f"/backtest?{query}", content=body, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert detail in response.json()["detail"]


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service with one model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    async with serving(root, max_steps=50) as client:
        yield client


async def test_model_with_a_clock_needs_times(tmp_path: Path) -> None:
    """Neither an array nor a table without a column of times can tell when it was."""
    publish_tiny(Store(tmp_path), clock=True)
    async with serving(tmp_path) as client:
        for body, headers in ((npy_of(walk(20)), NPY), (b"target_0\n1\n", CSV)):
            response = await client.post("/backtest?steps=1", content=body, headers=headers)
            assert response.status_code == 422
            assert "which the model needs since it has a clock" in response.json()["detail"]


async def test_engine_that_dies_ends_the_lines_with_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer has begun, so its last line says why there are no more; the next backtest is refused as ever."""
    publish_tiny(Store(tmp_path))
    submit, count = Engine.submit, itertools.count()

    def dying(self: Engine, order: Order, done: Done) -> Callable[[], None]:
        if next(count) > 2:
            raise EngineDiedError("the engine has stopped; it takes no more work")
        return submit(self, order, done)

    monkeypatch.setattr(Engine, "submit", dying)
    async with serving(tmp_path, backtest_rows=40) as client:
        head, *rest, last = await posted(client, "steps=1", npy_of(walk(300)))
    assert head["windows"] == 292
    assert all("done" in line for line in rest)
    assert last["error"].keys() == {"type", "title", "status", "detail", "request_id"}
    assert last["error"]["type"] == "urn:foretell:problem:engine-died"
    assert last["error"]["request_id"]


async def test_unexpected_error_is_opaque(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it and the client a line that says so."""
    publish_tiny(Store(tmp_path))

    def broken(_self: Engine, _order: Order, _done: Done) -> Callable[[], None]:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(Engine, "submit", broken)
    async with serving(tmp_path) as client:
        _, last = await posted(client, "steps=1", npy_of(walk(300)))
    assert (last["error"]["status"], last["error"]["detail"]) == (500, "an unexpected error; the log has it")
    assert "/secret/place" in caplog.text


# Who leaves, and who must


class Caller:
    """A client of an application that reads and leaves when the test says so."""

    def __init__(self, target: str, body: bytes, state: Mapping[str, Any] | None = None) -> None:
        path, _, query = target.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"content-type", b"application/x-npy")],
            "client": ("test", 1),
            "server": ("test", 80),
            "state": dict(state or {}),
        }
        self.leaves = asyncio.Event()
        self.lines: list[Any] = []
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.lines += [orjson.loads(line) for line in message["body"].splitlines()]


@asynccontextmanager
async def long_backtest(root: Path) -> AsyncIterator[tuple[Link, Caller, asyncio.Task[None]]]:
    """One that would take minutes, on its way, with 40 windows at a time."""
    publish_tiny(Store(root), **BOUNDED)
    app = application(root, max_steps=10_000, backtest_rows=40)
    async with app.api.router.lifespan_context(app.api) as state:
        parts: Parts = state["parts"]  # type: ignore[index]  # the lifespan's state is a mapping
        caller = Caller("/backtest?steps=9000", npy_of(walk(12_000)), state)
        await until(lambda: _holds(lambda: parts.catalogue.ready))
        task = asyncio.create_task(app(caller.scope, caller.receive, caller.send))
        try:
            (link,) = parts.engine._links.values()
            await until(lambda: _holds(lambda: link.bulk_rows == 40))
            yield link, caller, task
        finally:
            caller.leaves.set()
            await asyncio.gather(task, return_exceptions=True)


async def _holds(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_hang_up_stops_the_work(tmp_path: Path) -> None:
    """A client that leaves costs no further pass, however many windows are left."""
    async with long_backtest(tmp_path) as (link, caller, task):
        caller.leaves.set()
        with anyio.fail_after(PATIENCE_S):
            await task
        assert link.bulk_rows == 0
        assert [line["windows"] for line in caller.lines[:1]] == [2993]


async def test_shutdown_ends_the_lines_with_a_problem(tmp_path: Path) -> None:
    """What outlasts the server's drain is called off, with a last line that tells so."""
    async with long_backtest(tmp_path) as (link, caller, task):
        task.cancel()
        with anyio.fail_after(PATIENCE_S):
            await task
        assert link.bulk_rows == 0
        assert caller.lines[-1]["error"]["type"] == "urn:foretell:problem:draining"


# Limits


async def test_body_may_be_larger_than_others(tmp_path: Path) -> None:
    """The limit of this path is its own, and those of the others are as they were."""
    publish_tiny(Store(tmp_path))
    body = npy_of(walk(1000))
    async with serving(tmp_path, max_body_bytes=1000, max_series_bytes=len(body)) as client:
        assert (await client.post("/backtest?steps=1", content=body, headers=NPY)).status_code == 200
        larger = await client.post("/backtest?steps=1", content=body + b" ", headers=NPY)
        other = await client.post("/forecast?steps=1", content=body, headers=NPY)
    assert (larger.status_code, other.status_code) == (413, 413)
    assert larger.json()["detail"] == f"the body may have at most {len(body)} bytes"


def ample_of(*, most: int) -> Ample:
    """Of bodies of at most 100 bytes."""
    return Ample("backtests", 100, most)


class Gate:
    """An application that answers when the test says so."""

    def __init__(self) -> None:
        self.inside = 0
        self.opens = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        await self.opens.wait()


async def test_few_at_a_time() -> None:
    """One too many is refused with a time to come back, whatever it sends; when one has ended there is room again."""
    gate = Gate()
    intake = Intake(gate, max_body_bytes=10, ample={"/backtest": ample_of(most=2)})
    callers = [Caller("/backtest?steps=1", b"x" * 50) for _ in range(2)]
    tasks = [asyncio.create_task(intake(one.scope, one.receive, one.send)) for one in callers]
    await settle()
    assert gate.inside == 2
    for body in (b"", b"x" * 50, b"x" * 500):
        late = Caller("/backtest?steps=1", body)
        with pytest.raises(QueueFullError, match="2 backtests are under way, of at most 2") as refusal:
            await intake(late.scope, late.receive, late.send)
        assert int(refusal.value.headers["Retry-After"]) > 0
    gate.opens.set()
    await asyncio.gather(*tasks)
    await intake(late.scope | {"state": {}}, Caller("/backtest", b"x").receive, late.send)
    assert gate.inside == 3


@pytest.mark.parametrize("piece", [b"", b"x"])
async def test_body_that_does_not_come_makes_room(piece: bytes) -> None:
    """Who announces a backtest and then stops sending, or drips, is told so, and the next one gets the place."""
    ample = ample_of(most=1)
    gate = Gate()
    intake = Intake(gate, max_body_bytes=10, ample={"/backtest": ample})
    caller = Caller("/backtest", b"x")

    async def late() -> Message:
        assert ample.taken == 1
        return {"type": "http.request", "body": piece, "more_body": True}

    with pytest.raises(SlowRequestError, match="the body did not arrive"):
        await intake({**caller.scope, "state": {"late": True}}, late, caller.send)
    assert (ample.taken, gate.inside) == (0, 0)


async def test_body_is_not_kept() -> None:
    """Once the route has taken it, nobody else has it in memory for as long as the answer takes."""
    taken: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(scope["state"].pop("body"))
        assert (await receive())["body"] == b""

    caller = Caller("/backtest", b"x" * 50)
    await Intake(app, max_body_bytes=100)(caller.scope, caller.receive, caller.send)
    assert taken == [b"x" * 50]
