"""Bodies to arrays: what is read, and the place that is named when it is not."""

import contextlib
import io
import json
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import example, given

from app import codec
from app.asked.query import Query
from app.codec import json_bodies
from app.errors import ForetellError, InvalidError, MalformedError, MediaTypeError
from app.ticket import Floats


def read(fields: object) -> Query:
    return query_in(json.dumps(fields).encode())


def query_in(body: bytes, content_type: str | None = "application/json") -> Query:
    query = codec.read(body, content_type)
    assert isinstance(query, Query)
    return query


def test_one_window() -> None:
    """`window` [L, F] becomes a batch of one, in float32."""
    query = read({"window": [[1, 2.5], [3, 4]]})
    assert query.single
    assert query.windows.dtype == np.float32
    assert query.windows.tolist() == [[[1, 2.5], [3, 4]]]
    assert query.future is None
    assert query.start is None


def test_several_windows() -> None:
    """`windows` [B, L, F] keep their order, also when there is but one of them."""
    assert read({"windows": [[[1]], [[2]]]}).windows.tolist() == [[[1]], [[2]]]
    assert not read({"windows": [[[1]]]}).single


def test_future_has_the_depth_of_the_windows() -> None:
    """Known-future rows: [N, K] beside one window, [B, N, K] beside several."""
    one = read({"window": [[1]], "future": [[5], [6]]}).future
    several = read({"windows": [[[1]]], "future": [[[5], [6]]]}).future
    assert one is not None
    assert several is not None
    assert one.tolist() == several.tolist() == [[[5], [6]]]


def test_start() -> None:
    """A time is read as it is written; without an offset it has no zone, since the model's is not known here."""
    assert read({"window": [[1]], "start": "2013-06-01T12:30:00Z"}).start == [datetime(2013, 6, 1, 12, 30, tzinfo=UTC)]
    assert read({"window": [[1]], "start": "2013-06-01"}).start == [datetime(2013, 6, 1)]  # noqa: DTZ001  that is it


def test_starts_have_the_order_of_the_windows() -> None:
    """Beside several windows `start` is a list of as many times, also when there is but one."""
    two = read({"windows": [[[1]], [[2]]], "start": ["2013-06-01T00:00Z", "1970-01-01T00:00Z"]}).start
    one = read({"windows": [[[1]]], "start": ["1970-01-02T00:00Z"]}).start

    assert two == [datetime(2013, 6, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
    assert one == [datetime(1970, 1, 2, tzinfo=UTC)]


def test_static_by_name_or_in_order() -> None:
    """Beside one window the static features are an object or a list; beside several, a list of those."""
    assert read({"window": [[1]], "static": {"area": 2}}).static == [{"area": 2}]
    assert read({"window": [[1]], "static": [2, 3.5]}).static == [[2, 3.5]]
    assert read({"windows": [[[1]]] * 2, "static": [[2], {"area": 3}]}).static == [[2], {"area": 3}]


def test_gaps_are_nan() -> None:
    """A null in a window is NaN, and the query says that there may be some."""
    one, several = read({"window": [[1, None], [None, 2]]}), read({"windows": [[[1]], [[None]]]})

    np.testing.assert_array_equal(one.windows, np.array([[[1, np.nan], [np.nan, 2]]], np.float32))
    np.testing.assert_array_equal(several.windows, np.array([[[1]], [[np.nan]]], np.float32))
    assert (one.gaps, several.gaps, read({"window": [[1]]}).gaps) == (True, True, False)


def test_windows_of_several_lengths() -> None:
    """Whether the model takes them, only the model can say."""
    windows = read({"windows": [[[1, 2]], [[3, 4], [5, None]]]}).windows

    assert isinstance(windows, list)
    np.testing.assert_array_equal(windows[0], np.array([[1, 2]], np.float32))
    np.testing.assert_array_equal(windows[1], np.array([[3, 4], [5, np.nan]], np.float32))


@pytest.mark.parametrize("content_type", [None, "application/json", "Application/JSON; charset=utf-8"])
def test_content_type_of_json(content_type: str | None) -> None:
    """JSON by any spelling of its name, and where a client names none."""
    assert np.shape(query_in(b'{"window": [[1]]}', content_type).windows) == (1, 1, 1)


def test_other_content_types_are_refused() -> None:
    """The refusal says what is read."""
    with pytest.raises(MediaTypeError, match="application/json"):
        codec.read(b"", "text/plain")


def test_forms_are_refused_with_the_way_out() -> None:
    """They are what curl says a body is where it is not told."""
    with pytest.raises(MediaTypeError) as error:
        codec.read_followed(b"", "application/x-www-form-urlencoded")
    assert error.value.detail.endswith("; give -H 'Content-Type: application/json'")


def test_what_followed_is_packed_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many windows there are; each has as many rows as it was given."""
    packs: list[int] = []

    def packed(value: object, depth: int, *, gaps: bool) -> Floats:
        packs.append(depth)
        return pack(value, depth, gaps=gaps)

    pack = json_bodies._packed
    monkeypatch.setattr(json_bodies, "_packed", packed)
    body = {"windows": [[[1]], [[2]], [[3]]], "actuals": [[[4]], [[5], [None]], [[6]]]}
    followed = codec.read_followed(orjson.dumps(body), None)
    assert len(packs) == 2
    for found, rows in zip(followed.actual, ([[4]], [[5], [np.nan]], [[6]]), strict=True):
        np.testing.assert_array_equal(found, np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"window": [[1, 2], [3]]}, "window[1]"),
        ({"window": [[1, 2], None]}, "window[1]"),
        ({"window": [[1, None], [3, "4"]]}, "window[1][1]"),
        ({"window": [[1, 2], [3, "4"]]}, "window[1][1]"),
        ({"window": [[1, 2], [3, True]]}, "window[1][1]"),
        ({"window": [[1, 2], [False, 4.5]]}, "window[1][0]"),
        ({"window": [[1, 2], [3, [4]]]}, "window[1][1]"),
        ({"window": [[1, 2], [3, {}]]}, "window[1][1]"),
        ({"window": [[1, 2], 3]}, "window[1]"),
        ({"window": [1, 2]}, "window[0]"),
        ({"window": []}, "window"),
        ({"window": [[], []]}, "window[0]"),
        ({"window": 5}, "window"),
        ({"window": None}, "window"),
        ({"window": [[1e39]]}, "window[0][0]"),
        ({"window": [[float("nan")]]}, "window[0][0]"),
        ({"window": [[1.0, float("-inf")]]}, "window[0][1]"),
        ({"windows": [[[1]], [[2], [3, 4]]]}, "windows[1][1]"),
        ({"windows": [[[1, 2]], [[3]]]}, "windows[1][0]"),
        ({"windows": [[[1]], []]}, "windows[1]"),
        ({"windows": [[[1]], [[None], [True]]]}, "windows[1][1][0]"),
        ({"windows": [[[1]], None]}, "windows[1]"),
        ({"windows": [[1]]}, "windows[0][0]"),
        ({"window": [[1]], "future": [[1], [None]]}, "future[1][0]"),
        ({"window": [[1]], "start": 1370044800}, "start"),
        ({"window": [[1]], "start": None}, "start"),
        ({"window": [[1]], "start": ["2013-06-01"]}, "start"),
        ({"window": [[1]], "start": ""}, "start"),
        ({"window": [[1]], "start": "yesterday"}, "start"),
        ({"window": [[1]], "start": "01/06/2013"}, "start"),
        ({"window": [[1]], "start": "2013-W22-6"}, "start"),
        ({"window": [[1]], "start": "2013-06-01x00:00"}, "start"),
        ({"window": [[1]], "start": "2013-02-29T00:00:00Z"}, "start"),
        ({"window": [[1]], "start": "2013-06-01T25:00:00Z"}, "start"),
        ({"window": [[1]], "start": "2013-06-01T00:00:00+24:00"}, "start"),
        ({"window": [[1]], "start": "10000-01-01T00:00:00Z"}, "start"),
        ({"windows": [[[1]]], "start": "2013-06-01"}, "start"),
        ({"windows": [[[1]]], "start": []}, "start"),
        ({"windows": [[[1]]], "start": ["2013-06-01", "2013-06-01"]}, "start"),
        ({"windows": [[[1]]] * 3, "start": ["2013-06-01", "2013-06-01", "2013-06-31"]}, "start[2]"),
        ({"windows": [[[1]]] * 2, "start": ["2013-06-01", None]}, "start[1]"),
        ({"window": [[1]], "future": [[1, None]]}, "future[0][1]"),
        ({"windows": [[[1]]] * 2, "future": [[[1]], [[1], [2]]]}, "future[1]"),
        ({"window": [[1]], "static": None}, "static"),
        ({"window": [[1]], "static": 1}, "static"),
        ({"window": [[1]], "static": [1, None]}, "static[1]"),
        ({"window": [[1]], "static": {"area": "1"}}, "static.area"),
        ({"window": [[1]], "static": {"area": True}}, "static.area"),
        ({"window": [[1]], "static": {"area": 1e39}}, "static.area"),
        ({"windows": [[[1]]], "static": {"area": 1}}, "static"),
        ({"windows": [[[1]]], "static": [[1], [1]]}, "static"),
        ({"windows": [[[1]]] * 2, "static": [[1], [[1]]]}, "static[1][0]"),
        ({"window": [[1]], "windows": [[[1]]]}, "body"),
        ({}, "body"),
        ([[1]], "body"),
        (None, "body"),
    ],
)
def test_faults_are_named_by_place(fields: object, place: str) -> None:
    """Well-formed but wrong: the first wrong place is named."""
    with pytest.raises(InvalidError) as refusal:
        read(fields)
    assert refusal.value.places[0].place == place


def test_a_long_start_is_not_repeated() -> None:
    """What is no time may be as long as a body, and the refusal is short all the same."""
    with pytest.raises(InvalidError, match=r"^.{1,200}$"):
        read({"window": [[1]], "start": "z" * 100_000})


def test_unknown_field_names_the_nearest() -> None:
    """A misspelt field is not ignored."""
    with pytest.raises(InvalidError, match="did you mean 'window'"):
        read({"windw": [[1]]})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"window": [[1,]]}',
        b'{"window": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"NaN" + b"[" * 100_000,
        b"1" * 400,
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    """What is no JSON is malformed, however deep it is nested."""
    with pytest.raises(MalformedError):
        codec.read(body, "application/json")


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=20))
def test_reads_every_array_of_numbers(window: list[list[float]]) -> None:
    """Any rectangular window of finite numbers arrives as the nearest float32s."""
    np.testing.assert_array_equal(read({"window": window}).windows[0], np.array(window, np.float32))


@given(st.lists(st.lists(numbers | st.none(), min_size=2, max_size=2), min_size=1, max_size=20))
def test_reads_every_array_with_gaps(window: list[list[float | None]]) -> None:
    """And any with nulls in it, which become NaN."""
    np.testing.assert_array_equal(read({"window": window}).windows[0], np.array(window, np.float32))


nested = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["window", "windows", "future", "static", "start"]), nested, max_size=3))
def test_any_json_is_read_or_refused(fields: dict[str, object]) -> None:
    """Whatever JSON comes, the codec gives finite arrays of the right depth or one of our refusals."""
    try:
        query = read(fields)
    except ForetellError:
        return
    assert all(window.ndim == 2 for window in query.windows)
    assert all(query.gaps or np.isfinite(window).all() for window in query.windows)
    assert not any(np.isinf(window).any() for window in query.windows)


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/csv", "application/x-npy"]))
def test_any_bytes_are_read_or_refused(body: bytes, content_type: str) -> None:
    """Whatever bytes come, too, whatever they are said to be."""
    with contextlib.suppress(MalformedError, InvalidError):
        codec.read(body, content_type)


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e39, -1e39, 3.4028234663852886e38, 1e-46, 2**63, 2**64, -(2**63)]),
)
ODDITIES = st.sampled_from([None, True, False, "1", "", [], [1], {}, {"window": 1}])
TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(str) | st.sampled_from(["2013-06-01", "soon", '"start"'])
STARTS = st.one_of(TIMES, TIMES, st.lists(TIMES, max_size=3), ODDITIES)


@given(st.data())
def test_the_short_way_reads_what_the_long_way_reads(data: st.DataObject) -> None:
    """A body that is nothing but windows and their start is read to the same bits, any other to the same refusal."""
    width = data.draw(st.integers(0, 4))
    item = data.draw(st.sampled_from([NUMBERS, NUMBERS, st.one_of(NUMBERS, ODDITIES)]))
    rows = data.draw(st.lists(st.lists(item, min_size=width, max_size=width), max_size=5))
    if rows and data.draw(st.booleans()):
        rows[data.draw(st.integers(0, len(rows) - 1))] = data.draw(st.one_of(st.lists(item, max_size=5), ODDITIES))
    fields: dict[str, object] = {"window": rows}
    if data.draw(st.booleans()):
        others = data.draw(st.lists(st.sampled_from([rows, rows, rows[1:], rows + rows, [], 1]), max_size=3))
        fields = {"windows": [rows, *others]}
    if data.draw(st.booleans()):
        fields |= {data.draw(st.sampled_from(["start", "start", "start", "state"])): data.draw(STARTS)}
        fields = dict(data.draw(st.permutations(list(fields.items()))))
    body = json.dumps(fields, indent=data.draw(st.sampled_from([None, 1]))).encode()

    assert outcome(body) == outcome_of_long_way(body)


@given(st.text('[]{},:.-+eE0123 \n\f"windowtrufalsn', max_size=40))
@example(",\f")
@example("\f,")
@example(",1,")
@example('","x":"')
@example('","window":[[3]],"start":"2014-01-01')
def test_the_short_way_takes_nothing_that_is_no_json(inside: str) -> None:
    """Whatever stands where the rows should be, the short way answers as the long way does."""
    for body in (
        b'{"window":[[%b]]}',
        b'{"windows":[[[%b]]]}',
        b'{"window":[[1,2],[%b',
        b'{"windows":[[[1]],%b]}',
        b'{"window":[[1,2]]%b"start":"2013-06-01"}',
        b'{"window":[[1,2]],"start"%b"2013-06-01"}',
        b'{"window":[[1,2]],"start":"2013-06-01%b"}',
        b'{"windows":[[[1]]],"start":[%b"2013-06-01"]}',
    ):
        assert outcome(body % inside.encode()) == outcome_of_long_way(body % inside.encode())


def outcome(body: bytes) -> object:
    """The numbers to the last bit, or the refusal."""
    try:
        query = query_in(body)
    except ForetellError as error:
        return str(error)
    shapes = [(window.shape, window.tobytes()) for window in query.windows]
    return shapes, query.start, query.single, query.static, query.places


def outcome_of_long_way(body: bytes) -> object:
    """The same without the short way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bodies, "_read_plain", lambda _: None)
        patch.setattr(json_bodies, "_read_timed", lambda _: None)
        return outcome(body)


def test_most_bodies_go_the_short_way() -> None:
    """Nothing but a window, however it is spaced, is never read twice."""
    for text, shape in (
        ('{"window": [[1, -2.5e3], [3, 4]]}', (1, 2, 2)),
        ('{\n"window":[[1,\t2],\r\n[3,4]]\n}', (1, 2, 2)),
        ('{"windows": [[[1], [2]], [[3], [4]], [[5], [6]]]}', (3, 2, 1)),
    ):
        found = json_bodies._read_plain(text.encode())
        assert found is not None
        assert np.shape(found.windows) == shape


def test_most_bodies_with_a_start_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and then when they begin, as programs write it, is never read twice either."""
    monkeypatch.delattr(json_bodies, "_parse")
    for text, start in (
        ('{"window": [[1, -2.5e3], [3, 4]], "start": "1970-01-01T00:00:01Z"}', [1]),
        ('{"window":[[1]] ,\n"start":"1970-01-01T00:00Z"}', [0]),
        ('{"windows": [[[1], [2]], [[3], [4]]], "start": ["1970-01-01T00:00Z", "1970-01-02T00:00Z"]}', [0, 86_400]),
    ):
        found = query_in(text.encode()).start
        assert found is not None
        assert [time.timestamp() for time in found] == start


# Arrays


def npy(array: np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, **options)
    return content.getvalue()


def read_npy(body: bytes) -> Query:
    return query_in(body, "application/x-npy")


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays(dtype: str, order: str, version: tuple[int, int]) -> None:
    """A window or several, in either precision, order of bytes and order in memory; NaN is a gap."""
    array = np.array([[[1, 2, 3], [4, np.nan, 6]], [[-1, 0, 1e-3], [7, 8, 9]]])
    for sent, single in ((array[0], True), (array, False)):
        query = read_npy(npy(np.asarray(sent, dtype, order=order), version=version))

        np.testing.assert_array_equal(
            query.windows, array[:1].astype(np.float32) if single else array.astype(np.float32)
        )
        assert isinstance(query.windows, np.ndarray)
        assert query.windows.dtype == np.float32
        assert (query.single, query.gaps) == (single, True)


def test_array_without_a_gap() -> None:
    """Says that it has none, so that nobody looks."""
    assert not read_npy(npy(np.ones((2, 3)))).gaps


def header(shape: str = "(2, 3)", descr: str = "'<f4'", *, more: str = "", data: bytes = b"\0" * 24) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {more}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self._folder,)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    """An array of objects is refused for what it is, and none of it comes to life."""
    place = tmp_path / "it happened"
    pickled = npy(np.array([[Bomb(place)]], object), allow_pickle=True)
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it works")))

    for body in (pickled, header(descr="[('x', '|O')]"), header(descr="'|O'"), header(descr="{}")):
        with pytest.raises(InvalidError, match="send float32 or float64"):
            read_npy(body)

    assert [found.name for found in tmp_path.iterdir()] == ["it works"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not .npy"),
        (b"PK\x03\x04", "not .npy"),
        (npy(np.ones((2, 3)))[:20], "not .npy"),
        (npy(np.ones((2, 3)))[:-1], r"not .npy: 47 bytes of numbers for the shape \(2, 3\) of float64"),
        (npy(np.ones((2, 3))) + b"x", "not .npy: 49 bytes of numbers"),
        (header("(10**12, 3)"), "not .npy"),
        (header("(1000000000000, 3)"), "not .npy: 24 bytes of numbers"),
        (header(f"({2**63}, {2**63})"), "not .npy: 24 bytes of numbers"),
        (header("('2', 3)"), "not .npy"),
        (header("2"), "not .npy"),
        (header(descr="'<zz'"), "not .npy"),
        (header("-" * 9000 + "1"), "not .npy"),
        (header("+".join("1" * 4000)), "not .npy"),
        (header(more="'x': 1"), "not .npy"),
        (header("(" * 3000), "not .npy"),
        (header("[" * 90 + "]" * 90), "not .npy"),
        (header("(2, 3" + " " * 20_000 + ")"), "not .npy"),
        (header("__import__('os').getcwd()"), "not .npy"),
        (b"\x93NUMPY\x03\x00" + header()[8:], "not .npy: version"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + header()[8:], "not .npy"),
    ],
)
def test_damaged_arrays(body: bytes, says: str) -> None:
    """What is no array, or not the whole of one, is malformed; no memory is taken for what a header claims."""
    with pytest.raises(MalformedError, match=says):
        read_npy(body)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((2, 3), np.float16), "array: its numbers are float16; send float32 or float64"),
        (np.ones((2, 3), np.int64), "array: its numbers are int64"),
        (np.ones((2, 3), np.complex64), "array: its numbers are complex64"),
        (np.ones((2, 3), np.longdouble), "array: its numbers are"),
        (np.array([["1"]]), "array: its numbers are <U1"),
        (np.ones(3), "array: 1 dimensions"),
        (np.float64(3), "array: 0 dimensions"),
        (np.ones((1, 1, 1, 1)), "array: 4 dimensions"),
        (np.ones((2, 0)), r"array: its shape is \(2, 0\)"),
        (np.ones((0, 2, 3)), "array: its shape is"),
        (np.array([[1, 2], [3, np.inf]]), r"array\[1\]\[1\]: inf is not a finite 32-bit number"),
        (np.array([[[1, 2]], [[-1e39, 4]]]), r"array\[1\]\[0\]\[0\]: -1e\+39 is not a finite"),
    ],
)
def test_wrong_arrays(array: object, says: str) -> None:
    """What is an array and no windows of numbers says so."""
    with pytest.raises(InvalidError, match=f"^{says}"):
        read_npy(npy(np.asarray(array)))


def test_negative_shapes_are_wrong() -> None:
    """Two of them would have a product like any other."""
    with pytest.raises(InvalidError, match="its shape is"):
        read_npy(header("(-2, -3)"))


def test_a_signalling_nan_is_a_gap() -> None:
    """It is turned into another precision without a word."""
    array = np.frombuffer(b"\x01\0\0\0\0\0\xf0\x7f", np.float64).reshape(1, 1)

    assert np.isnan(read_npy(npy(array)).windows).all()


@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_damage_is_refused_or_read(rubbish: bytes, place: int) -> None:
    """An array with anything written over a part of it is read or refused."""
    body = npy(np.ones((2, 3), np.float32))
    with contextlib.suppress(MalformedError, InvalidError):
        read_npy(body[:place] + rubbish + body[place + len(rubbish) :])
