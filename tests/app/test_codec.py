"""Bodies to arrays: what is read, and the place that is named when it is not."""

import contextlib
import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from app import codec
from app.errors import ForetellError, InvalidError, MalformedError, MediaTypeError
from app.predictor import Query


def read(fields: object) -> Query:
    return codec.read(json.dumps(fields).encode(), "application/json")


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2013-06-01T12:30:00Z", 1_370_089_800),
        ("2013-06-01T12:30Z", 1_370_089_800),
        ("2013-06-01t12:30:00z", 1_370_089_800),
        ("2013-06-01T12:30:00", 1_370_089_800),
        ("2013-06-01 12:30:00", 1_370_089_800),
        ("2013-06-01T14:30:00+02:00", 1_370_089_800),
        ("2013-06-01T07:00:00-0530", 1_370_089_800),
        ("2013-06-01T12:30:00.250000Z", 1_370_089_800.25),
        ("2013-06-01", 1_370_044_800),
        ("2016-02-29T00:00:00Z", 1_456_704_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_start(text: str, seconds: float) -> None:
    """A time is ISO 8601; without an offset it is UTC, as in training."""
    start = read({"window": [[1]], "start": text}).start
    assert start is not None
    assert start.tolist() == [seconds * 1_000_000]


def test_starts_have_the_order_of_the_windows() -> None:
    """Beside several windows `start` is a list of as many times, also when there is but one."""
    two = read({"windows": [[[1]], [[2]]], "start": ["2013-06-01", "1970-01-01"]}).start
    one = read({"windows": [[[1]]], "start": ["1970-01-02"]}).start
    assert two is not None
    assert one is not None
    assert (two.tolist(), one.tolist()) == ([1_370_044_800_000_000, 0], [86_400_000_000])


@pytest.mark.parametrize("content_type", [None, "application/json", "Application/JSON; charset=utf-8"])
def test_content_type_of_json(content_type: str | None) -> None:
    """JSON by any spelling of its name, and where a client names none."""
    assert codec.read(b'{"window": [[1]]}', content_type).windows.shape == (1, 1, 1)


def test_other_content_types_are_refused() -> None:
    """The refusal says what is read."""
    with pytest.raises(MediaTypeError, match="application/json"):
        codec.read(b"", "text/plain")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"window": [[1, 2], [3]]}, "window[1]"),
        ({"window": [[1, 2], [3, None]]}, "window[1][1]"),
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
        ({"windows": [[[1]], [[2], [3]]]}, "windows[1]"),
        ({"windows": [[[1]], [[None]]]}, "windows[1][0][0]"),
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
        ({"window": [[1]], "start": "1969-12-31T23:59:59Z"}, "start"),
        ({"window": [[1]], "start": "1970-01-01T00:00:00+00:01"}, "start"),
        ({"window": [[1]], "start": "0001-01-01T00:00:00+05:00"}, "start"),
        ({"window": [[1]], "start": "9999-12-31T23:59:59-05:00"}, "start"),
        ({"window": [[1]], "start": "10000-01-01T00:00:00Z"}, "start"),
        ({"windows": [[[1]]], "start": "2013-06-01"}, "start"),
        ({"windows": [[[1]]], "start": []}, "start"),
        ({"windows": [[[1]]], "start": ["2013-06-01", "2013-06-01"]}, "start"),
        ({"windows": [[[1]]] * 3, "start": ["2013-06-01", "2013-06-01", "2013-06-31"]}, "start[2]"),
        ({"windows": [[[1]]] * 2, "start": ["2013-06-01", None]}, "start[1]"),
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


def test_a_start_out_of_range_is_named() -> None:
    """Who sends one reads which it was and what may be sent."""
    with pytest.raises(InvalidError, match=r"start\[1\]: '1969-07-20T20:17:00Z' is not within the years 1970 to 9999"):
        read({"windows": [[[1]]] * 2, "start": ["2013-06-01", "1969-07-20T20:17:00Z"]})


def test_a_long_start_is_not_repeated() -> None:
    """What is no time may be as long as a body, and the refusal is short all the same."""
    for start in ("z" * 100_000, f"1969-12-31T00:00:00.{'0' * 100_000}Z"):
        with pytest.raises(InvalidError, match=r"^.{1,200}$"):
            read({"window": [[1]], "start": start})


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


nested = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["window", "windows", "future", "start"]), nested, max_size=3))
def test_any_json_is_read_or_refused(fields: dict[str, object]) -> None:
    """Whatever JSON comes, the codec gives finite arrays of the right depth or one of our refusals."""
    try:
        query = read(fields)
    except ForetellError:
        return
    assert query.windows.ndim == 3
    assert np.isfinite(query.windows).all()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Whatever bytes come, too."""
    with contextlib.suppress(MalformedError, InvalidError):
        assert np.isfinite(codec.read(body, "application/json").windows).all()


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
        query = codec.read(body, None)
    except ForetellError as error:
        return str(error)
    return query.windows.shape, query.windows.tobytes(), None if query.start is None else query.start.tolist()


def outcome_of_long_way(body: bytes) -> object:
    """The same without the short way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_read_plain", lambda _: None)
        patch.setattr(codec, "_read_timed", lambda _: None)
        return outcome(body)


def test_most_bodies_go_the_short_way() -> None:
    """Nothing but a window, however it is spaced, is never read twice."""
    for text, shape in (
        ('{"window": [[1, -2.5e3], [3, 4]]}', (1, 2, 2)),
        ('{\n"window":[[1,\t2],\r\n[3,4]]\n}', (1, 2, 2)),
        ('{"windows": [[[1], [2]], [[3], [4]], [[5], [6]]]}', (3, 2, 1)),
    ):
        found = codec._read_plain(text.encode())
        assert found is not None
        assert found.windows.shape == shape


def test_most_bodies_with_a_start_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and then when they begin, as programs write it, is never read twice either."""
    monkeypatch.delattr(codec, "_parse")
    for text, start in (
        ('{"window": [[1, -2.5e3], [3, 4]], "start": "1970-01-01T00:00:01Z"}', [1_000_000]),
        ('{"window":[[1]] ,\n"start":"1970-01-01"}', [0]),
        ('{"windows": [[[1], [2]], [[3], [4]]], "start": ["1970-01-01", "1970-01-02"]}', [0, 86_400_000_000]),
    ):
        found = codec.read(text.encode(), None).start
        assert found is not None
        assert found.tolist() == start
