"""The Open Inference Protocol's tensors (V2, REST): JSON, and bytes behind the JSON (binary tensor data extension).

A body is JSON, or JSON of so many bytes as the header `Inference-Header-Content-Length` says and then the bytes of the
tensors in their order, little-endian and row by row. No memory is taken on the word of a shape.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from app.codec.json_bodies import first_fault, kind, once
from app.errors import InvalidError, MalformedError, Place
from app.ticket import Floats, Times

LENGTH = b"inference-header-content-length"
"""The header that says how much of a body is JSON."""

_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_ECHO = 80
_MOST_DIGITS = 18
_MOST_SIZE = 2**31 - 1
_MOST_TENSORS = 100
_FIELDS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
"""The last two are KServe's, and say again what the path says."""
_INPUT_FIELDS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_FIELDS = ("name", "parameters")
_SIZE, _BINARY, _BINARY_ALL = "binary_data_size", "binary_data", "binary_data_output"
_FLOATS, _INTEGERS = {"FP32": "<f4", "FP64": "<f8"}, {"INT64": "<i8"}
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


class Given(NamedTuple):
    """A tensor of a request, its numbers not looked at yet."""

    name: str
    place: str
    """In the body."""
    datatype: str
    shape: tuple[int, ...]
    data: Any
    """Lists of numbers, nested or flat, or a view of bytes."""


class Wanted(NamedTuple):
    """An output that is asked for by name."""

    name: str
    place: str
    binary: bool


class Inference(NamedTuple):
    """What a body asks."""

    inputs: list[Given]
    outputs: list[Wanted] | None
    """None where all are wanted."""
    parameters: Mapping[str, Any]
    """Without those that say how tensors are written."""
    id: str | None
    binary: bool
    """Whether outputs that are not asked for by name are answered in bytes."""


class Output(NamedTuple):
    """A tensor of an answer."""

    name: str
    values: Floats
    binary: bool


def read(body: bytes, length: bytes | None, raw: str) -> Inference:
    """What a body asks, of which the header says that so much is JSON. Where that is nothing, the body is one FP32
    tensor called `raw`, all of it.

    MalformedError, or InvalidError naming the place.
    """
    size = len(body) if length is None else _length(length, len(body))
    if length is not None and not size:
        given = Given(raw, "body", "FP32", (), memoryview(body))
        return Inference([given], None, {}, None, binary=True)
    head, rest = body[:size], memoryview(body)[size:]
    fields = _fields(parse(head), _FIELDS, "body", "")
    identity = fields.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidError(Place("id", f"a string is needed, not {kind(identity)}"))
    parameters = _parameters(fields, "")
    binary = _flag(parameters.pop(_BINARY_ALL, False), f"parameters.{_BINARY_ALL}")
    inputs = _inputs(fields, rest)
    outputs = None
    if fields.get("outputs"):
        outputs = _outputs(fields["outputs"], binary=binary)
    return Inference(inputs, outputs, parameters, identity, binary)


def floats(given: Given, *, gaps: bool = False) -> Floats:
    """Its numbers as float32, all finite but, with `gaps`, NaN (null in JSON). InvalidError names the place."""
    if given.datatype not in _FLOATS:
        raise _datatype(given, _FLOATS)
    values: NDArray[Any]
    if isinstance(given.data, memoryview):
        values = _from_bytes(given, _FLOATS[given.datatype])
        _check_finite(given, values, gaps=gaps)
    else:
        values = _from_list(given, gaps=gaps)
    # A signalling NaN is a NaN.
    with np.errstate(invalid="ignore"):
        return np.require(values, np.float32, ("C", "A"))


def integers(given: Given) -> Times:
    """Its numbers as int64; InvalidError names the place."""
    if given.datatype not in _INTEGERS:
        raise _datatype(given, _INTEGERS)
    if isinstance(given.data, memoryview):
        return np.require(_from_bytes(given, _INTEGERS[given.datatype]), np.int64, ("C", "A"))
    flat, depth = _flat(given)
    for index, value in enumerate(flat):
        if type(value) is not int or not -(2**63) <= value < 2**63:
            place = f"{given.place}.data" if depth > 1 else f"{given.place}.data[{index}]"
            shown = repr(value)[:_LONGEST_ECHO] if isinstance(value, int | float) else kind(value)
            raise InvalidError(Place(place, f"whole numbers of 64 bits are needed, not {shown}"))
    return np.array(flat, np.int64).reshape(given.shape)


def write(outputs: Sequence[Output], said: Mapping[str, object]) -> tuple[bytes, int | None]:
    """The body of an answer that also says `said`; how much of it is JSON where it is not all."""
    described: list[dict[str, object]] = []
    behind: list[bytes] = []
    for name, values, binary in outputs:
        tensor: dict[str, object] = {"name": name, "datatype": "FP32", "shape": values.shape}
        if binary:
            behind.append(np.ascontiguousarray(values, "<f4").tobytes())
            tensor["parameters"] = {_SIZE: len(behind[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(values).ravel()
        described.append(tensor)
    head = orjson.dumps({**said, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *behind)), len(head)) if behind else (head, None)


def parse(body: bytes) -> Any:  # noqa: ANN401  JSON can be anything until it is looked at
    """JSON, and beside it the tokens that Triton and its clients write: NaN is null, for a gap, and Infinity is told
    where it stands. MalformedError.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        malformed = MalformedError(f"not JSON: {error}")
        if b"NaN" not in body and b"Infinity" not in body:
            raise malformed from None
    # Half a surrogate pair could not be repeated in an answer.
    if _HALF_A_PAIR.search(body):
        raise malformed
    try:
        return json.loads(body, object_pairs_hook=once, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise malformed from None


def object_of(value: object, known: Sequence[str], place: str) -> dict[str, Any]:
    """An object that has no other fields than these; InvalidError naming the place."""
    return _fields(value, known, place, f"{place}.")


def _constant(token: str) -> float | None:
    return None if token == "NaN" else float(token)  # noqa: S105  of JSON, no secret


def _length(said: bytes, most: int) -> int:
    text = said.strip()
    if not text.isdigit() or len(text) > _MOST_DIGITS or int(text) > most:
        shown = text[:_LONGEST_ECHO].decode("latin-1")
        raise MalformedError(f"Inference-Header-Content-Length: {shown!r} is not a length within the {most} bytes sent")
    return int(text)


def _fields(value: object, known: Sequence[str], place: str, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidError(Place(place, f"an object is needed, not {kind(value)}"))
    for name in value:
        if name not in known:
            shown = name[:_LONGEST_ECHO]
            near = difflib.get_close_matches(shown, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidError(Place(f"{prefix}{shown}" or "''", f"unknown field{hint}"))
    return value


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidError(Place(place, f"a list is needed, not {kind(value)}"))
    if not 0 < len(value) <= _MOST_TENSORS:
        raise InvalidError(Place(place, f"{len(value)} of them; 1 to {_MOST_TENSORS} are taken"))
    return value


def _name(fields: Mapping[str, Any], place: str, names: set[str]) -> str:
    name = fields.get("name")
    if not isinstance(name, str):
        raise InvalidError(Place(f"{place}.name", "needed: a string"))
    if name in names:
        raise InvalidError(Place(f"{place}.name", f"{name[:_LONGEST_ECHO]!r} is there twice"))
    names.add(name)
    return name


def _parameters(fields: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = fields.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidError(Place(f"{prefix}parameters", f"an object is needed, not {kind(found)}"))
    return dict(found)


def _no_others(parameters: Mapping[str, Any], place: str) -> None:
    """InvalidError where any parameter is left that says nothing here."""
    for name in parameters:
        shown = name[:_LONGEST_ECHO]
        if name.startswith("shared_memory"):
            problem = "there is no shared memory with clients; send the tensor in the body"
        elif name == "classification":
            problem = "there are no classes in a forecast"
        else:
            problem = "unknown parameter"
        raise InvalidError(Place(f"{place}.parameters.{shown}", problem))


def _flag(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(Place(place, f"true or false is needed, not {kind(value)}"))
    return value


def _inputs(fields: Mapping[str, Any], rest: memoryview) -> list[Given]:
    if "inputs" not in fields:
        raise InvalidError(Place("inputs", "needed: a list of tensors"))
    found: list[Given] = []
    names: set[str] = set()
    used = 0
    for index, one in enumerate(_list(fields["inputs"], "inputs")):
        place = f"inputs[{index}]"
        tensor = _fields(one, _INPUT_FIELDS, place, f"{place}.")
        parameters = _parameters(tensor, f"{place}.")
        size = parameters.pop(_SIZE, None)
        _no_others(parameters, place)
        data = tensor.get("data")
        if (size is None) == (data is None):
            raise InvalidError(Place(place, f"exactly one of 'data' and 'parameters.{_SIZE}' is needed"))
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest) - used:
                left = len(rest) - used
                problem = f"not a number of bytes within the {left} that are left behind the JSON"
                raise InvalidError(Place(f"{place}.parameters.{_SIZE}", problem))
            data = rest[used : used + size]
            used += size
        name, datatype = _name(tensor, place, names), tensor.get("datatype")
        if not isinstance(datatype, str):
            raise InvalidError(Place(f"{place}.datatype", "needed: a string, such as FP32"))
        found.append(Given(name, place, datatype, _shape(tensor.get("shape"), place), data))
    if used != len(rest):
        raise MalformedError(
            f"{len(rest)} bytes behind the JSON, of which the inputs are {used}: see Inference-Header-Content-Length "
            f"and {_SIZE}"
        )
    return found


def _shape(value: object, place: str) -> tuple[int, ...]:
    place = f"{place}.shape"
    if not isinstance(value, list) or not value:
        raise InvalidError(Place(place, "needed: a list of sizes, such as [1, 168, 6]"))
    for index, size in enumerate(value):
        if type(size) is not int or not 0 < size <= _MOST_SIZE:
            raise InvalidError(Place(f"{place}[{index}]", "a size is a whole number from 1 on"))
    return tuple(value)


def _outputs(value: object, *, binary: bool) -> list[Wanted]:
    found: list[Wanted] = []
    names: set[str] = set()
    for index, one in enumerate(_list(value, "outputs")):
        place = f"outputs[{index}]"
        tensor = _fields(one, _OUTPUT_FIELDS, place, f"{place}.")
        parameters = _parameters(tensor, f"{place}.")
        own = _flag(parameters.pop(_BINARY, binary), f"{place}.parameters.{_BINARY}")
        _no_others(parameters, place)
        found.append(Wanted(_name(tensor, place, names), f"{place}.name", own))
    return found


def _datatype(given: Given, taken: Iterable[str]) -> InvalidError:
    problem = f"{given.datatype[:_LONGEST_ECHO]!r} is not taken for {given.name[:_LONGEST_ECHO]}; send "
    return InvalidError(Place(f"{given.place}.datatype", problem + " or ".join(taken)))


def _from_bytes(given: Given, dtype: str) -> NDArray[Any]:
    needed = math.prod(given.shape) * np.dtype(dtype).itemsize
    if len(given.data) != needed:
        problem = f"{len(given.data)} bytes, but the shape {list(given.shape)} of {given.datatype} has {needed}"
        raise InvalidError(Place(given.place, problem[: _LONGEST_ECHO * 4]))
    return np.frombuffer(given.data, dtype).reshape(given.shape)


def _check_finite(given: Given, values: NDArray[Any], *, gaps: bool) -> None:
    # Even to look at a signalling NaN is told.
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(values) <= _LARGEST)
        if gaps:
            wrong &= ~np.isnan(values)
    if wrong.any():
        index = np.argwhere(wrong)[0].tolist()
        problem = f"{values[tuple(index)]} is not a finite 32-bit number"
        raise InvalidError(Place(given.name + "".join(f"[{one}]" for one in index), problem))


def _flat(given: Given) -> tuple[list[Any], int]:
    """Its data in one list, as many as the shape says, and how deep they lay; InvalidError naming the place."""
    place, data, shape = f"{given.place}.data", given.data, given.shape
    nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)
    depth = len(shape) if nested else 1
    lengths: list[int] = []
    try:
        for level in range(depth):
            if level:
                data = list(chain.from_iterable(data))
            lengths.append(len(data))
            # Strings and objects have a length as well.
            if level < depth - 1 and set(map(type, data)) != {list}:
                raise TypeError  # noqa: TRY301  told like the others
            if level < depth - 1 and len(set(map(len, data))) != 1:
                raise ValueError  # noqa: TRY301  told like the others
        if not isinstance(given.data, list):
            raise TypeError  # noqa: TRY301  told like the others
    except (TypeError, ValueError):
        raise InvalidError(first_fault(given.data, place, depth, gaps=True)) from None
    sizes = [math.prod(shape[: level + 1]) for level in range(depth)] if nested else [math.prod(shape)]
    if lengths != sizes:
        found = " x ".join(map(str, (one // before for before, one in zip([1, *lengths], lengths, strict=False))))
        raise InvalidError(Place(place, f"{found} numbers, but the shape is {list(shape)}"))
    return data, depth


def _from_list(given: Given, *, gaps: bool) -> NDArray[np.float64]:
    flat, depth = _flat(given)
    kinds = set(map(type, flat))
    try:
        if not kinds <= ({int, float, type(None)} if gaps else {int, float}):
            raise TypeError  # noqa: TRY301  told like the others
        missing = flat.count(None) if type(None) in kinds else 0
        values = np.array([math.nan if one is None else one for one in flat] if missing else flat, np.float64)
        if np.count_nonzero(np.abs(values) <= _LARGEST) + missing != len(values):
            raise ValueError  # noqa: TRY301  told like the others
    except (TypeError, ValueError, OverflowError):
        raise InvalidError(first_fault(given.data, f"{given.place}.data", depth, gaps=gaps)) from None
    return values.reshape(given.shape)
