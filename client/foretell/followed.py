"""A window and the rows that followed it, as the service takes them: JSON, columns in the order of the model's spec."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from foretell.errors import DataError
from foretell.given import Body, Data, Time, depth_of, is_table, json_of, plain_of, table_of

_MISSING = ("", "NaN", "nan", "null", "NA")


def needs_spec(data: Data, actual: Data) -> bool:
    """Whether only the model's spec tells which column is which."""
    return is_table(data) or is_table(actual)


def followed_of(
    data: Data,
    actual: Data,
    *,
    start: Time | Sequence[Time] | None,
    future: Any,
    static: Any,
    spec: Mapping[str, Any] | None,
) -> Body:
    """The body; DataError naming the place where tables do not have what the model needs."""
    window: Any = _rows_of(data)
    truth: Any = _rows_of(actual)
    if is_table(data):
        needed = _needed(spec)
        header, rows = table_of(data)
        rows = rows[-int(needed["window"]) :]
        window = _columns(header, rows, [one["name"] for one in needed["features"] if one["role"] != "static"])
        start = start or _start(header, rows, str(needed["time"]))
    if is_table(actual):
        needed = _needed(spec)
        header, rows = table_of(actual)
        truth = _columns(header, rows, needed["targets"])
        known = [one["name"] for one in needed["features"] if one["role"] == "future"]
        if known and future is None:
            future = _columns(header, rows, known)
    if isinstance(window, Mapping):
        name = "actual" if "window" in window else "actuals"
        return json_of({**window, **_beside(start, future, static), name: truth})
    several = depth_of(window) > 2
    fields = {"windows" if several else "window": window, "actuals" if several else "actual": truth}
    return json_of({**fields, **_beside(start, future, static)})


def _beside(start: Any, future: Any, static: Any) -> dict[str, Any]:
    return {name: one for name, one in (("start", start), ("future", future), ("static", static)) if one is not None}


def _rows_of(data: Data) -> Any:
    """Rows, or a mapping of a body; nothing of a table."""
    if is_table(data):
        return None
    if isinstance(data, Mapping):
        return data
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return data
    if hasattr(data, "__array__"):
        return plain_of(data, "window")
    raise DataError("give rows, an array or a table, and beside them the rows that followed")


def _needed(spec: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if spec is None:
        raise DataError("the model is not ready, so nobody knows its columns; give rows in their order")
    return spec


def _columns(header: list[str], rows: list[list[str]], names: Sequence[str]) -> list[list[float | None]]:
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"csv header: no column {', '.join(map(repr, missing))}")
    places = [header.index(name) for name in names]
    return [[_number(row[place], number, header[place]) for place in places] for number, row in enumerate(rows, 1)]


def _number(cell: str, row: int, name: str) -> float | None:
    if cell in _MISSING:
        return None
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"csv row {row} of those that count, column {name!r}: {cell[:60]!r} is no number") from None


def _start(header: list[str], rows: list[list[str]], time: str) -> str | None:
    """The time of the first row that counts. Rows are counted on from there, so none may be left out."""
    if time not in header:
        return None
    told = [row[header.index(time)] for row in rows]
    try:
        moments = [datetime.fromisoformat(text) for text in told]
        steps = {later - earlier for earlier, later in pairwise(moments)}
    except (ValueError, TypeError):
        raise DataError(f"csv column {time!r}: times are ISO 8601, all with an offset or none") from None
    if len(steps) > 1:
        raise DataError(f"csv column {time!r}: rows are not evenly apart; put in what is missing, with empty cells")
    return told[0]
