"""Tensors of the Open Inference Protocol: each body is refused with a place, or read as NumPy reads its bytes."""

import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from app.asked.layout import lay_out
from app.asked.tensors import WINDOW, inputs_of
from app.codec import inference, tensors, timeseries
from app.errors import ForetellError, InvalidError
from app.packing import packing_of
from app.schemas.inference import InferParameters
from models.spec import Gaps, Spec
from tests.app.specs import spec_of
from tests.fuzz import tries
from tests.fuzz.rubbish import NO_NUMBERS, NUMBERS, damaged

LARGEST = float(np.finfo(np.float32).max)
SPECS = [
    spec_of(("target", "past")),
    spec_of(("target", "past"), gaps=Gaps(method="carry_forward", limit=2), shortest=1, clock=True),
    spec_of(("target", "future", "static")),
]
_TYPES = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "INT64": np.dtype("<i8")}
_MOST_DIMENSIONS = 4


def refused(read: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever it reads
    """What is read, None where it is refused."""
    try:
        return read()
    except ForetellError as error:
        check(error)
        return None


def check(error: ForetellError) -> None:
    """It is a client's own fault, and can be told."""
    assert error.status in (400, 422), repr(error)
    assert error.detail
    assert isinstance(error, InvalidError) == bool(error.places)
    error.detail.encode()


def whole(body: bytes, length: bytes | None, spec: Spec) -> Any:  # noqa: ANN401
    """All that a request goes through before it is computed."""
    asked = tensors.read(body, length, WINDOW)
    parameters = InferParameters.read(asked.parameters)
    inference.chosen(asked, spec, parameters.level)
    query = inference.query_of(asked, spec)
    try:
        return lay_out(query, spec, parameters.steps or spec.horizon, most=100)
    except InvalidError as error:
        renamed = inference.renamed(error)
        assert not any(place.startswith(("query.", "start", "future", "static")) for place, _ in renamed.places)
        raise renamed from error


def right(spec: Spec, windows: int, binary: bool) -> tuple[bytes, bytes | None]:
    """A request that fits, and how much of it is JSON."""
    described, behind = [], b""
    for name, datatype, shape in inputs_of(spec):
        sizes = [windows, *(3 if size == -1 else size for size in shape[1:])]
        values = np.arange(math.prod(sizes)).astype(_TYPES[datatype])
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": sizes}
        if binary:
            behind += values.tobytes()
            one["parameters"] = {"binary_data_size": values.nbytes}
        else:
            one["data"] = values.tolist()
        described.append(one)
    head = json.dumps({"id": "x", "parameters": {"steps": 2}, "inputs": described}).encode()
    return head + behind, b"%d" % len(head) if binary else None


specs = st.sampled_from(SPECS)
lengths = st.one_of(
    st.none(), st.integers(-2, 300).map(lambda size: b"%d" % size), st.binary(max_size=25), st.just(b"9" * 5000)
)
tokens = tuple(token.encode() for token in [*NUMBERS, *NO_NUMBERS, "null", "[", "]", '"shape"', '"FP64"', "9" * 400])


@tries(20)
@given(specs, st.integers(1, 3), st.booleans())
def test_right_ones_are_read(spec: Spec, windows: int, binary: bool) -> None:
    """What the fuzzers damage is sound to begin with."""
    layout = whole(*right(spec, windows, binary=binary), spec)
    assert layout.windows.shape == (windows, spec.window, len(spec.features))


@tries(600)
@given(specs, st.integers(1, 3), st.booleans(), st.data())
def test_damaged_bodies(spec: Spec, windows: int, binary: bool, data: st.DataObject) -> None:
    """Of bytes, lengths, names and numbers that are nearly right, the answer is a refusal or finite numbers."""
    body, length = right(spec, windows, binary=binary)
    body = data.draw(damaged(st.just(body), tokens))
    length = data.draw(st.one_of(st.just(length), lengths))
    layout = refused(lambda: whole(body, length, spec))
    if layout is not None:
        present = layout.windows[~np.isnan(layout.windows)]
        assert np.isfinite(present).all()
        assert isinstance(spec.gaps, Gaps) or present.size == layout.windows.size


@tries(300)
@given(specs, st.binary(max_size=200), lengths)
@example(SPECS[0], b'{"inputs":[{"name":"WINDOW","datatype":"FP32","shape":[1],"data":[NaN]}],"id":"\\ud800"}', None)
@example(SPECS[0], b'{"inputs":' + b"[" * 5000, None)
@example(SPECS[0], b'{"NaN":1,"inputs":' + b"[" * 5000, None)
@example(SPECS[0], b"", b"0")
@example(SPECS[0], b"x" * 32, b"0")
def test_rubbish(spec: Spec, body: bytes, length: bytes | None) -> None:
    """Bytes that nobody meant to be a request."""
    refused(lambda: whole(body, length, spec))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
tensor_like = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["WINDOW", "TIME", "FUTURE", "STATIC", "X"]) | json_values,
        "datatype": st.sampled_from([*_TYPES, "FP16", "BYTES"]) | json_values,
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=_MOST_DIMENSIONS) | json_values,
    },
    optional={"data": json_values, "parameters": json_values, "x": json_values},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensor_like, max_size=4) | json_values},
    optional={
        "id": json_values,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["FORECAST", "LOWER_80", "Y"])})),
        "parameters": st.dictionaries(st.sampled_from([*InferParameters.model_fields, "x", ""]), json_values),
    },
)


@tries(250)
@given(specs, requests)
def test_json_of_any_shape(spec: Spec, request: Any) -> None:  # noqa: ANN401
    """Objects with the right names and anything in them."""
    refused(lambda: whole(json.dumps(request).encode("utf-8", "surrogatepass"), None, spec))


@tries(300)
@given(
    st.sampled_from(["FP32", "FP64"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_numbers_are_those_of_the_bytes(
    datatype: str, shape: list[int], flat: bool, gaps: bool, data: st.DataObject
) -> None:
    """Whatever bits: NumPy's float32 of them, or a refusal where any is infinite, too large or a NaN too many."""
    dtype = _TYPES[datatype]
    count = math.prod(shape)
    packed = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    # Not aligned, as bytes behind JSON are not.
    view = memoryview(b"x" + packed)[1:]
    values = np.frombuffer(packed, dtype).reshape(shape)
    with np.errstate(invalid="ignore"):
        sound = (np.abs(values) <= LARGEST) | (np.isnan(values) & gaps)
    found = refused(lambda: tensors.floats(tensors.Given("X", "inputs[0]", datatype, tuple(shape), view), gaps=gaps))
    assert (found is not None) == bool(sound.all())
    if found is None:
        return
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found, values.astype(np.float32))
    assert found.flags.aligned
    listed = json.loads(json.dumps((values.ravel() if flat else values).tolist()).replace("NaN", "null"))
    again = tensors.floats(tensors.Given("X", "inputs[0]", datatype, tuple(shape), listed), gaps=gaps)
    np.testing.assert_array_equal(again, found)


@tries(200)
@given(st.lists(st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none(), min_size=1, max_size=5))
def test_whole_numbers(values: list[Any]) -> None:
    """Those of 64 bits, and nothing else that Python would take for a number."""
    found = refused(lambda: tensors.integers(tensors.Given("X", "inputs[0]", "INT64", (len(values),), values)))
    sound = all(type(value) is int and -(2**63) <= value < 2**63 for value in values)
    assert (found is not None) == sound
    if sound:
        assert found.tolist() == values
        as_bytes = memoryview(struct.pack(f"<{len(values)}q", *values))
        given_ = tensors.Given("X", "inputs[0]", "INT64", (len(values),), as_bytes)
        assert tensors.integers(given_).tolist() == values


@tries(100)
@given(specs, st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=8), st.booleans())
@example(SPECS[0], [2**31 - 1] * 3, True)
def test_no_memory_on_the_word_of_a_shape(spec: Spec, shape: list[int], binary: bool) -> None:
    """Sizes of a shape multiply to anything; what is made room for is what was sent."""
    one: dict[str, Any] = {"name": "WINDOW", "datatype": "FP64", "shape": shape}
    one |= {"parameters": {"binary_data_size": 64}} if binary else {"data": [1.0] * 8}
    head = json.dumps({"inputs": [one]}).encode()
    body, length = (head + bytes(64), b"%d" % len(head)) if binary else (head, None)
    tracemalloc.start()
    try:
        refused(lambda: whole(body, length, spec))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@tries(200)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=3),
            st.lists(st.integers(0, 3), min_size=3, max_size=3),
            st.booleans(),
        ),
        max_size=3,
    )
)
def test_answers_are_read_again(described: list[tuple[str, list[int], bool]]) -> None:
    """Every tensor comes out as it went in, whichever of them are bytes."""
    outputs = [
        tensors.Output(name, np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + 0.1, binary)
        for name, shape, binary in described
    ]
    body, length = tensors.write(outputs, {"model_name": "x"})
    head, rest = (json.loads(body[:length]), body[length:]) if length is not None else (json.loads(body), b"")
    assert (length is None) == (not any(output.binary for output in outputs))
    for output, one in zip(outputs, head["outputs"], strict=True):
        if output.binary:
            size = one["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
        else:
            values = np.array(one["data"], np.float32)
        np.testing.assert_array_equal(values.reshape(one["shape"]), output.values)
    assert rest == b""


@tries(200)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from([b"gzip", b"deflate", b";q=", b"0", b"1", b","])).map(b"".join)
)
@example(b"gzip;q=nan")
@example(b"gzip;q=inf")
def test_encodings_that_clients_take(accepted: bytes) -> None:
    """Whatever the header says, an answer is packed in a way that it names, or not at all."""
    name = packing_of(accepted, 10_000)
    assert name is None or name.encode() in accepted.lower()


series_like = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["univariate_time_series", "multivariate_time_series"]) | json_values,
        "name": st.just("x") | json_values,
        "series": st.lists(st.floats(width=32) | st.none(), max_size=6)
        | st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=2), max_size=6)
        | json_values,
        "frequency": st.sampled_from(["H", "hour", "M", "D"]) | json_values,
    },
    optional={"start_timestamp": st.just("2026-01-01T00:00:00Z") | json_values, "x": json_values},
)
series_requests = st.fixed_dictionaries(
    {
        "model": st.just("x") | json_values,
        "inputs": st.lists(series_like, max_size=3) | json_values,
        "options": st.fixed_dictionaries(
            {"horizon": st.integers(-1, 3) | json_values},
            optional={"quantiles": st.lists(st.floats(0, 1), max_size=3) | json_values, "y": json_values},
        ),
    }
)


@tries(150)
@given(specs, series_requests)
def test_time_series_of_any_shape(spec: Spec, request: Any) -> None:  # noqa: ANN401
    """KServe's requests with anything in them."""

    def read() -> object:
        asked = timeseries.read(json.dumps(request).encode("utf-8", "surrogatepass"))
        try:
            return lay_out(timeseries.query_of(asked, spec), spec, asked.horizon, most=100)
        except InvalidError as error:
            raise timeseries.renamed(error) from error

    layout = refused(read)
    if layout is not None:
        assert not np.isinf(layout.windows).any()
