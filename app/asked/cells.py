"""The cells of a table, be they text or typed columns: what a model asks of them, and what they are called in refusals.

Rows are counted from 0 here, and from 1 where a client is told of them.
"""

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.asked import times
from app.errors import InvalidError, Place

_MISSING = frozenset(("", "NaN", "nan", "null", "NA"))
"""What a cell of text says that has no value."""
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = float(np.finfo(np.float32).max)
LONGEST_ECHO = 80


class Called(NamedTuple):
    """What a kind of table calls its parts."""

    table: str
    header: str

    def row(self, index: int) -> str:
        """One of its rows."""
        return f"{self.table} row {index + 1}"

    def cell(self, row: int, name: str) -> str:
        """What stands in a row under a name."""
        return f"{self.row(row)}, column {name[:LONGEST_ECHO]!r}"

    def series(self, name: str) -> str:
        """The rows of a series."""
        return f"{self.table} series {name[:LONGEST_ECHO]!r}"


CSV = Called("csv", "csv header")


class Cells(Protocol):
    """Rows of cells under a header; InvalidError of what holds not what is asked for, naming the place."""

    @property
    def called(self) -> Called: ...

    @property
    def first(self) -> int:
        """Where the first of these rows is in its table."""
        ...

    def __len__(self) -> int: ...

    def numbers(self, rows: Sequence[int], column: int, name: str) -> NDArray[np.float64]:
        """In these rows, NaN where a value is missing; all others are finite in 32 bits."""
        ...

    def is_missing(self, row: int, column: int) -> bool: ...

    def time(self, row: int, column: int, name: str) -> datetime:
        """Without a zone where it names no offset."""
        ...

    def moments(self, column: int, name: str) -> NDArray[np.int64] | None:
        """Epoch microseconds of all rows, where that is what they hold; None where a zone must tell."""
        ...

    def names(self, column: int, name: str) -> Sequence[str]:
        """In every row what its series is called."""
        ...


class Written:
    """Cells of text."""

    def __init__(self, rows: list[list[str]], first: int = 0, called: Called = CSV) -> None:
        self.rows = rows
        self.first = first
        self.called = called

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, rows: Sequence[int], column: int, name: str) -> NDArray[np.float64]:
        """What decimal numbers say."""
        cells = [self.rows[row][column] for row in rows]
        values = _numbers(cells)
        if values is None:
            places = (self.called.cell(self.first + row, name) for row in rows)
            values = np.array([_number(cell, place) for cell, place in zip(cells, places, strict=True)])
        return values

    def is_missing(self, row: int, column: int) -> bool:
        """Whether it says nothing."""
        cell = self.rows[row][column]
        return cell in _MISSING or cell.strip() in _MISSING

    def time(self, row: int, column: int, name: str) -> datetime:
        """What ISO 8601 says."""
        return time_of(self.rows[row][column], self.called.cell(self.first + row, name))

    def moments(self, _column: int, _name: str) -> None:
        """Every row may name an offset or none."""

    def names(self, column: int, name: str) -> list[str]:
        """As they stand there."""
        return named((row[column] for row in self.rows), name, self)


def named(found: Iterable[str], name: str, cells: Cells) -> list[str]:
    """The names of series; InvalidError where one is empty."""
    names = list(found)
    if "" in names:
        raise InvalidError(Place(cells.called.cell(cells.first + names.index(""), name), "no name of a series"))
    return names


def time_of(cell: str, place: str) -> datetime:
    """The time in text; InvalidError where it holds none."""
    time = times.read(cell.strip())
    if time is None:
        problem = f"{cell[:LONGEST_ECHO]!r} is not an ISO 8601 time, such as 2013-06-01T00:00:00Z"
        raise InvalidError(Place(place, problem))
    return time


def not_finite(value: object) -> str:
    """What is wrong with a number that is too large, or none."""
    return f"{str(value)[:LONGEST_ECHO]} is not a finite 32-bit number"


def _numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """The numbers in cells, NaN where there is none; None where one must be looked at by itself."""
    try:
        values = np.array([math.nan if cell in _MISSING else float(cell) for cell in cells])
    except ValueError:
        return None
    # Python's float reads more than a table should hold.
    text = "".join(cells)
    missing = sum(map(_MISSING.__contains__, cells))
    finite = np.count_nonzero(np.abs(values) <= LARGEST) == len(cells) - missing
    return values if "_" not in text and text.isascii() and finite else None


def _number(cell: str, place: str) -> float:
    """What a cell says, NaN for nothing; InvalidError for what is no number."""
    text = cell.strip()
    if text in _MISSING:
        return math.nan
    if not _DECIMAL.fullmatch(text):
        raise InvalidError(Place(place, f"{cell[:LONGEST_ECHO]!r} is not a number"))
    if not abs(float(text)) <= LARGEST:
        raise InvalidError(Place(place, not_finite(cell)))
    return float(text)
