"""Both clients and a real service that wants keys; and servers that do not answer as one should."""

import inspect
import io
import json
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pytest

from app.errors import ForetellError as ServiceError
from foretell import (
    AsyncClient,
    Backtest,
    Client,
    ConflictError,
    DataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ProblemError,
    Progress,
    QuotaError,
    Summary,
    TimedOutError,
    UnauthorizedError,
    UnknownModelError,
    UnreachableError,
)
from foretell.errors import class_of
from models.store import Store
from tests.app.serving import serving, wait_until
from tests.builders import publish_tiny
from tests.client.services import ADMIN, CSV, LONG, START, STEPS, URL, WINDOW, Service, raw, real
from tests.client.services import HEAD as SAID

HOUR = timedelta(hours=1)
NEXT = datetime(2026, 1, 1, 8, tzinfo=UTC)
"""The first row after the window."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all of these."""
    with real(tmp_path_factory.mktemp("c")) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """One that may forecast and read."""
    with Client(service.url, service.key) as client:
        yield client


@pytest.fixture
def admin(service: Service) -> Iterator[Client]:
    """One that may do everything, and leaves no alias behind."""
    with Client(service.url, service.admin) as client:
        yield client
        with suppress(NotFoundError):
            client.drop_alias("load", "production")


# Forecasts


def test_every_kind_of_data_says_the_same(client: Client, tmp_path: Path) -> None:
    """Rows, an array, tables and files get the same forecast; where there are times, with the times of its steps."""
    (tmp_path / "week.csv").write_text(CSV)
    pandas = pd.read_csv(io.StringIO(CSV), parse_dates=["time"])
    polars = pl.read_csv(io.StringIO(CSV), try_parse_dates=True)
    timed: list[Any] = [CSV.encode(), tmp_path / "week.csv", pandas, pandas.set_index("time"), polars]
    told = [client.forecast(data, 3) for data in timed]
    told.append(client.forecast(WINDOW, 3, start=START))
    bare = [client.forecast(WINDOW, 3), client.forecast(np.array(WINDOW), 3)]

    (expected,) = {tuple(one.values.ravel().tolist()) for one in (*told, *bare)}
    assert len(set(expected)) == 3
    assert all(one.timestamps == [NEXT, NEXT + HOUR, NEXT + 2 * HOUR] for one in told)
    assert [one.timestamps for one in bare] == [None, None]


def test_what_a_forecast_says(client: Client) -> None:
    """Who answered, the intervals by level, the attention (none here), the id and the cache."""
    one = client.forecast(WINDOW, 2, model="load", version="latest", level="80,90")
    same = client.forecast(WINDOW, 2, version=2, level=[80, 90])
    listed = next(version for version in client.models()[0].versions if version.version == 2)

    assert (one.model, one.version, one.digest, one.targets) == ("load", 2, listed.digest, ["target_0"])
    assert one.values.shape == one.intervals["80"].lower.shape == (2, 1)
    assert (one.intervals["80"].upper < one.intervals["90"].upper).all()
    assert one.intervals["90"].upper - one.values == pytest.approx(90, rel=1e-4)
    assert one.attention is None
    assert (one.single, len(one)) == (True, 1)
    assert same.cache == "hit"
    assert one.request_id != same.request_id


def test_several_windows(client: Client) -> None:
    """One dimension more, and each by itself; as tables all of them."""
    other = [[value + 1 for value in row] for row in WINDOW]
    told = client.forecast([WINDOW, other], 2, level=80, start=[START, START])
    alone = client.forecast(other, 2, level=80, start=START)

    assert told.values.shape == (2, 2, 1)
    assert (told.single, len(told)) == (False, 2)
    assert told[1].values == pytest.approx(alone.values, rel=1e-5)
    assert told[-1].timestamps == alone.timestamps
    assert [one.intervals["80"].lower.shape for one in told] == [(2, 1)] * 2
    with pytest.raises(IndexError):
        told[2]
    frame = told.to_pandas()
    assert list(frame.columns) == ["window", "step", "target_0", "target_0_lower_80", "target_0_upper_80"]
    assert frame["window"].tolist() == [0, 0, 1, 1]


def test_tables_come_back(client: Client) -> None:
    """A row a step, by the names that the service's CSV has, in whichever zone."""
    told = client.forecast(CSV.encode(), 2, level=80)
    pandas, polars = told.to_pandas("America/New_York"), told.to_polars("America/New_York")

    assert pandas.index.tolist() == polars["time"].to_list() == [NEXT, NEXT + HOUR]
    assert str(pandas.index.tz) == polars.schema["time"].time_zone == "America/New_York"
    assert pandas["target_0"].tolist() == polars["target_0"].to_list() == told.values[:, 0].tolist()
    assert polars.columns == ["time", "step", "target_0", "target_0_lower_80", "target_0_upper_80"]
    assert client.forecast(WINDOW, 2).to_pandas().columns.tolist() == ["step", "target_0"]


def test_a_prediction(client: Client) -> None:
    """The first step of a forecast."""
    told, ahead = client.predict(WINDOW, start=START, level=80), client.forecast(WINDOW, 3, start=START, level=80)
    assert told.values == pytest.approx(ahead.values[0])
    assert told.intervals["80"].lower == pytest.approx(ahead.intervals["80"].lower[0])
    assert told.timestamp == ahead.timestamps[0]
    assert told.to_pandas().index.tolist() == [NEXT]
    several = client.predict([WINDOW, WINDOW])
    assert (several.values.shape, several.timestamp) == ((2, 1), None)


# Line by line


def test_steps_as_they_come(client: Client) -> None:
    """What the forecast says, a step at a time, with who says it and that it was all."""
    whole = client.forecast(WINDOW, 3, start=START, level="80,90")
    with client.stream(WINDOW, 3, start=START, level=[80, 90]) as steps:
        assert (steps.head.model, steps.head.version, steps.head.digest) == ("load", 2, whole.digest)
        assert (steps.head.targets, steps.head.steps, steps.head.cache) == (["target_0"], 3, "hit")
        assert steps.summary is None
        told = list(steps)

    assert steps.summary is not None
    assert [step.step for step in told] == [1, 2, 3]
    assert [step.values.tolist() for step in told] == whole.values.tolist()
    assert [step.timestamp for step in told] == whole.timestamps
    assert [step.intervals["80"].lower.tolist() for step in told] == whole.intervals["80"].lower.tolist()
    assert [step.attention for step in told] == [None] * 3


def test_steps_of_several_windows(client: Client) -> None:
    """One dimension more; as rows, one for each window."""
    other = [[value + 1 for value in row] for row in WINDOW]
    steps = client.stream([WINDOW, other], 2, level=80, start=[START, START])
    told = list(steps)
    whole = client.forecast([WINDOW, other], 2, level=80, start=[START, START])

    assert [step.values.shape for step in told] == [(2, 1), (2, 1)]
    columns = whole.columns()
    rows = [row for step in told for row in step.rows(steps.head)]
    by_window = sorted(rows, key=lambda row: row["window"])
    assert {name: [row[name] for row in by_window] for name in columns} == columns


def test_whoever_stops_listening_ends_the_work(service: Service, client: Client) -> None:
    """Before it is done: nothing is left to compute."""
    with client.stream([[row[0] + 0.25, row[1]] for row in WINDOW], LONG) as steps:
        assert next(steps).step == 1
        assert service.metric("foretell_waiting_rows") == 1
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)
    assert steps.summary is None
    assert list(steps) == []


def _long_batch() -> tuple[list[list[list[float]]], int]:
    """Whose answer does not fit into what is on its way unread."""
    return [[[row[0] + index, row[1]] for row in WINDOW] for index in range(2000)], 1000


def _hung_up(service: Service) -> float:
    return service.metric("foretell_requests_total", route="/batch", status="499")


def test_whoever_stops_listening_ends_a_batch(service: Service, client: Client) -> None:
    """The service sees that nobody listens, before it is done."""
    before = _hung_up(service)
    with client.batch(*_long_batch()) as results:
        assert next(results).window == 0
    wait_until(lambda: _hung_up(service) == before + 1)
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)


@pytest.mark.anyio
async def test_the_other_client_stops_listening(service: Service) -> None:
    """With the same end."""
    async with AsyncClient(service.url, service.key) as client:
        async with client.stream([[row[0] + 0.5, row[1]] for row in WINDOW], LONG) as steps:
            assert (await anext(steps)).step == 1
            assert steps.head.steps == LONG
        before = _hung_up(service)
        async with client.batch(*_long_batch()) as results:
            assert (await anext(results)).window == 0
    wait_until(lambda: _hung_up(service) == before + 1)
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)


@pytest.mark.parametrize("kind", ["rows", "mappings", "array", "lines", "npy"])
def test_a_batch(client: Client, kind: str, tmp_path: Path) -> None:
    """Of each window what a forecast of it says, in their order; at last how many there were."""
    windows = [[[value + index for value in row] for row in WINDOW] for index in range(40)]
    data: Any = windows
    if kind == "mappings":
        data = [{"window": window} for window in windows]
    elif kind == "array":
        data = np.array(windows)
    elif kind == "lines":
        data = tmp_path / "many"
        data.write_text("".join(json.dumps({"window": window}) + "\n" for window in windows))
    elif kind == "npy":
        data = tmp_path / "many"
        with data.open("wb") as file:
            np.save(file, np.array(windows))
    whole = client.forecast(windows[:16], 2, level=80)

    with client.batch(data, 2, level=80) as results:
        assert (results.head.model, results.head.windows, results.head.steps) == ("load", 40, 2)
        told = list(results)

    assert [result.window for result in told] == list(range(40))
    assert results.summary == Summary(40, 0)
    for result, one in zip(told, whole, strict=False):
        assert result.forecast is not None
        assert (result.series, result.error, result.forecast.timestamps) == (None, None, None)
        np.testing.assert_allclose(result.forecast.values, one.values, rtol=1e-5)
        np.testing.assert_allclose(result.forecast.intervals["80"].upper, one.intervals["80"].upper, rtol=1e-5)


def test_a_window_that_is_wrong_costs_no_other(client: Client) -> None:
    """It has an error in place of its forecast, of the kind that a request would raise."""
    results = client.batch([WINDOW, WINDOW[:3], WINDOW], 2, start=[START] * 3)
    one, wrong, other = results
    assert isinstance(wrong.error, InvalidError)
    assert (wrong.window, wrong.forecast, wrong.error.places[0].place) == (1, None, "line 2: window")
    assert all(right.forecast and right.forecast.timestamps == [NEXT, NEXT + HOUR] for right in (one, other))
    assert results.summary == Summary(3, 1)


def test_a_batch_is_refused_at_once(client: Client, tmp_path: Path) -> None:
    """With the problem that any request would have; a file that is not there is told before."""
    with pytest.raises(InvalidError, match="steps"):
        list(client.batch([WINDOW], 10**6))
    with pytest.raises(DataError, match="nix: No such file"):
        client.batch(tmp_path / "nix", 1)


def test_a_large_file_is_sent_as_it_is_read(client: Client, tmp_path: Path) -> None:
    """The client never has more of it than a part."""
    line = json.dumps({"window": WINDOW}).encode().ljust(2**20) + b"\n"
    with (tmp_path / "large").open("wb") as file:
        for _ in range(24):
            file.write(line)
    tracemalloc.start()
    try:
        results = client.batch(tmp_path / "large", 1)
        count = sum(1 for _ in results)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 24
    assert most < 4 * 2**20


@pytest.mark.anyio
async def test_a_batch_of_a_table(tmp_path: Path) -> None:
    """Of each series its last window, by its name, with its times and its attention."""
    publish_tiny(
        Store(tmp_path),
        architecture="attention_lstm",
        config={"hidden": 4, "layers": 1, "attention_size": 4},
        series="shop",
    )
    times = pd.date_range("2026-01-01", periods=8, freq="h", tz="UTC")
    frames = [pd.DataFrame({"time": times, "shop": f"shop {one}", "target_0": range(one, one + 8)}) for one in range(3)]
    async with serving(tmp_path) as inside, AsyncClient(URL, transport=inside._transport) as client:
        frame = pd.concat(frames)
        whole = await client.forecast(frame, 2, attention="all")
        results = client.batch(frame, 2, attention="all")
        told = [result async for result in results]
        steps = client.stream(frame, 2)
        streamed = [step async for step in steps]

    assert [result.series for result in told] == whole.series == steps.head.series == ["shop 0", "shop 1", "shop 2"]
    assert whole.attention is not None
    for index, result in enumerate(told):
        assert result.forecast is not None
        assert result.forecast.attention is not None
        assert result.forecast.timestamps == [NEXT, NEXT + HOUR]
        assert result.forecast.attention.steps_per_row == whole.attention.steps_per_row
        np.testing.assert_allclose(result.forecast.attention.weights, whole.attention.weights[index], atol=1e-5)
    assert streamed[0].attention == pytest.approx(whole.attention.weights[:, 0])
    assert [row["series"] for row in streamed[1].rows(steps.head)] == whole.series
    assert streamed[1].timestamp == [NEXT + HOUR] * 3


# What came true


def test_anomalies(client: Client) -> None:
    """By hand as in the service's own tests: the errors of calibration are -99 to 99."""
    expected = client.forecast(WINDOW, 2).values
    actual = [[expected[0, 0] + 200], [None]]
    told = client.anomalies(WINDOW, actual, level=90)
    # A table's columns are found by name, in whatever order they are.
    columns = pd.read_csv(io.StringIO(CSV))[["past_1", "time", "target_0"]]
    longer = pd.concat([columns.iloc[:1].assign(time="2025-12-31T23:00:00Z"), columns])
    by_name = client.anomalies(longer, pd.DataFrame({"x": [0, 0], "target_0": [actual[0][0], None]}), level=90)

    assert told.anomalous == by_name.anomalous == [[True], [None]]
    assert told.p_values[0, 0] == by_name.p_values[0, 0] == 2 / 200
    assert np.isnan(told.p_values[1, 0])
    assert told.expected == pytest.approx(expected)
    assert (told.timestamps, by_name.timestamps) == (None, [NEXT, NEXT + HOUR])


def test_actuals_count_once(client: Client) -> None:
    """Also when they are told as an array."""
    window = (np.array(WINDOW) + 3).tolist()
    expected = client.forecast(window, 2).values
    told = client.actuals(np.array(window), expected + 10, model="load", version="latest")
    again = client.actuals(window, (expected + 10).tolist(), model="load", version=2)

    assert told.errors == pytest.approx(-10, abs=1e-4)
    assert told.covered == {"80": [[True], [True]], "90": [[True], [True]]}
    assert (told.counted, again.counted) == (2, 0)
    assert told.learnt is not None


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (CSV.replace("past_1", "x"), "no column 'past_1'"),
        (CSV.replace("T03", "T02"), "not evenly apart"),
        (CSV.replace("15.0", "fifteen"), "row 1 .*'fifteen' is no number"),
        (CSV.splitlines()[0], "without rows"),
    ],
)
def test_a_table_that_lacks_something(client: Client, table: str, says: str) -> None:
    """It is said before anything is sent: a shifted window would be answered, and wrongly."""
    with pytest.raises(DataError, match=says):
        client.anomalies(table.encode(), [[1.0]])


# Backtests


def _series(rows: int) -> bytes:
    first = datetime(2026, 1, 1, tzinfo=UTC)
    lines = (f"{(first + row * HOUR).isoformat()},{10 + row % 5},{15 + row % 3}\n" for row in range(rows))
    return ("time,target_0,past_1\n" + "".join(lines)).encode()


def test_a_backtest(client: Client) -> None:
    """Progress, then the result: errors as of the forecasts that the windows get."""
    (done,) = client.backtest(_series(60), 2, stride=5, level=80)

    assert isinstance(done, Backtest)
    assert done.windows == 11
    rows = np.array([[10 + row % 5, 15 + row % 3] for row in range(60)], float)
    starts = range(0, 51, 5)
    errors = [
        client.forecast(rows[at : at + 8], 2, attention="none").values[:, 0] - rows[at + 8 : at + 10, 0]
        for at in starts
    ]
    assert done.scores["target_0"]["mae"] == pytest.approx(np.abs(errors).mean(0), rel=1e-4)
    assert done.intervals["80"]["target_0"]["coverage"].tolist() == [1.0, 1.0]
    assert (done.model, done.steps, done.stride, done.skipped) == ("load", 2, 5, 0)


def test_a_backtest_tells_how_far_it_is(client: Client) -> None:
    """Some lines, the last of them the result; whoever stops listening has the connection closed."""
    *progress, done = client.backtest(_series(600), 1)
    assert progress
    assert all(isinstance(one, Progress) and one.windows == 592 for one in progress)
    assert isinstance(done, Backtest)
    stopped = client.backtest(_series(600), 1)
    assert isinstance(next(stopped), Progress)
    stopped.close()
    assert client.ready()


def test_a_backtest_is_refused_at_once(client: Client) -> None:
    """With the problem that any request would have; what cannot be one is not sent."""
    with pytest.raises(InvalidError, match="steps"):
        list(client.backtest(_series(60), 10**6))
    with pytest.raises(DataError, match="a table or an array"):
        client.backtest(WINDOW, 1)


# Administration


def test_a_version_is_promoted_and_taken_back(admin: Client) -> None:
    """With a split and a shadow; each step is in the audit log."""
    assert admin.promote("load", 1) == admin.alias("load")
    tried = admin.promote("load", 1, split={2: 25})
    shadowed = admin.promote("load", 2, shadow=1)
    back = admin.rollback("load")

    assert (tried.version, tried.split, tried.shadow) == (1, {2: 25.0}, None)
    assert (shadowed.version, shadowed.split, shadowed.shadow) == (2, {}, 1)
    assert (back.version, back.serves, back.shadow) == (2, 2, None)
    assert admin.model("load").version == 2
    assert admin.models()[0].aliases == {"production": 2}
    changes = admin.audit(2)
    assert [change.by for change in changes] == ["admin", "admin"]
    assert changes[0].time >= changes[1].time
    assert admin.model("load", 1).state == "ready"
    with pytest.raises(ConflictError):
        admin.unload("load", "production")


def test_a_version_is_unloaded_and_loaded(admin: Client) -> None:
    """Its state says so."""
    admin.promote("load", 2)
    assert admin.unload("load", 1).state == "unloaded"
    assert admin.model("load", 1).state == "unloaded"
    assert admin.load("load", 1).state == "ready"


def test_who_may_not(service: Service, client: Client) -> None:
    """No key, and one that is for other things."""
    with Client(service.url) as nobody, pytest.raises(UnauthorizedError):
        nobody.models()
    with pytest.raises(ForbiddenError):
        client.audit()


def test_a_quota_is_not_waited_for(service: Service) -> None:
    """The service asks for longer than the client would wait."""
    slept = list[float]()
    with Client(service.url, service.spent, timeout=30, sleep=slept.append) as client:
        client.models()
        with pytest.raises(QuotaError) as raised:
            client.models()
    assert (raised.value.retry_after_s or 0) > 30
    assert slept == []


def test_what_is_not_there(client: Client) -> None:
    """The exception says which kind of thing."""
    with pytest.raises(UnknownModelError):
        client.forecast(WINDOW, 1, model="nix")
    with pytest.raises(InvalidError) as raised:
        client.forecast([[1, 2], [3, "x"]], 1)
    assert raised.value.places[0].place == "window[1][1]"


def test_ready(service: Service) -> None:
    """It takes no key; and of one who is not there nobody can say."""
    with Client(service.url) as client:
        assert client.ready()
    with Client("http://127.0.0.1:1", retries=0) as client, pytest.raises(UnreachableError):
        client.ready()


# Both clients


def test_both_have_the_same_methods() -> None:
    """Under the same names, with the same options, and with words that `help` shows."""
    for name, method in vars(Client).items():
        if name.startswith("_"):
            continue
        other = vars(AsyncClient)[name]
        ours, theirs = inspect.signature(method), inspect.signature(other)
        assert ours.parameters == theirs.parameters
        assert method.__doc__
        assert method.__name__ == other.__name__ == name


@pytest.mark.parametrize(
    ("name", "path"),
    [(one, one) for one in ("forecast", "predict", "anomalies", "backtest", "batch")] + [("stream", "forecast")],
)
def test_every_option_of_the_service_is_there(service: Service, name: str, path: str) -> None:
    """As its OpenAPI document has them: one that is new there is to be new here, where there is something to choose."""
    said = httpx.get(f"{service.url}/openapi.json").json()["paths"][f"/{path}"]["post"]["parameters"]
    options = {one["name"] for one in said if one["in"] == "query" and "const" not in one["schema"]}
    assert "steps" in options or name in ("predict", "anomalies")
    assert options <= set(inspect.signature(getattr(Client, name)).parameters)


def test_every_refusal_of_the_service_has_its_exception() -> None:
    """By slug and status, as the service's own tree of errors has them."""
    kinds = [ServiceError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    unknown = {kind.slug for kind in kinds if class_of(kind.status, kind.slug) is ProblemError}
    # What only a wrong program asks: other methods, other types.
    assert unknown == {"method-not-allowed", "unsupported-media-type"}


@pytest.mark.anyio
async def test_the_other_client(service: Service) -> None:
    """The same answers, for whoever awaits them."""
    async with AsyncClient(service.url, service.key) as client:
        told = await client.forecast(WINDOW, 2, start=START)
        spec = (await client.model("load")).spec
        assert spec is not None
        lines = [line async for line in client.backtest(_series(60), 2, stride=5)]
        anomalies = await client.anomalies(CSV.encode(), [[1000.0]])
        assert await client.ready()
    with Client(service.url, service.key) as same:
        assert (same.forecast(WINDOW, 2, start=START).values == told.values).all()
    assert isinstance(lines[-1], Backtest)
    assert anomalies.anomalous == [[True]]


@pytest.mark.anyio
async def test_the_other_client_line_by_line(service: Service, tmp_path: Path) -> None:
    """Steps, and a batch from a file."""
    (tmp_path / "week.csv").write_text(CSV)
    async with AsyncClient(service.url, service.key) as client:
        steps = client.stream(tmp_path / "week.csv", 3)
        with pytest.raises(RuntimeError, match="nothing has come"):
            _ = steps.head
        told = [step async for step in steps]
        results = client.batch(tmp_path / "week.csv", 3)
        (result,) = [result async for result in results]
    assert result.forecast is not None
    assert [step.timestamp for step in told] == result.forecast.timestamps
    assert np.array([step.values for step in told]) == pytest.approx(result.forecast.values, rel=1e-5)
    assert (steps.head.steps, results.head.windows, results.summary) == (3, 1, Summary(1, 0))


@pytest.mark.anyio
async def test_it_comes_again_when_told(tmp_path: Path) -> None:
    """A model whose only version is unloaded is a 503 with Retry-After: once it is loaded, it is answered."""
    publish_tiny(Store(tmp_path))
    window = [[10.0]] * 8
    async with serving(tmp_path, admin_key=ADMIN) as inside:
        transport = inside._transport
        slept = list[float]()

        async def mended(seconds: float) -> None:
            slept.append(seconds)
            async with AsyncClient(URL, ADMIN, transport=transport) as admin:
                await admin.load("tiny", 1)

        async with AsyncClient(URL, ADMIN, transport=transport, sleep=mended) as client:
            await client.unload("tiny", 1)
            told = await client.forecast(window, 2)

    assert told.values.shape == (2, 1)
    assert len(slept) == 1
    assert slept[0] >= 1


# Servers that do not answer as one should


def test_one_that_drips_a_line() -> None:
    """What was whole comes; half a line now and then is silence."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"

    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head + json.dumps(SAID).encode() + b"\n" + json.dumps(STEPS[0]).encode() + b"\n")
        connection.settimeout(0.05)
        with suppress(OSError):
            while connection.send(b" "):
                with suppress(TimeoutError):
                    if not connection.recv(65536):
                        return

    with raw(drip) as url, Client(url, timeout=0.3) as client, client.stream(WINDOW, 2) as steps:
        assert next(steps).step == 1
        with pytest.raises(TimedOutError):
            next(steps)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


def test_one_that_hangs() -> None:
    """Its silence ends with the time."""
    told = pytest.raises(TimedOutError, match=r"no answer within 0\.\d+ s")
    with raw(lambda connection: None) as url, Client(url, timeout=0.2) as client, told:
        client.models()


def test_one_that_drips() -> None:
    """A byte now and then is no answer either."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        with suppress(OSError):
            while connection.send(b" "):
                # Until the client has hung up, or sent something else than its request.
                connection.settimeout(0.05)
                with suppress(TimeoutError):
                    if not connection.recv(65536):
                        return

    with raw(drip) as url, Client(url, timeout=0.3) as client, pytest.raises(TimedOutError):
        client.models()


def test_one_that_breaks_off() -> None:
    """Half an answer is none: it is asked for again, and then that is told."""
    connections = []

    def half(connection: socket.socket) -> None:
        connections.append(connection)
        connection.recv(65536)
        connection.sendall(HEAD + b'{"models": [')
        connection.shutdown(socket.SHUT_WR)

    told = pytest.raises(UnreachableError, match="without sending complete message")
    with raw(half) as url, Client(url, retries=1, sleep=lambda seconds: None) as client, told:
        client.models()
    assert len(connections) == 2
