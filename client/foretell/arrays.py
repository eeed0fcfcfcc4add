"""numpy, pandas and polars: used where they are installed, never needed."""

import importlib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from functools import cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

from foretell.errors import DataError

Values: TypeAlias = Any
"""Numbers: an array of numpy (float64) where it is installed, else nested lists; None, or NaN, for none."""


@runtime_checkable
class SupportsArray(Protocol):
    """An array of numpy, or what turns into one."""

    def __array__(self) -> Any: ...


@runtime_checkable
class PandasFrame(Protocol):
    """A table of pandas."""

    def to_csv(self, *args: Any, **options: Any) -> Any: ...


@runtime_checkable
class PolarsFrame(Protocol):
    """A table of polars."""

    def write_csv(self, *args: Any, **options: Any) -> Any: ...


@cache
def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


def values_of(nested: list[Any]) -> Values:
    """An array where there is numpy and all rows are as long, else what was given."""
    numpy = _numpy()
    if numpy is None or not _is_even(nested):
        return nested
    return numpy.asarray(nested, dtype="float64")  # None becomes NaN


def _is_even(nested: Sequence[Any]) -> bool:
    if not nested or not isinstance(nested[0], list):
        return not any(isinstance(one, list) for one in nested)
    return all(isinstance(one, list) and len(one) == len(nested[0]) and _is_even(one) for one in nested)


def is_array(given: object) -> bool:
    """Whether it is an array of numpy; it cannot be where nobody has imported that."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(given, numpy.ndarray)


def npy_of(array: Any) -> bytes:
    """What numpy.save writes of an array of numbers."""
    numpy = _numpy()
    if array.dtype.kind not in "fiu":
        raise DataError(f"an array of {array.dtype}: numbers are needed")
    if array.ndim not in (2, 3):
        raise DataError(f"an array of {array.ndim} dimensions: a window is [rows, columns], several have one more")
    file = io.BytesIO()
    kept = array if array.dtype in (numpy.float32, numpy.float64) else array.astype("float64")
    numpy.save(file, numpy.ascontiguousarray(kept), allow_pickle=False)
    return file.getvalue()


def csv_of_pandas(frame: Any) -> bytes:
    """A table with its index, where that is of times, as the column `time`, or by the index' name."""
    pandas = sys.modules["pandas"]
    timed = isinstance(frame.index, pandas.DatetimeIndex)
    label = (frame.index.name or "time") if timed else None
    text = frame.to_csv(index=timed, index_label=label, date_format="%Y-%m-%dT%H:%M:%S.%f%z")
    return str(text).encode()


def csv_of_polars(frame: Any) -> bytes:
    """A table as it is."""
    polars = sys.modules["polars"]
    written = frame.with_columns(
        polars.selectors.by_dtype(polars.Datetime(time_zone="*")).dt.to_string("%Y-%m-%dT%H:%M:%S%.f%:z"),
        polars.selectors.by_dtype(polars.Datetime(time_zone=None)).dt.to_string("%Y-%m-%dT%H:%M:%S%.f"),
    )
    return str(written.write_csv()).encode()


def frame_of(library: str, columns: Mapping[str, Iterable[Any]], time: str | None, timezone: str) -> Any:
    """A DataFrame; its column of times is in that zone, and with pandas its index."""
    try:
        module = importlib.import_module(library)
    except ImportError:
        raise ImportError(f"{library} is not installed: pip install {library}") from None
    if library == "pandas":
        frame = module.DataFrame({name: list(column) for name, column in columns.items()})
        if time is not None:
            frame[time] = module.to_datetime(frame[time], utc=True).dt.tz_convert(timezone)
            frame = frame.set_index(time)
        return frame
    made = {
        name: [moment.astimezone(UTC) for moment in column] if name == time else list(column)
        for name, column in columns.items()
    }
    frame = module.DataFrame(made)
    return frame if time is None else frame.with_columns(module.col(time).dt.convert_time_zone(timezone))
