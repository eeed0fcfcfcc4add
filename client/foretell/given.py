"""What callers have, to the bytes of a body.

A window is [L rows][C columns], several are [B][L][C]; missing values are None or NaN.
"""

import csv
import io
import json
import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from foretell.arrays import PandasFrame, PolarsFrame, SupportsArray, csv_of_pandas, csv_of_polars, is_array, npy_of
from foretell.errors import DataError

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"
LINES = "application/x-ndjson"
ARROW_STREAM, ARROW_FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"

Data: TypeAlias = (
    Sequence[Any] | Mapping[str, Any] | SupportsArray | PandasFrame | PolarsFrame | str | PathLike[str] | bytes
)
"""Rows, or several windows of rows; a body as docs/requests.md has it; an array; a table of pandas or polars; the path
of a file (CSV, JSON, .npy, Arrow), or its bytes."""
Time: TypeAlias = str | datetime
_MAGICS = {
    b"\x93NUMPY": NPY,
    b"ARROW1\0\0": ARROW_FILE,
    b"\xff\xff\xff\xff": ARROW_STREAM,  # before each message, since Arrow 0.15
}
_DEEPEST = 3
_SHOWN = 60
_PART = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent."""

    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class File:
    """What is sent as it is read, and read anew whenever it is sent again."""

    path: Path
    size: int

    def begin(self) -> bytes:
        """Its first bytes, which say what it is."""
        try:
            with self.path.open("rb") as file:
                return file.read(_SHOWN)
        except OSError as error:
            raise _unread(self.path, error) from None

    def parts(self) -> Iterator[bytes]:
        """All of it; DataError where it cannot be read, or ends before its size."""
        left = self.size
        try:
            with self.path.open("rb") as file:
                while left and (part := file.read(min(_PART, left))):
                    left -= len(part)
                    yield part
        except OSError as error:
            raise _unread(self.path, error) from None
        if left:
            raise DataError(f"{self.path}: it became shorter while it was sent")


Content: TypeAlias = bytes | File


def body_of(
    data: Data,
    *,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
) -> Body:
    """Of whatever was given; DataError, naming the place, where it cannot be sent."""
    beside = {"start": start, "future": future, "static": static}
    extra = {name: value for name, value in beside.items() if value is not None}
    made = _as_it_is(data)
    if made is not None and made.content_type == JSON and extra:
        return _json(_fields(made.content), extra)
    if made is not None and not extra:
        return made
    if isinstance(data, Mapping):
        return _json(data, extra)
    if made is not None and made.content_type in (CSV, ARROW_STREAM, ARROW_FILE):
        raise DataError(f"{', '.join(extra)}: a table has its own; give rows or an array")
    rows = data.tolist() if is_array(data) else data  # type: ignore[union-attr]
    return _json({"windows" if depth_of(rows) == _DEEPEST else "window": rows}, extra)


def _as_it_is(data: Data) -> Body | None:
    """What needs no further fields, or cannot have any; None of rows and mappings."""
    if isinstance(data, bytes | bytearray | memoryview):
        return Body(bytes(data), kind_of(bytes(data[:64])))
    if isinstance(data, str | PathLike):
        content = file_of(data)
        return Body(content, kind_of(content))
    if is_array(data):
        return Body(npy_of(data), NPY)
    if isinstance(data, PandasFrame):
        return Body(csv_of_pandas(data), CSV)
    if isinstance(data, PolarsFrame):
        return Body(csv_of_polars(data), CSV)
    if isinstance(data, Mapping | Sequence):
        return None
    raise DataError(f"{type(data).__name__} cannot be sent: give rows, an array, a table, or the path of a file")


def is_table(data: Data) -> bool:
    """Whether its columns have names."""
    made = _as_it_is(data)
    return made is not None and made.content_type == CSV


def table_of(data: Data) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns and its rows."""
    made = _as_it_is(data)
    if made is None or made.content_type != CSV:
        raise DataError("a table with named columns is needed here")
    try:
        text = io.StringIO(made.content.decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not CSV: {error}") from None
    if len(rows) < 2:
        raise DataError("a table without rows")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(rows[0]):
            raise DataError(f"csv row {number}: {len(row)} cells, but the header has {len(rows[0])}")
    return rows[0], rows[1:]


def file_of(path: str | PathLike[str]) -> bytes:
    """What is in a file; DataError with its name."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unread(path, error) from None


def opened(path: str | PathLike[str]) -> Content:
    """A file that is left where it is; what can be read but once, such as a pipe, is read."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise _unread(path, error) from None
    return File(Path(path), found.st_size) if stat.S_ISREG(found.st_mode) else file_of(path)


def _unread(path: str | PathLike[str], error: OSError) -> DataError:
    return DataError(f"{path}: {error.strerror or error}")


def kind_of(content: bytes) -> str:
    """What bytes are: by how they begin, since neither a header of CSV nor an array begins as JSON does."""
    for magic, kind in _MAGICS.items():
        if content.startswith(magic):
            return kind
    return JSON if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else CSV


def depth_of(rows: Any) -> int:
    """2 of a window, 3 of several; DataError of anything else."""
    depth, first = 0, rows
    while isinstance(first, Sequence) and not isinstance(first, str | bytes):
        depth += 1
        if not first or depth > _DEEPEST:
            break
        first = first[0]
        first = first.tolist() if is_array(first) else first
    if depth not in (2, _DEEPEST):
        raise DataError(f"{depth} dimensions: a window is a list of rows of numbers; several are a list of windows")
    return depth


def _fields(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise DataError("not a JSON object")
    return said


def _json(fields: Mapping[str, Any], extra: Mapping[str, Any]) -> Body:
    for name in extra:
        if name in fields:
            raise DataError(f"{name}: given twice, in the data and beside it")
    plain = {name: plain_of(value, name) for name, value in {**fields, **extra}.items()}
    return Body(json.dumps(plain, separators=(",", ":")).encode(), JSON)


def json_of(fields: Mapping[str, Any]) -> Body:
    """A body of these; those that are None are left out."""
    return _json({name: value for name, value in fields.items() if value is not None}, {})


def plain_of(value: Any, place: str) -> Any:
    """The same in what JSON has; NaN becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if is_array(value):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain_of(one, f"{place}.{name}") for name, one in value.items()}
    if isinstance(value, Sequence):
        return [plain_of(one, f"{place}[{index}]") for index, one in enumerate(value)]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{place}: {str(value)[:_SHOWN]!r} is no number") from None
    if math.isinf(number):
        raise DataError(f"{place}: {number} cannot be sent")
    return None if math.isnan(number) else number
