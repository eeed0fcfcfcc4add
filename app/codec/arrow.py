"""Apache Arrow's IPC streams and files to the cells of a table, and forecasts to streams.

What comes is not trusted, as https://arrow.apache.org/docs/format/Security.html asks: the reader checks the metadata,
but of the values it believes what they say, so a column is validated in full before it is looked at, and one that
nobody asks for is never looked at. What the reader would take memory for is added up before it reads.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.asked.cells import LARGEST, LONGEST_ECHO, Called, named, not_finite, time_of
from app.asked.sheet import Sheet
from app.codec.answers import columns_of, moments_of, told_apart
from app.errors import BodyTooLargeError, InvalidError, MalformedError, Place
from app.forecasts.predictor import Forecast

CALLED = Called("arrow", "arrow schema")
_MAGIC, _END = b"ARROW1\0\0", b"ARROW1"
"""How a file begins and ends; before the end stands a footer and how long that is."""
_BLOCK, _BUFFER = struct.Struct("<qi4xq"), struct.Struct("<qq")
"""Of a message its place, and the bytes of its head and its body; of a buffer its place and bytes."""
_BATCHES = ("record batch", "dictionary")
_UNITS = {"s": Fraction(1_000_000), "ms": Fraction(1000), "us": Fraction(1), "ns": Fraction(1, 1000)}
"""Microseconds in each."""
_DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  wall-clock time, whose zone the model knows
_FIRST, _LAST = ((end - _EPOCH) // timedelta(microseconds=1) for end in (datetime.min, datetime.max))  # noqa: DTZ901  likewise
_NO_TIME, _BEYOND = "no time", "the time is not within the years 1970 to 9999"
_WRONG = (
    pa.ArrowException,
    EOFError,
    SystemError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    struct.error,
)
"""What pyarrow raises of bytes that are no Arrow; SystemError where a length is below nothing."""


def read(body: bytes, most_bytes: int) -> Sheet:
    """The cells of a stream or a file; MalformedError, BodyTooLargeError where more than `most_bytes` would come out of
    it, or InvalidError.
    """
    content = pa.py_buffer(body)
    is_file = body.startswith(_MAGIC)
    # Without threads: the machine's cores are spoken for.
    options = pa.ipc.IpcReadOptions(use_threads=False)
    try:
        _check_messages(_in_file(content) if is_file else _in_stream(content), most_bytes)
        if is_file:
            with pa.ipc.open_file(content, options=options) as reader:
                found = map(reader.get_batch, range(reader.num_record_batches))
                names, batches = reader.schema.names, _read(found, most_bytes)
        else:
            with pa.ipc.open_stream(content, options=options) as reader:
                names, batches = reader.schema.names, _read(reader, most_bytes)
    except _WRONG as error:
        raise _malformed(error) from None
    if not batches:
        raise InvalidError(Place(CALLED.table, "no rows"))
    return Sheet(names, _Typed(names, batches, most_bytes))


def written(forecast: Forecast) -> bytes:
    """The answer as a stream: the columns of the CSV answer, typed, and in the metadata what they are of."""
    told = {
        "model": forecast.model.name,
        "version": forecast.model.version,
        "digest": forecast.model.digest,
        "steps": forecast.forecast.shape[1],
    }
    if forecast.intervals is not None:
        beside = {"extrapolated_from": forecast.intervals.extrapolated_from, "actuals": forecast.intervals.actuals}
        told |= {name: value for name, value in beside.items() if value is not None}
    steps = forecast.forecast.shape[1]
    columns: dict[str, pa.Array] = {}
    called = told_apart(forecast)
    if called is not None:
        name, names = called
        kind = pa.int64() if isinstance(names, range) else pa.string()
        columns[name] = pa.array([one for one in names for _ in range(steps)], kind)
    moments = moments_of(forecast)
    if moments is not None:
        spec = forecast.spec
        columns[spec.time] = pa.array(moments.ravel()).view(pa.timestamp("us", spec.timezone))
    columns["step"] = pa.array(np.tile(np.arange(1, steps + 1, dtype=np.int32), len(forecast.forecast)))
    columns |= {name: pa.array(values) for name, values in columns_of(forecast).items()}
    batch = pa.record_batch(columns, metadata={name: str(value) for name, value in told.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _malformed(error: Exception) -> MalformedError:
    problem = str(error).partition("\n")[0][: 2 * LONGEST_ECHO]
    return MalformedError(f"not Arrow IPC: {problem or type(error).__name__}")


def _read(found: Iterable[pa.RecordBatch], most: int) -> list[pa.RecordBatch]:
    """Those with rows in them."""
    batches, cells = [], 0
    for batch in found:
        # A column of nothing takes no bytes for any number of rows.
        cells += batch.num_rows * max(1, batch.num_columns)
        if not 0 <= cells <= most:
            raise BodyTooLargeError(f"the body may have at most {most} cells")
        if batch.num_rows:
            batches.append(batch)
    return batches


# What the messages say of themselves: Message.fbs and File.fbs in https://github.com/apache/arrow/tree/main/format.
# pyarrow tells neither how large compressed buffers become nor what dictionaries are added to, before it makes them.


class _Flat(NamedTuple):
    """A table of FlatBuffers; struct.error where it is beyond its bytes."""

    content: memoryview
    place: int

    def field(self, number: int) -> int | None:
        """Where its value is; None where that is the default."""
        vtable = self.place - self.get("<i", self.place)
        slot = 4 + 2 * number
        offset = self.get("<H", vtable + slot) if slot < self.get("<H", vtable) else 0
        return self.place + offset if offset else None

    def get(self, form: str, place: int) -> int:
        if place < 0:
            raise struct.error("a place before the beginning")
        (found,) = struct.unpack_from(form, self.content, place)
        return int(found)

    def table(self, number: int) -> "_Flat | None":
        """The table in a field."""
        place = self.field(number)
        return None if place is None else _Flat(self.content, place + self.get("<I", place))

    def structs(self, number: int, size: int) -> range:
        """Where those in a field are."""
        place = self.field(number)
        if place is None:
            return range(0)
        start = place + self.get("<I", place)
        return range(start + 4, start + 4 + self.get("<I", start) * size, size)


def _in_stream(content: pa.Buffer) -> Iterator[pa.ipc.Message]:
    reader = pa.ipc.MessageReader.open_stream(content)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _in_file(content: pa.Buffer) -> Iterator[pa.ipc.Message]:
    """Those that its footer names, which need not be all that there are, nor once each."""
    whole = memoryview(content)
    (length,) = struct.unpack_from("<i", whole, len(whole) - len(_END) - 4)
    start = len(whole) - len(_END) - 4 - length
    if length < 0 or start < 0:
        raise struct.error("a footer that is longer than the file")
    metadata = whole[start : start + length]
    root = _Flat(metadata, struct.unpack_from("<I", metadata)[0])
    for number in (2, 3):
        for place in root.structs(number, _BLOCK.size):
            offset, head, size = _BLOCK.unpack_from(metadata, place)
            if min(offset, head, size) < 0 or offset + head + size > len(whole):
                raise struct.error("a message beyond the file")
            yield pa.ipc.read_message(content.slice(offset, head + size))


def _check_messages(messages: Iterable[pa.ipc.Message], most: int) -> None:
    """Before any is read: BodyTooLargeError where too much would come out of them."""
    unpacked = 0
    for message in messages:
        if message.type not in _BATCHES:
            continue
        metadata = memoryview(message.metadata)
        root = _Flat(metadata, struct.unpack_from("<I", metadata)[0])
        batch = root.table(2)
        if batch is not None and message.type == "dictionary":
            is_delta = batch.field(2)
            if is_delta is not None and batch.get("<B", is_delta):
                # Each batch before one would keep a whole dictionary of its own.
                raise InvalidError(Place(CALLED.table, "a dictionary that is added to; send each of them whole"))
            batch = batch.table(1)
        if batch is not None and batch.table(3) is not None:
            unpacked += _unpacked(batch, memoryview(message.body))
            if unpacked > most:
                raise BodyTooLargeError(f"what the body unpacks to may have at most {most} bytes")


def _unpacked(batch: _Flat, body: memoryview) -> int:
    """What the compressed buffers of a batch say that they become, in bytes."""
    found = 0
    for place in batch.structs(2, _BUFFER.size):
        at, length = _BUFFER.unpack_from(batch.content, place)
        if length:
            if at < 0 or length < 0:
                raise struct.error("a buffer before the beginning")
            (size,) = struct.unpack_from("<q", body, at)
            # -1 says that it is as it is.
            found += length if size < 0 else size
    return found


class _Times(NamedTuple):
    """A column of times that are no text."""

    microseconds: NDArray[np.int64]
    """Since the start of 1970, in UTC or on the wall clock."""
    missing: NDArray[np.bool_]
    beyond: NDArray[np.bool_]
    """Which of them are not within the years 1 to 9999."""


class _Typed:
    """Columns of record batches, each made into numbers, times or text when it is asked for."""

    called = CALLED
    first = 0

    def __init__(self, names: Sequence[str], batches: Sequence[pa.RecordBatch], most_bytes: int) -> None:
        self._names = names
        self._batches = batches
        self._rows: int = sum(batch.num_rows for batch in batches)
        self._most_bytes = most_bytes
        self._kinds: list[pa.DataType] = batches[0].schema.types
        self._floats: dict[int, NDArray[np.float64]] = {}
        self._texts: dict[int, NDArray[np.object_]] = {}
        self._moments: dict[int, _Times] = {}

    def __len__(self) -> int:
        return self._rows

    def numbers(self, rows: Sequence[int], column: int, name: str) -> NDArray[np.float64]:
        """Of integers, decimals and floats."""
        found = self._numbers(column)
        values = found[rows.start : rows.stop] if isinstance(rows, range) else found[list(rows)]
        wrong = np.flatnonzero(np.abs(values) > LARGEST)
        if len(wrong):
            row = int(wrong[0])
            raise InvalidError(Place(self.called.cell(rows[row], name), not_finite(float(values[row]))))
        return values

    def is_missing(self, row: int, column: int) -> bool:
        """Null, and NaN."""
        return bool(np.isnan(self._numbers(column)[row]))

    def time(self, row: int, column: int, name: str) -> datetime:
        """Of timestamps, dates and text."""
        place = self.called.cell(row, name)
        if _is_text(self._kinds[column]):
            text = self._text(column)[row]
            if text is None:
                raise InvalidError(Place(place, _NO_TIME))
            return time_of(text, place)
        found = self._times(column)
        if found.missing[row] or found.beyond[row]:
            raise InvalidError(Place(place, _NO_TIME if found.missing[row] else _BEYOND))
        time = _EPOCH + timedelta(microseconds=int(found.microseconds[row]))
        return time.replace(tzinfo=UTC) if self._is_zoned(column) else time

    def moments(self, column: int, name: str) -> NDArray[np.int64] | None:
        """Of timestamps with a zone."""
        if not self._is_zoned(column):
            return None
        found = self._times(column)
        wrong = np.flatnonzero(found.missing | found.beyond | (found.microseconds < 0))
        if len(wrong):
            row = int(wrong[0])
            raise InvalidError(Place(self.called.cell(row, name), _NO_TIME if found.missing[row] else _BEYOND))
        return found.microseconds

    def names(self, column: int, name: str) -> list[str]:
        """Of text and integers."""
        kind = self._kinds[column]
        if pa.types.is_integer(kind):
            found = self._each(column, _whole_of, np.object_)
        elif _is_text(kind):
            found = self._text(column)
        else:
            raise self._unfit(column, "text or integers")
        return named(["" if text is None else text for text in found], name, self)

    def _numbers(self, column: int) -> NDArray[np.float64]:
        if column not in self._floats:
            if not _is_number(self._kinds[column]):
                raise self._unfit(column, "numbers")
            found = self._each(column, _floats_of, np.float64)
            # A signalling NaN is a NaN.
            found[np.isnan(found)] = np.nan
            self._floats[column] = found
        return self._floats[column]

    def _text(self, column: int) -> NDArray[np.object_]:
        if column not in self._texts:
            self._texts[column] = self._each(column, self._text_of, np.object_)
        return self._texts[column]

    def _times(self, column: int) -> _Times:
        if column not in self._moments:
            if not _is_time(self._kinds[column]):
                raise self._unfit(column, "timestamps, dates or ISO 8601 text")
            found = self._each(column, _moments_of, np.int64)
            missing = self._each(column, _missing_of, np.bool_)
            scale = _scale_of(self._kinds[column])
            beyond = (found < math.floor(_FIRST / scale)) | (found > math.floor(_LAST / scale))
            microseconds = (np.where(beyond, 0, found) * scale.numerator) // scale.denominator
            self._moments[column] = _Times(microseconds, missing, beyond)
        return self._moments[column]

    def _is_zoned(self, column: int) -> bool:
        kind = self._kinds[column]
        return pa.types.is_timestamp(kind) and kind.tz is not None

    def _unfit(self, column: int, wanted: str) -> InvalidError:
        place = f"{self.called.table} column {self._names[column][:LONGEST_ECHO]!r}"
        return InvalidError(Place(place, f"its values are {str(self._kinds[column])[:LONGEST_ECHO]}, not {wanted}"))

    def _each(self, column: int, of: Callable[[pa.Array], NDArray[Any]], dtype: type) -> NDArray[Any]:
        """One after the other what the column has in every batch."""
        dictionaries: dict[object, NDArray[Any]] = {}
        try:
            found = [self._decoded(batch.column(column), of, dictionaries) for batch in self._batches]
        except _WRONG as error:
            raise _malformed(error) from None
        return np.concatenate(found, dtype=dtype)

    def _decoded(
        self, array: pa.Array, of: Callable[[pa.Array], NDArray[Any]], dictionaries: dict[object, NDArray[Any]]
    ) -> NDArray[Any]:
        if not pa.types.is_dictionary(array.type):
            return of(array)
        dictionary = array.dictionary
        dictionary.validate()
        # Each is read once, though every batch has it.
        addresses = [buffer and buffer.address for buffer in dictionary.buffers()]
        key = (*addresses, dictionary.offset, len(dictionary))
        if key not in dictionaries:
            values = of(dictionary)
            dictionaries[key] = np.append(values, [np.nan if values.dtype.kind == "f" else None])
        values = dictionaries[key]
        array.indices.validate(full=True)
        missing = _missing_of(array.indices)
        places = np.where(missing, len(dictionary), _plain(array.indices)).astype(np.int64)
        if len(places) and not 0 <= places.min() <= places.max() <= len(dictionary):
            raise MalformedError("not Arrow IPC: a place beyond the end of a dictionary")
        return values[places]

    def _text_of(self, array: pa.Array) -> NDArray[np.object_]:
        if _is_view(array.type):
            # Any number of them may lie at the same place, and each is looked at by itself from here on.
            array.validate()
            views = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4][: len(array)]
            if views.astype(np.int64)[~_missing_of(array)].sum() > self._most_bytes:
                raise BodyTooLargeError(f"what the text in the body comes to may have at most {self._most_bytes} bytes")
        array.validate(full=True)
        return np.array(array.to_pylist(), np.object_)


def _floats_of(array: pa.Array) -> NDArray[np.float64]:
    array.validate(full=True)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if pa.types.is_decimal(array.type):
        # By way of text, which is rounded but once.
        array = pc.cast(array, pa.string())
    found: NDArray[np.float64] = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _whole_of(array: pa.Array) -> NDArray[np.object_]:
    array.validate(full=True)
    return np.array([None if number is None else str(number) for number in array.to_pylist()], np.object_)


def _moments_of(array: pa.Array) -> NDArray[np.int64]:
    array.validate(full=True)
    return _plain(array.view(pa.int32() if pa.types.is_date32(array.type) else pa.int64())).astype(np.int64)


def _missing_of(array: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return found


def _plain(array: pa.Array) -> NDArray[Any]:
    """Whole numbers, with 0 for null."""
    found: NDArray[Any] = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    return found


def _scale_of(kind: pa.DataType) -> Fraction:
    """Microseconds in each of what a time counts."""
    if pa.types.is_timestamp(kind):
        return _UNITS[kind.unit]
    return Fraction(_DAY) if pa.types.is_date32(kind) else _UNITS["ms"]


def _is_number(kind: pa.DataType) -> bool:
    is_one_of = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(one(_value_of(kind)) for one in is_one_of)


def _is_text(kind: pa.DataType) -> bool:
    value = _value_of(kind)
    return pa.types.is_string(value) or pa.types.is_large_string(value) or _is_view(value)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _value_of(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
