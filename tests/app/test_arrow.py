"""Arrow's tables mean what the same CSV means, are refused where that is, and come back as answers."""

import decimal
import gc
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pytest

from app import codec
from app.asked.layout import lay_out
from app.asked.query import Query
from app.asked.sheet import Sheet, query_of
from app.codec import batch_bodies
from app.codec.series import series_of
from app.errors import BodyTooLargeError, ForetellError, InvalidError, MalformedError
from models.spec import Gaps, Spec
from models.store import Store
from tests.app import calibrated
from tests.app.arrows import FILE, STREAM, arrow, stream, table_in
from tests.app.serving import ROOT, serving
from tests.app.specs import spec_of
from tests.builders import publish_tiny

NAN = float("nan")
PLAIN = spec_of(("target", "past"))
FILLS: dict[str, Any] = {"gaps": Gaps(method="carry_forward", limit=3), "shortest": 1}
RICH = spec_of(("target", "future", "past", "static"), series="name", timezone="Europe/Vienna", **FILLS)
START = datetime(2026, 3, 28, 22, tzinfo=UTC)
HOURS = [START + hour * timedelta(hours=1) for hour in range(6)]
LEAP = [datetime(2026, 10, 25, hour) for hour in (1, 2, 2, 3)]  # noqa: DTZ001  the wall clock shows two twice


def sheet_of(content: bytes, content_type: str = STREAM, **limits: int) -> Sheet:
    found = codec.read(content, content_type, **limits)
    assert isinstance(found, Sheet)
    return found


def read(content: bytes, spec: Spec = PLAIN, steps: int = 1, content_type: str = STREAM, **limits: int) -> Query:
    return query_of(sheet_of(content, content_type, **limits), spec, steps, most=3)


def csv_of(batch: pa.RecordBatch) -> bytes:
    """The same as text, as Arrow writes that."""
    content = io.BytesIO()
    pyarrow.csv.write_csv(batch, content, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return content.getvalue()


def laid_out(query: Query, spec: Spec, steps: int) -> list[bytes]:
    """What goes to the model, to the last bit."""
    return [array.tobytes() for array in lay_out(query, spec, steps, most=3) if array is not None]


def refusal(content: bytes, spec: Spec = PLAIN, **options: int) -> str:
    """What is said of a body."""
    with pytest.raises(ForetellError) as refused:
        lay_out(read(content, spec, **options), spec, 1, most=3)
    return f"{refused.value.status} {refused.value.detail}"


def numbers(**columns: object) -> list[list[float]]:
    """The window of a table of these columns."""
    (window,) = read(stream(arrow(**columns))).windows
    return window.tolist()


# What it means


def rich(rows: int = 6) -> pa.RecordBatch:
    """Two series whose rows are mixed, with a row left out, gaps, and two rows of known future."""
    both = [(name, hour) for hour in range(rows) if hour != 1 for name in ("b", "a")]
    random = np.random.default_rng(7)
    ahead = [hour >= rows - 2 for _, hour in both]
    gap = [hour == 2 and name == "a" for name, hour in both]
    values = random.normal(1e3, 1e2, (3, len(both)))
    return arrow(
        note=[{"any": 1}] * len(both),
        past_2=pa.array(values[0], mask=np.array(ahead)),
        target_0=pa.array(values[1].astype(np.float32), mask=np.array(ahead) | gap),
        static_3=pa.array([17 if name == "a" else 4 for name, _ in both], pa.uint8()),
        future_1=pa.array(values[2]),
        name=pa.array([name for name, _ in both]).dictionary_encode(),
        time=pa.array([HOURS[hour] for _, hour in both], pa.timestamp("ms", "America/New_York")),
    )


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("pieces", [1, 3, 10])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_it_means_what_csv_means(as_file: bool, pieces: int, compression: str | None) -> None:
    """To the last bit: columns by name, series apart, gaps, times, known future, in any number of batches."""
    batch = rich()
    batches = [batch.slice(start, -(-10 // pieces)) for start in range(0, 10, -(-10 // pieces))]
    content = stream(*batches, as_file=as_file, compression=compression)
    text = csv_of(batch.drop_columns(["note"]))

    found = read(content, RICH, 2, FILE if as_file else STREAM)
    expected = read(text, RICH, 2, "text/csv")
    assert laid_out(found, RICH, 2) == laid_out(expected, RICH, 2)
    assert found.series == ["b", "a"]
    assert found.single is False
    long = series_of(content, STREAM, RICH)
    assert [(one.name, one.values.tobytes(), one.start) for one in long] == [
        (one.name, one.values.tobytes(), one.start) for one in series_of(text, "text/csv", RICH)
    ]
    limit = {"most_bytes": 10_000}
    many = [
        batch_bodies.queries(body, kind, RICH, 2, **limit) for body, kind in ((content, STREAM), (text, "text/csv"))
    ]
    assert laid_out(many[0][0], RICH, 2) == laid_out(many[1][0], RICH, 2)


def test_as_polars_writes_it() -> None:
    """Views of strings, and categories."""
    frame = pl.DataFrame({"name": ["x", "y"] * 4, "target_0": range(8), "past_1": [0.5] * 8, "time": HOURS[:4] * 2})
    spec = spec_of(("target", "past"), series="name")
    frame = frame.sort("name", maintain_order=True).with_columns(time=pl.Series(HOURS[:4] * 2))
    for made in (frame, frame.with_columns(pl.col("name").cast(pl.Categorical))):
        for write, kind in ((made.write_ipc_stream, STREAM), (made.write_ipc, FILE)):
            content = io.BytesIO()
            write(content, compression="zstd")
            query = read(content.getvalue(), spec, content_type=kind)
            assert query.series == ["x", "y"]
            assert [window[:, 0].tolist() for window in query.windows] == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64()),
        *(pa.decimal32(6, 2), pa.decimal128(20, 3), pa.decimal256(50, 10)),
        *(pa.dictionary(pa.int8(), pa.int32()), pa.dictionary(pa.uint64(), pa.float32())),
    ],
    ids=str,
)
def test_numbers_of_every_kind(kind: pa.DataType) -> None:
    """With null for what is missing."""
    values = pa.array([decimal.Decimal(3), None, decimal.Decimal(7)], pa.decimal128(9, 0))
    column = values.cast(pa.float64()).cast(kind.value_type if pa.types.is_dictionary(kind) else kind, safe=False)
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column

    np.testing.assert_array_equal(numbers(target_0=column, past_1=[1, 2, NAN]), [[3, 1], [NAN, 2], [7, NAN]])


def test_a_column_of_nothing() -> None:
    """Misses every value."""
    np.testing.assert_array_equal(numbers(target_0=[1, 2], past_1=pa.nulls(2)), [[1, NAN], [2, NAN]])


def test_a_nan_that_signals() -> None:
    """Is one like any other, by both ways to 32 bits."""
    signalling = np.frombuffer(bytes.fromhex("010000000000f07f") + np.float64(2).tobytes())
    content = stream(arrow(target_0=[1.0, 3.0], past_1=pa.array(signalling)))

    np.testing.assert_array_equal(read(content).windows, [[[1, NAN], [3, 2]]])
    np.testing.assert_array_equal(series_of(content, STREAM, PLAIN)[0].values, [[1, NAN], [3, 2]])


def test_decimals_are_rounded_once() -> None:
    """Like the same digits in CSV."""
    digits = ["0.1", "16777217.000000001", "12345678.987654321", "-0.000000007", "1e-9", "99999999.999999999"]
    exact = [decimal.Decimal(one).quantize(decimal.Decimal("1e-9")) for one in digits]
    batch = arrow(target_0=pa.array(exact, pa.decimal128(20, 9)), past_1=[0] * 6)
    spec = spec_of(("target", "past"), window=6)

    assert laid_out(read(stream(batch), spec), spec, 1) == laid_out(
        read(b"target_0,past_1\n" + b"".join(f"{one},0\n".encode() for one in exact), spec, content_type="text/csv"),
        spec,
        1,
    )


@pytest.mark.parametrize(
    "times",
    [
        pa.array(HOURS[:2], pa.timestamp("s", "UTC")),
        pa.array(HOURS[:2], pa.timestamp("ns", "Asia/Tokyo")),
        pa.array(HOURS[:2], pa.timestamp("us", "+09:30")),
        pa.array(HOURS[:2], pa.timestamp("us", "Mars/Base")),
        pa.array([hour.replace(tzinfo=None) for hour in HOURS[:2]], pa.timestamp("ms")),
        pa.array([hour.isoformat() for hour in HOURS[:2]]),
        pa.array([hour.isoformat() for hour in HOURS[:2]], pa.large_string()).dictionary_encode(),
        pa.array([hour.isoformat() for hour in HOURS[:2]], pa.string_view()),
    ],
    ids=lambda times: str(times.type),
)
def test_times_of_every_kind(times: pa.Array) -> None:
    """Of a zone the offset alone counts; without one they are of the model's clock."""
    content = stream(arrow(time=times, target_0=[1, 2], past_1=[1, 2]))
    query = read(content)

    assert query.start is not None
    assert query.start[0].replace(tzinfo=UTC) == START
    assert series_of(content, STREAM, PLAIN)[0].start == START.timestamp() * 1e6


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_days(kind: pa.DataType) -> None:
    """A date is its midnight."""
    spec = spec_of(("target",), frequency=timedelta(days=1))
    content = stream(arrow(time=pa.array([date(2026, 3, 28), date(2026, 3, 29)], kind), target_0=[1, 2]))

    assert read(content, spec).start == [datetime(2026, 3, 28, tzinfo=UTC)]


def test_an_hour_that_comes_twice() -> None:
    """Its neighbours tell which it is, as in CSV."""
    spec = spec_of(("target",), timezone="Europe/Vienna")
    content = stream(arrow(time=pa.array(LEAP, pa.timestamp("s")), target_0=[1, 2, 3, 4]))

    last = datetime(2026, 10, 25, 2, tzinfo=UTC).timestamp() * 1e6
    assert lay_out(read(content, spec), spec, 1, most=1).last == [last]
    assert series_of(content, STREAM, spec)[0].values.shape == (4, 1)


@pytest.mark.parametrize("names", [pa.array([7, 7, 12]), pa.array(["7", "7", "12"], pa.large_string())])
def test_names_of_series(names: pa.Array) -> None:
    """Text, and whole numbers."""
    spec = spec_of(("target",), series="shop", **FILLS)
    assert read(stream(arrow(shop=names, target_0=[1, 2, 3])), spec).series == ["7", "12"]


def test_what_is_before_the_window_is_not_looked_at() -> None:
    """Like in CSV: only the rows that count can be wrong."""
    assert numbers(target_0=[float("inf"), 1, 2, 3, 4], past_1=[0.0] * 5)[0] == [1, 0]


# What is wrong with it


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"target_0": [1], "past": [1]}, "422 arrow schema: no column 'past_1'; did you mean 'past'?"),
        ({"target_0": ["1"], "past_1": [1]}, "422 arrow column 'target_0': its values are string, not numbers"),
        ({"target_0": [True], "past_1": [1]}, "422 arrow column 'target_0': its values are bool, not numbers"),
        (
            {"target_0": [[1]], "past_1": [1]},
            "422 arrow column 'target_0': its values are list<item: int64>, not numbers",
        ),
        (
            {"target_0": pa.array(["1"]).dictionary_encode(), "past_1": [1]},
            "422 arrow column 'target_0': its values are dictionary<values=string, indices=int32",
        ),
        (
            {"target_0": [1, 2], "past_1": [0, float("inf")]},
            "422 arrow row 2, column 'past_1': inf is not a finite 32-bit number",
        ),
        (
            {"target_0": [1, -1e39], "past_1": [0, 0.0]},
            "422 arrow row 2, column 'target_0': -1e+39 is not a finite 32-bit number",
        ),
        (
            {"time": [1, 2], "target_0": [1, 2], "past_1": [1, 2]},
            "422 arrow column 'time': its values are int64, not timestamps, dates or ISO 8601 text",
        ),
        (
            {"time": [HOURS[0], None], "target_0": [1, 2], "past_1": [1, 2]},
            "422 arrow row 2, column 'time': no time",
        ),
        (
            {"time": ["x"], "target_0": [1], "past_1": [1]},
            "422 arrow row 1, column 'time': 'x' is not an ISO 8601 time",
        ),
        (
            {"time": pa.array([None, "x"]), "target_0": [1, 2], "past_1": [1, 2]},
            "422 arrow row 1, column 'time': no time",
        ),
        (
            {"time": pa.array([2**60], pa.timestamp("s")), "target_0": [1], "past_1": [1]},
            "422 arrow row 1, column 'time': the time is not within the years 1970 to 9999",
        ),
        (
            {"time": pa.array([-1], pa.timestamp("s", "UTC")), "target_0": [1], "past_1": [1]},
            "422 arrow row 1, column 'time': '1969-12-31T23:59:59Z' is not within the years 1970 to 9999",
        ),
        (
            {"time": [HOURS[0], HOURS[3]], "target_0": [1, 2], "past_1": [1, 2]},
            "422 arrow row 2: 3:00:00 after arrow row 1; the model takes a row every 1:00:00",
        ),
        (
            {"target_0": [1, None, 3, 4], "past_1": [1] * 4},
            "422 arrow row 2, column 'target_0': no value, but the model",
        ),
        ({"target_0": [1, 2], "past_1": [1, 2]}, "422 arrow: 2 rows; the model takes exactly 4"),
        ({"target_0": pa.array([], pa.float32())}, "422 arrow: no rows"),
    ],
)
def test_wrong_tables(columns: dict[str, Any], said: str) -> None:
    """Each tells the column and the row."""
    found = refusal(stream(arrow(**columns)))
    assert found.startswith(said), found


def test_wrong_series() -> None:
    """A name is text or a whole number, and always there; a column stands there once."""
    spec = spec_of(("target",), series="shop", **FILLS)
    assert refusal(stream(arrow(shop=[1.5], target_0=[1])), spec) == (
        "422 arrow column 'shop': its values are double, not text or integers"
    )
    for names in (["a", None], ["a", ""], pa.array([1, None])):
        said = refusal(stream(arrow(shop=names, target_0=[1, 2])), spec)
        assert said == "422 arrow row 2, column 'shop': no name of a series"
    assert refusal(stream(arrow(shop=list("abcd"), target_0=[1] * 4)), spec).startswith("422 arrow: 4 series;")
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["target_0", "target_0"])
    assert refusal(stream(twice), spec) == "422 arrow schema: column 'target_0' is there twice"


def test_long_series_that_are_wrong() -> None:
    """The same where every row counts."""
    spec = spec_of(("target",), clock=True)
    for times, said in (
        (pa.array([2**60, 0], pa.timestamp("s", "UTC")), "the time is not within the years 1970 to 9999"),
        (pa.array([0, -5], pa.timestamp("s", "UTC")), "the time is not within the years 1970 to 9999"),
        (pa.array([0, None], pa.timestamp("s", "UTC")), "no time"),
        (pa.array([0, None], pa.timestamp("s")), "no time"),
    ):
        with pytest.raises(InvalidError, match=f"arrow row [12], column 'time': {said}"):
            series_of(stream(arrow(time=times, target_0=[1, 2])), STREAM, spec)
    with pytest.raises(InvalidError, match="arrow schema: no column 'time', which the model needs"):
        series_of(stream(arrow(target_0=[1, 2])), STREAM, spec)
    with pytest.raises(InvalidError, match="arrow: no row has a value of a target"):
        batch_bodies.queries(
            stream(arrow(target_0=pa.nulls(4), future_1=[1] * 4)),
            STREAM,
            spec_of(("target", "future")),
            1,
            most_bytes=10_000,
        )


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"time,load\n", b"\xff" * 64, b"ARROW1\0\0", b"ARROW1\0\0" + bytes(40)]
)
def test_what_is_no_arrow(content: bytes) -> None:
    """400, whatever it is."""
    with pytest.raises(MalformedError, match="not Arrow IPC: "):
        sheet_of(content)


def test_values_that_are_not_what_they_say() -> None:
    """Text that is no UTF-8, and places beyond a dictionary's end, are found before anything follows them."""
    kind = pa.dictionary(pa.int8(), pa.float64())
    beyond = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int8()), pa.array([1.0]), safe=False)
    before = pa.DictionaryArray.from_arrays(pa.array([0, -9], pa.int8()), pa.array([1.0]), safe=False)
    for column in (beyond, before):
        assert column.type == kind
        assert refusal(stream(arrow(target_0=column, past_1=[1, 2]))).startswith("400 not Arrow IPC: a place beyond")
    text = pa.array([b"\xff\xff"]).view(pa.string())
    assert refusal(stream(arrow(time=text, target_0=[1], past_1=[1]))).startswith("400 not Arrow IPC: ")


# What it may take


def zeros(rows: int) -> pa.RecordBatch:
    return arrow(target_0=np.zeros(rows), past_1=np.zeros(rows))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_becomes_too_large(compression: str) -> None:
    """Is refused by what it says that it becomes, before it is unpacked: pyarrow takes no memory for it."""
    content = stream(zeros(200_000), compression=compression)
    assert len(content) < 100_000
    gc.collect()  # what others left would go meanwhile
    before = pa.total_allocated_bytes()
    with pytest.raises(BodyTooLargeError, match="may have at most 3000000 bytes"):
        sheet_of(content, most_bytes=3_000_000)
    assert pa.total_allocated_bytes() == before
    assert len(sheet_of(content, most_bytes=3_300_000).cells) == 200_000


def test_a_lie_about_what_it_becomes() -> None:
    """Of terabytes nothing is taken; of less than comes, the reader finds out."""
    content = bytearray(stream(zeros(1000), compression="zstd"))
    place = content.index((8000).to_bytes(8, "little"))
    for size, error in ((2**50, BodyTooLargeError), (-7, ForetellError), (16, MalformedError)):
        content[place : place + 8] = size.to_bytes(8, "little", signed=True)
        with pytest.raises(error):
            read(bytes(content))


def test_rows_of_nothing() -> None:
    """A column of nulls takes no bytes for any number of rows; they count all the same."""
    batch = pa.RecordBatch.from_arrays([pa.nulls(10**7), pa.nulls(10**7)], names=["target_0", "past_1"])
    with pytest.raises(BodyTooLargeError, match="cells"):
        sheet_of(stream(batch))


@pytest.mark.parametrize("column", ["time", "name"])
def test_one_text_for_all_rows(column: str) -> None:
    """Where a long one is behind many views it is not copied for each; in a dictionary it is kept once."""
    long = "x" * 100_000
    views = pa.array(["short", long], pa.string_view())
    one = bytes(views.buffers()[1])[16:]
    views = pa.Array.from_buffers(pa.string_view(), 1000, [None, pa.py_buffer(one * 1000), views.buffers()[2]])
    spec = spec_of(("target",), series="name")
    body = stream(arrow(**{column: views}, target_0=np.zeros(1000)))
    assert len(body) < 200_000
    assert refusal(body, spec).startswith("413 what the text in the body comes to may have at most 2097152 bytes")
    coded = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int16)), pa.array([long]))
    query = read(stream(arrow(name=coded, target_0=np.zeros(1000))), spec)
    assert query.series == [long]


def test_dictionaries_that_are_added_to() -> None:
    """Are not read: every batch would keep one of its own. Those that are replaced are."""
    first, second = pa.array(["a"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()
    batches = [arrow(name=first, target_0=[1.0]), arrow(name=second, target_0=[2.0, 3.0])]
    spec = spec_of(("target",), series="name", **FILLS)

    assert read(stream(*batches), spec).series == ["a", "b"]
    said = refusal(stream(*batches, emit_dictionary_deltas=True), spec)
    assert said == "422 arrow: a dictionary that is added to; send each of them whole"


# Through the service

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of a model with intervals and one with series."""
    root = tmp_path_factory.mktemp("store")
    calibrated.publish(root)
    publish_tiny(Store(root), "shops", roles=("target", "past"), series="shop", timezone="Europe/Vienna")
    async with serving(root) as client:
        yield client


def shops(rows: int = 9) -> pa.RecordBatch:
    both = [(shop, hour) for hour in range(rows) for shop in ("north", "süd")]
    values = np.random.default_rng(3).normal(10, 1, (2, len(both))).astype(np.float32)
    times = [START + hour * timedelta(hours=1) for _, hour in both]
    return arrow(shop=[shop for shop, _ in both], time=times, target_0=values[0], past_1=values[1])


async def ask(client: httpx.AsyncClient, path: str, content: bytes, kind: str, accept: str = "*/*") -> httpx.Response:
    response = await client.post(path, content=content, headers={"Content-Type": kind, "Accept": accept})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("path", ["/predict?model=shops", "/forecast?model=shops&steps=7"])
async def test_answers_are_those_of_csv(client: httpx.AsyncClient, path: str) -> None:
    """To the last bit, whichever way it was asked and answered; and typed."""
    batch = shops()
    asked = [
        (stream(batch), STREAM),
        (stream(batch, as_file=True, compression="zstd"), FILE),
        (csv_of(batch), "text/csv"),
    ]
    answers = [await ask(client, path, *one, STREAM) for one in asked]
    texts = [await ask(client, path, *one, "text/csv") for one in asked]
    (plain,) = {(await ask(client, path, *one)).content for one in asked}

    assert len({answer.content for answer in answers}) == len({text.content for text in texts}) == 1
    assert answers[0].headers["content-type"] == STREAM
    assert answers[0].headers["vary"] == "Accept"
    found = table_in(answers[0].content)
    steps = found.num_rows // 2
    assert {field.name: str(field.type) for field in found.schema} == {
        "shop": "string",
        "time": "timestamp[us, tz=Europe/Vienna]",
        "step": "int32",
        "target_0": "float",
    }
    expected = pl.read_csv(texts[0].content)
    assert found.column_names == expected.columns
    assert found["shop"].to_pylist() == expected["shop"].to_list()
    assert [moment.isoformat() for moment in found["time"].to_pylist()] == expected["time"].to_list()
    assert found["step"].to_pylist() == expected["step"].to_list()
    np.testing.assert_array_equal(found["target_0"].to_numpy(), expected["target_0"].to_numpy().astype(np.float32))
    said = httpx.Response(200, content=plain).json()
    metadata = {name.decode(): value.decode() for name, value in found.schema.metadata.items()}
    assert metadata == {"model": "shops", "version": "1", "digest": said["digest"], "steps": str(steps)}


async def test_intervals_and_windows(client: httpx.AsyncClient) -> None:
    """Bounds are columns as in CSV; windows without names have numbers; what corrected them is told."""
    path = "/forecast?model=tiny&steps=3&level=80,90&adaptive=true"
    windows = calibrated.windows(2)
    response = await client.post(path, json={"windows": windows}, headers={"Accept": STREAM})
    text = await client.post(path, json={"windows": windows}, headers={"Accept": "text/csv"})
    assert response.status_code == 200, response.text
    found, expected = table_in(response.content), pl.read_csv(text.content)

    assert found.column_names == expected.columns
    assert found.schema.field("window").type == pa.int64()
    for name in expected.columns:
        np.testing.assert_array_equal(
            found[name].to_numpy(), expected[name].to_numpy().astype(found[name].to_numpy().dtype)
        )
    said = (await client.post(path, json={"windows": windows})).json()
    assert found.schema.metadata[b"actuals"].decode() == str(said["actuals"])


async def test_long_tables(client: httpx.AsyncClient) -> None:
    """/batch and /backtest say of Arrow what they say of CSV."""
    batch = shops(60)
    for path in ("/batch?model=shops&steps=5", "/backtest?model=shops&steps=5&stride=3"):
        found = await ask(client, path, stream(batch, compression="lz4"), STREAM)
        assert found.content == (await ask(client, path, csv_of(batch), "text/csv")).content
        assert b'"done"' in found.content


async def test_a_refusal_through_the_service(client: httpx.AsyncClient) -> None:
    """A problem with its place, and the limit of what comes out."""
    headers = {"Content-Type": STREAM}
    wrong = stream(arrow(shop=["a"], target_0=["1"], past_1=[1]))
    for path in ("/predict?model=shops", "/batch?model=shops&steps=1", "/backtest?model=shops&steps=1"):
        response = await client.post(path, content=wrong, headers=headers)
        assert response.status_code == 422
        assert response.json()["errors"][0]["place"] == "arrow column 'target_0'"
    large = stream(zeros(200_000), compression="zstd")
    response = await client.post("/predict?model=shops", content=large, headers=headers)
    assert (response.status_code, response.json()["type"]) == (413, "urn:foretell:problem:body-too-large")


async def test_without_the_extra(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is refused with what is missing; an answer is what else was accepted, or JSON."""
    monkeypatch.delitem(sys.modules, "app.codec.arrow", raising=False)
    monkeypatch.setattr("app.codec.tables.find_spec", lambda name: None)
    window = calibrated.windows(1)[0]
    for response in (
        await client.post("/predict?model=tiny", content=stream(zeros(8)), headers={"Content-Type": STREAM}),
        await client.post("/batch?model=tiny&steps=1", content=stream(zeros(8)), headers={"Content-Type": FILE}),
    ):
        assert response.status_code == 415
        assert "pip install 'foretell[arrow]'" in response.json()["detail"]
    for accepted, kind in ((STREAM, "application/json"), (f"{STREAM}, text/csv;q=0.5", "text/csv; charset=utf-8")):
        response = await client.post("/predict?model=tiny", json={"window": window}, headers={"Accept": accepted})
        assert (response.status_code, response.headers["content-type"]) == (200, kind)


def test_nobody_pays_for_it_who_does_not_use_it() -> None:
    """Requests of other kinds bring no Arrow into the process."""
    code = (
        "import sys; from app import codec;"
        "codec.read(b'target_0\\n1\\n', 'text/csv'); codec.read(b'{\"window\":[[1]]}', None);"
        "assert not {'pyarrow', 'app.codec.arrow'} & set(sys.modules);"
        "assert codec.is_slow(b'Application/vnd.apache.arrow.stream') and not codec.is_slow(b'text/csv')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
