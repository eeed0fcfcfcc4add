"""CSV (RFC 4180) to a table of text: which numbers it holds, only a model's spec can tell."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice

from app.asked.cells import CSV, Written
from app.asked.sheet import Long, Sheet
from app.errors import InvalidError, MalformedError, MediaTypeError, Place

_ROWS = 4096
"""At a time: so many are text and numbers both."""
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s\";]+)", re.IGNORECASE)
_CHARSETS = {
    "utf-8": "utf-8-sig",
    "utf8": "utf-8-sig",
    "us-ascii": "ascii",
    "iso-8859-1": "iso-8859-1",
    "windows-1252": "windows-1252",
}
"""What may be named, and what Python calls it; a byte-order mark is no part of the first column's name."""


def read(body: bytes, parameters: str) -> Sheet:
    """The cells of a body; MediaTypeError, MalformedError, or InvalidError naming the row."""
    header, rows = lines(body, parameters)
    cells = Written(list(rows))
    if not len(cells):
        raise InvalidError(Place("csv", "no rows under the header"))
    return Sheet(header, cells)


def read_long(body: bytes, parameters: str) -> Long:
    """The same some thousands of rows at a time; errors as of `read`, of rows when they are reached."""
    header, rows = lines(body, parameters)
    return Long(header, CSV, _parts(rows))


def _parts(rows: Iterator[list[str]]) -> Iterator[Written]:
    first = 0
    while part := list(islice(rows, _ROWS)):
        yield Written(part, first)
        first += len(part)


def lines(body: bytes, parameters: str) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the columns, and the rows one by one, each with as many cells; errors as of `read`.

    Lines with nothing in them count as no rows.
    """
    named = _CHARSET.search(parameters)
    charset = named[1].lower() if named else "utf-8"
    if charset not in _CHARSETS:
        raise MediaTypeError(f"the charset {charset[:80]!r} is not read here; send {' or '.join(_CHARSETS)}")
    try:
        text = body.decode(_CHARSETS[charset])
    except UnicodeDecodeError as error:
        raise MalformedError(f"not CSV: {error}") from None
    found = _rows(csv.reader(io.StringIO(text, newline=""), strict=True))
    header = next(found, None)
    if header is None:
        raise InvalidError(Place(CSV.header, "there is none: the first line names the columns"))
    return header, found


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The header, and whatever is under it and as wide."""
    number, width = -1, None
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != width:
                if width is not None:
                    raise InvalidError(Place(CSV.row(number), f"{len(row)} cells, but the header has {width}"))
                width = len(row)
            number += 1
            yield row
    except csv.Error as error:
        raise MalformedError(f"not CSV: {error}") from None
