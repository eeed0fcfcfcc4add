"""Bodies of every kind: each is refused with a place that is in it, or read as a slow reader reads it."""

import csv
import io
import json
import math
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from numpy.lib import format as npy

from app import codec
from app.asked import times
from app.asked.cells import Written
from app.asked.layout import lay_out
from app.asked.query import Query
from app.asked.sheet import Sheet, query_of
from app.codec.answers import wants_table
from app.codec.series import series_of
from app.errors import ForetellError
from app.forecasts.bands import levels_of
from models.spec import Gaps, Spec
from tests.app.specs import spec_of
from tests.fuzz import tries
from tests.fuzz.rubbish import NO_NUMBERS, NUMBERS, damaged

LARGEST = float(np.finfo(np.float32).max)
JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
_LONGEST_DETAIL = 20_000
"""Of a refusal, in characters; a number may be told as it was given."""
SPECS = [
    spec_of(("target", "past")),
    spec_of(("target", "past"), gaps=Gaps(method="carry_forward", limit=2), shortest=1, clock=True),
    spec_of(("target", "future", "static"), series="name", timezone="Europe/Vienna"),
    spec_of(("target",), clock=True, timezone="America/St_Johns", frequency=timedelta(minutes=30)),
]


def refused(read: Callable[[], object]) -> object | None:
    """What is read, None where it is refused; a refusal is one of the four kinds and says where."""
    try:
        return read()
    except ForetellError as error:
        check(error)
        return None


def check(error: ForetellError) -> None:
    """It is a client's own fault, and can be told."""
    assert error.status in (400, 413, 415, 422), repr(error)
    assert len(error.detail) < _LONGEST_DETAIL
    error.detail.encode()
    assert error.status != 422 or (error.places and all(place.place and place.message for place in error.places))


def laid_out(asked: Query | Sheet, spec: Spec) -> object:
    """What an order would take of it, for three steps."""
    query = query_of(asked, spec, 3, most=100) if isinstance(asked, Sheet) else asked
    layout = lay_out(query, spec, 3, most=100)
    assert layout.windows.shape == (len(query.windows), spec.window, len(spec.features))
    assert layout.known.shape == (len(query.windows), 4, len(spec.known))
    assert not np.isinf(layout.windows).any()
    assert np.isfinite(layout.known).all()
    return layout


# JSON


def texts(*options: str) -> st.SearchStrategy[str]:
    """One of these."""
    return st.sampled_from(options)


def lists(items: st.SearchStrategy[str], most: int = 4) -> st.SearchStrategy[str]:
    """A JSON list of them."""
    return st.lists(items, max_size=most).map(lambda found: f"[{','.join(found)}]")


def even(items: st.SearchStrategy[str], *sizes: int) -> st.SearchStrategy[str]:
    """Lists in lists, with as many items in each."""
    for size in reversed(sizes):
        items = st.lists(items, min_size=size, max_size=size).map(lambda found: f"[{','.join(found)}]")
    return items


sound = st.sampled_from(NUMBERS[:11]) | st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
cells = st.one_of(sound, sound, st.sampled_from([*NUMBERS, "null"]), st.sampled_from(NO_NUMBERS))
strings = st.one_of(
    texts('"2026-01-01T00:00:00Z"', '"9999-12-31T23:59:59+99:00"', '"\\ud800"', '"\\u0000"', '"2026-W01"'),
    st.text().map(json.dumps),
)
junk = st.recursive(
    cells | strings | texts("{}", "[]", "null"),
    lambda inner: lists(inner) | st.tuples(strings, inner).map(lambda pair: f"{{{pair[0]}:{pair[1]}}}"),
    max_leaves=6,
)
tables = st.tuples(st.integers(1, 5), st.integers(1, 3)).flatmap(lambda shape: even(cells | sound, *shape))
sound_tables = st.tuples(st.integers(1, 5), st.integers(1, 3)).flatmap(lambda shape: even(sound, *shape))
blocks = st.tuples(*[st.integers(1, 3)] * 3).flatmap(lambda shape: even(sound | cells, *shape))
moments = texts('"2026-01-01"', '"2026-03-29T02:30:00"', '"2026-10-25T02:30"', '"1969-12-31T23:59:59"', '"0001-01-01"')
fields = st.one_of(
    st.tuples(texts('"window"', '"actual"', '"future"'), st.one_of(tables, sound_tables, junk)),
    st.tuples(texts('"windows"', '"actuals"', '"future"'), st.one_of(blocks, lists(tables), junk)),
    st.tuples(texts('"static"'), st.one_of(lists(cells), lists(lists(cells)), junk)),
    st.tuples(texts('"start"'), st.one_of(moments, lists(moments), strings, junk)),
    st.tuples(texts('"window"', '"windows"'), sound_tables | blocks),
    st.tuples(strings, junk),
)
blanks = texts("", " ", "\n", "\t ", "\ufeff", "\0")


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """Objects as requests have them, with faults; fields may come twice."""
    found = draw(st.lists(fields, min_size=1, max_size=3))
    comma, colon, before, behind = draw(st.tuples(*[st.just("") | blanks] * 4))
    inside = f",{comma}".join(f"{name}:{colon}{value}" for name, value in found)
    return f"{before}{{{inside}}}{behind}".encode("utf-8", "surrogatepass")


every_json = st.one_of(
    json_bodies(),
    junk.map(lambda text: text.encode("utf-8", "surrogatepass")),
    damaged(json_bodies(), (b"NaN", b"true", b"null", b'"', b"[", b"]", b"}", b",", b"\xef\xbb\xbf", b"\xff", b"\0")),
    st.binary(max_size=40),
)


def _no(constant: str) -> float:
    raise ValueError(constant)


def slowly(body: bytes) -> dict[str, Any] | None:
    """As Python reads it: the fields; None where it is no object or no JSON by the letter."""
    try:
        found = json.loads(body.decode(), parse_constant=_no)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_rows(value: object, *, gaps: bool) -> bool:
    """Whether they are rows of numbers, each as long as the others."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        return False
    if len(set(map(len, value))) > 1:
        return False
    return all(is_number(one) or (gaps and one is None) for row in value for one in row)


def floats(given: Sequence[Mapping[str, float] | Sequence[float]]) -> list[object]:
    """Static features of windows, by name or in order."""
    return [
        {name: float(one) for name, one in of.items()} if isinstance(of, Mapping) else [float(one) for one in of]
        for of in given
    ]


def single(rows: list[list[float | None]]) -> np.ndarray:
    """In float32, with NaN for null."""
    return np.array([[math.nan if one is None else float(one) for one in row] for row in rows], np.float32)


def is_plain(found: dict[str, Any]) -> bool:
    """Whether these fields are what they must be, of those bodies that have windows alone."""
    if found.keys() == {"window"}:
        return is_rows(found["window"], gaps=True)
    windows = found.get("windows")
    if found.keys() != {"windows"} or not isinstance(windows, list) or not windows:
        return False
    return all(is_rows(window, gaps=True) for window in windows) and len({len(window[0]) for window in windows}) == 1


def check_windows(query: Query, found: dict[str, Any]) -> None:
    """They are those of the body."""
    windows = [found["window"]] if query.single else found["windows"]
    assert len(query.windows) == len(windows)
    for read, rows in zip(query.windows, windows, strict=True):
        assert read.dtype == np.float32
        assert np.array_equal(read, single(rows), equal_nan=True)
    if query.future is not None:
        futures = [found["future"]] if query.single else found["future"]
        assert np.array_equal(query.future, np.stack([single(rows) for rows in futures]))
    if query.static is not None:
        # Integers beyond 64 bits are read as the numbers that they become.
        assert floats(query.static) == floats([found["static"]] if query.single else found["static"])
    if query.start is not None:
        starts = [found["start"]] if query.single else found["start"]
        assert query.start == [datetime.fromisoformat(start.upper()) for start in starts]


@tries(700)
@given(every_json, st.sampled_from(SPECS))
@example(b'{"window":[[1]],"windows":[[[1]]]}', SPECS[0])
@example(b'{"windoew":[[1]]}', SPECS[0])
@example(b'{"":0}', SPECS[0])
@example(b'{"window":[[1,2],[3],[4,5,6]]}', SPECS[0])
@example(b'{"windows":[[[1,2],[3,4]],[[5,6],[7]],[[1,2],[3,4,5]]]}', SPECS[0])
@example(b'{"window":' + b"[" * 100_000, SPECS[0])
@example(b'{"window":[[NaN]],' + b'"a":[' * 100_000, SPECS[0])
@example(b'{"window":[[1],[' + b"9" * 4299 + b"],[NaN]]}", SPECS[0])
@example(b'{"window":[[[NaN]]],"window":[[0]]}', SPECS[0])
@example(b'{"window":[[1]],"start":"2026-01-01","start":"2027-01-01"}', SPECS[0])
@example(b'{"window":[[1]],"static":[-9223372036854775809]}', SPECS[0])
def test_json(body: bytes, spec: Spec) -> None:
    """Whatever is read are the numbers that Python's json reads, and all that is right is read."""
    query, found = refused(lambda: codec.read(body, JSON)), slowly(body)
    if query is None:
        # Of a field that comes twice, Python lets the first one hold what no JSON may.
        assert found is None or not is_plain(found) or body.count(b'"window') > 1
        return
    assert isinstance(query, Query)
    assert found is not None
    check_windows(query, found)
    refused(lambda: laid_out(query, spec))


@tries(300)
@given(every_json)
def test_json_that_tells_what_followed(body: bytes) -> None:
    """Likewise of the rows that followed."""
    followed = refused(lambda: codec.read_followed(body, JSON))
    if followed is not None:
        found = slowly(body)
        assert found is not None
        check_windows(followed.query, found)
        actuals = [found["actual"]] if followed.query.single else found["actuals"]
        for read, rows in zip(followed.actual, actuals, strict=True):
            assert np.array_equal(read, single(rows), equal_nan=True)


# CSV


csv_cells = st.one_of(
    st.sampled_from([*NUMBERS[:9], "", "NaN", "NA", " 1 ", "1.5"]),
    st.sampled_from([*NUMBERS, *NO_NUMBERS, '"', '"a\nb"', "\0", "'", "\u2028", "1e5", '" 2"']),
    st.text(max_size=3),
)
csv_times = st.one_of(
    st.integers(-5, 300).map(lambda hour: (datetime(2026, 3, 28, tzinfo=UTC) + hour * timedelta(hours=1)).isoformat()),
    st.integers(0, 80).map(lambda half: (datetime(2026, 10, 24) + half * timedelta(minutes=30)).isoformat()),  # noqa: DTZ001  as on the wall
    st.sampled_from(["9999-12-31T23:00", "1970-01-01", "2026-06-30T23:59:60Z", "2026-01-01T00:00+99:00", "0001-01-01"]),
    csv_cells,
)
headers = st.sampled_from(
    [
        ["target_0", "past_1"],
        ["time", "target_0", "past_1"],
        ["past_1", "x", "target_0", "time"],
        ["name", "time", "target_0", "future_1", "static_2"],
        ["target_0", "target_0", "past_1"],
        ["time", "target_0"],
        ["\ufefftarget_0", "past_1"],
    ]
)


@st.composite
def csv_bodies(draw: st.DrawFn) -> bytes:
    """Tables with some of the columns that the models know."""
    header, regular = draw(headers), draw(st.booleans())
    rows = [header]
    for hour in range(draw(st.integers(0, 7))):
        at = (datetime(2026, 3, 28, 22, tzinfo=UTC) + hour * timedelta(hours=1)).isoformat()
        values = st.sampled_from(NUMBERS[:9]) if regular else csv_cells
        named = {"time": st.just(at) if regular else csv_times, "name": st.sampled_from(["a", "b", ""])}
        rows.append([draw(named.get(name, values)) for name in header])
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    return end.join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")


every_csv = st.one_of(
    csv_bodies(), damaged(csv_bodies(), (b"\n", b",", b'"', b"\0", b"\xff", b"\xef\xbb\xbf")), st.binary(max_size=40)
)
parameters = st.sampled_from(["", "; charset=utf-8", '; charset="ISO-8859-1"', "; charset=windows-1252", "; charset=x"])


def cells_of(body: bytes) -> list[list[str]]:
    """As Python's csv reads them."""
    return [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if row]


def number(cell: str) -> float:
    text = cell.strip()
    return math.nan if text in ("", "NaN", "nan", "null", "NA") else float(text)


@tries(500)
@given(every_csv, parameters, st.sampled_from(SPECS))
def test_csv(body: bytes, charset: str, spec: Spec) -> None:
    """A sheet has the cells that Python's csv finds, and a layout of it the numbers in its last rows."""
    sheet = refused(lambda: codec.read(body, CSV + charset))
    if sheet is None:
        return
    assert isinstance(sheet, Sheet)
    assert isinstance(sheet.cells, Written)
    if charset in ("", "; charset=utf-8"):
        assert [sheet.header, *sheet.cells.rows] == cells_of(body)
    layout = refused(lambda: laid_out(sheet, spec))
    if layout is not None and "name" not in sheet.header and not spec.static and not spec.future:
        last = [number(sheet.cells.rows[-1][sheet.header.index(name)]) for name in spec.columns]
        assert np.array_equal(layout.windows[0, -1], np.array(last, np.float32), equal_nan=True)


@tries(300)
@given(every_csv, st.sampled_from(SPECS))
def test_series_of_csv(body: bytes, spec: Spec) -> None:
    """Of the series that are read every given value is one in the table, and as many are given as rows are there."""
    series = refused(lambda: series_of(body, CSV, spec))
    if series is None:
        return
    header, *rows = cells_of(body)
    for index, feature in enumerate(spec.features):
        if feature.role == "static":
            continue
        column = header.index(feature.name)
        given = np.array([number(row[column]) for row in rows], np.float32)
        read = np.concatenate([one.values[:, index] for one in series])
        assert np.array_equal(np.sort(given[~np.isnan(given)]), np.sort(read[~np.isnan(read)]))
    zone, step = ZoneInfo(spec.timezone), spec.frequency
    for one in series:
        assert one.start is None or times.stamps(one.start, step, len(one.values) - 1, zone) is not None


# NumPy's


class Burglar:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.trace, "w")


dtypes = ["<f4", ">f4", "<f8", ">f8", "<f2", "<i8", "|O", "|b1", "<c8", "<U3", "<M8[s]", "|V0", "<f16", "x", ""]
dimensions = st.one_of(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, -1, 2**31, 2**62, 2**64, True]))


def array_of(shape: str) -> bytes:
    """One number, and a header that says so of it."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return npy.MAGIC_PREFIX + bytes((1, 0)) + struct.pack("<H", len(head)) + head + bytes(4)


@st.composite
def npy_bodies(draw: st.DrawFn) -> bytes:
    """A header that says something, and numbers that are as many, mostly."""
    shape = tuple(draw(st.lists(dimensions, max_size=4) | st.lists(st.integers(1, 3), min_size=2, max_size=3)))
    kind = draw(st.sampled_from(dtypes[:4]) | st.sampled_from(dtypes))
    others = [f"[{shape}]", "(0x" + "f" * 4000 + ",1)", "(1.0, 2)", "None", "(1,"]
    shown = draw(st.sampled_from([repr(shape)] * 6 + others))
    descr = draw(st.sampled_from([repr(kind)] * 6 + ["[('a', '<f4'), ('b', '<f8')]", "('<f4', (2,))", "1"]))
    order = draw(st.sampled_from(["False", "False", "True", "1", "None"]))
    head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shown}, }}".ljust(53) + "\n"
    version = draw(st.sampled_from([(1, 0)] * 4 + [(2, 0), (3, 0), (9, 9)]))
    length = struct.pack("<H" if version == (1, 0) else "<I", draw(st.sampled_from([len(head)] * 8 + [0, 65535])))
    width = {"4": 4, "8": 8, "2": 2}.get(kind[-1:], 4)
    count = math.prod(shape)
    size = count * width if 0 <= count <= 64 else 16
    values = draw(st.binary(min_size=size, max_size=size))
    return npy.MAGIC_PREFIX + bytes(version) + length + head.encode() + values


@tries(700)
@given(npy_bodies() | damaged(npy_bodies(), (b"(", b"L", b"\\", b"'", b"\x93NUMPY", b"0x" + b"f" * 4000)))
@example(array_of("(1, True)"))
@example(array_of("(0x" + "f" * 4000 + ", 1)"))
@example(array_of("(-0x" + "f" * 4000 + ", 1)"))
def test_npy(body: bytes) -> None:
    """What is read is what NumPy itself reads without unpickling anything."""
    query = refused(lambda: codec.read(body, NPY))
    if query is not None:
        assert isinstance(query, Query)
        found = np.load(io.BytesIO(body), allow_pickle=False)
        assert query.windows.shape == (found.shape if found.ndim == 3 else (1, *found.shape))
        assert np.array_equal(query.windows.reshape(found.shape), found.astype(np.float32), equal_nan=True)
        refused(lambda: laid_out(query, SPECS[0]))
    refused(lambda: series_of(body, NPY, SPECS[0]))


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", dtypes[:4])
def test_npy_that_numpy_writes(shape: tuple[int, ...], order: str, kind: str) -> None:
    """All of its arrays of floats in two or three dimensions are read."""
    content = io.BytesIO()
    array = np.arange(math.prod(shape)).astype(kind).reshape(shape, order=order)
    np.save(content, array)
    query = refused(lambda: codec.read(content.getvalue(), NPY))
    assert (query is None) == (len(shape) == 1)
    assert query is None or np.array_equal(query.windows.reshape(shape), array)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_nothing_is_unpickled(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An array of objects is refused before anyone looks at them."""
    trace = tmp_path / "trace"
    content = io.BytesIO()
    array = np.empty(shape, object)
    array[...] = Burglar(str(trace))
    np.save(content, array)
    for body in (content.getvalue(), pickle.dumps(Burglar(str(trace)))):
        assert refused(lambda body=body: codec.read(body, NPY)) is None
        assert refused(lambda body=body: series_of(body, NPY, SPECS[0])) is None
    assert not trace.exists()


# What comes beside a body


@tries(300)
@given(st.text(st.characters(codec="latin-1"), max_size=60) | st.sampled_from([JSON, CSV, NPY, f"{CSV};charset=\xff"]))
def test_content_types(content_type: str) -> None:
    """Any header is one that is read here, or refused."""
    refused(lambda: codec.read(b"{}", content_type))
    refused(lambda: codec.read_followed(b"{}", content_type))
    refused(lambda: series_of(b"", content_type, SPECS[0]))


_accepts = st.lists(
    st.tuples(
        st.sampled_from(["text/csv", "application/json", "*/*", "application/*", "text/*", "", "x"]),
        st.sampled_from(["", ";q=1", ";q=0.5", ";q=0", ";q=2", ";q=nan", "; q = .5", ";q", ";=", ";q=0.1234"]),
    ),
    max_size=4,
)


@tries(300)
@given(_accepts.map(lambda found: ",".join(map("".join, found)).encode()) | st.binary(max_size=40))
@example(b"text/csv" + b"," * 65_000)
def test_accept(accept: bytes) -> None:
    """Any header says what is wanted; a table only where it is named."""
    assert (wants_table(accept) or "").encode() in accept.lower()


_percents = st.sampled_from(["80", "95.5", "0", "100", "1e1", "\u0661", "", "9" * 400, "99.99999999"])


@tries(300)
@given(st.text(max_size=30) | st.lists(_percents).map(",".join))
def test_levels(text: str) -> None:
    """Any text names levels or is refused."""
    levels = refused(lambda: levels_of(text))
    assert levels is None or [float(one) for one in levels] == [float(part.strip()) for part in text.split(",")]


offsets = st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+24:00", "+99:00", "+0530", "+05:30:30", "-00:00"])
zones = st.sampled_from([ZoneInfo(name) for name in ("UTC", "Europe/Vienna", "America/St_Johns", "Africa/Monrovia")])
written = st.one_of(
    st.tuples(st.datetimes().map(lambda time: time.isoformat()), offsets).map("".join),
    st.tuples(
        texts("0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "2026-03-29T02:30", "2016-12-31T23:59:60"),
        offsets,
    ).map("".join),
    st.text(max_size=30),
    st.from_regex(times._WRITTEN, fullmatch=True),
)


@tries(500)
@given(written, zones)
def test_times(text: str, zone: ZoneInfo) -> None:
    """A time that is read is what Python reads, and a moment of it shows as that time again."""
    time = times.read(text)
    if time is None:
        return
    assert time == datetime.fromisoformat(text.upper())
    moment = refused(lambda: times.moment(time, zone, "start"))
    if moment is not None:
        assert 0 <= moment <= times.END
        again = datetime(1970, 1, 1, tzinfo=UTC) + moment * timedelta(microseconds=1)
        shown = again.astimezone(zone).replace(tzinfo=None) if time.tzinfo is None else again
        assert shown == time
        stamps = times.stamps(moment, timedelta(hours=1), 3, zone)
        assert stamps is None or len(stamps) == 3


# How long it takes


def _table(rows: int, columns: str = "target_0,past_1", cells: str = "1,2") -> bytes:
    return "\n".join([columns, *[cells] * rows]).encode()


def _wide(n: int, name: str, before: str = "") -> bytes:
    columns = before + ",".join(name.format(column) for column in range(n))
    return _table(1, columns, ",".join(["1"] * (columns.count(",") + 1)))


def _many(n: int, item: bytes) -> bytes:
    """With commas between, and their numbers in them."""
    return b",".join(item.replace(b"#", b"%d" % index) for index in range(n))


_HOSTILE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "rows": (JSON, lambda n: b'{"window":[%b]}' % _many(n, b"[1,2]")),
    "windows of two lengths": (JSON, lambda n: b'{"windows":[[[1,2],[1,2]],%b]}' % _many(n, b"[[1,2]]")),
    "one fault at the end": (JSON, lambda n: b'{"window":[%b,[1,"x"]]}' % _many(n, b"[1,2]")),
    "ragged": (JSON, lambda n: b'{"window":[%b,[1]]}' % _many(n, b"[1,2]")),
    "static": (JSON, lambda n: b'{"window":[[1]],"static":{%b}}' % _many(n, b'"#":1')),
    "starts": (JSON, lambda n: b'{"windows":[%b],"start":[%b]}' % (_many(n, b"[[1]]"), _many(n, b'"2026-01-01"'))),
    "unknown fields": (JSON, lambda n: b'{"window":[[1]],%b}' % _many(n, b'"#":1')),
    "a name as long as the body": (JSON, lambda n: b'{"%b":1}' % (b"w" * n)),
    "depth": (JSON, lambda n: b'{"window":%b' % (b"[" * n)),
    "rows of a table": (CSV, _table),
    "columns": (CSV, lambda n: _wide(n, "c{}", "target_0,past_1,")),
    "columns of which none is known": (CSV, lambda n: _wide(n, "target_{}0")),
    "series": (CSV, lambda n: b"name,target_0,future_1,static_2\n" + _many(n, b"s#,1,2,3").replace(b",s", b"\ns")),
    "one cell is no number": (CSV, lambda n: _table(n) + b"\n1,x"),
    "quotes": (CSV, lambda n: b'target_0,past_1\n"' + b'""' * n),
}


def _events(run: Callable[[], object]) -> int:
    """Lines and calls, of Python and of C alike, that it takes."""
    count = 0

    def trace(*_: object) -> Callable[..., Any]:
        nonlocal count
        count += 1
        return trace

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return count


@pytest.mark.parametrize("kind", _HOSTILE)
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2]], ids=["plain", "series"])
def test_twice_as_long_a_body_takes_at_most_twice_as_much(kind: str, spec: Spec) -> None:
    """Counted, not timed, so in what Python itself does; and what is said of it does not grow with the body."""
    content_type, make = _HOSTILE[kind]

    def read(body: bytes) -> object:
        asked = codec.read(body, content_type)
        found = laid_out(asked, spec)
        return series_of(body, content_type, spec) if content_type == CSV else found

    once, twice = (_events(partial(refused, partial(read, make(n)))) for n in (1000, 2000))
    assert twice <= 2.1 * once + 500
