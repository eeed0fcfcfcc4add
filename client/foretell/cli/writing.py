"""Rows to a file or to stdout, and tables for people."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from foretell.cli.ending import plain
from foretell.errors import DataError, ForetellError


def write(rows: Sequence[Mapping[str, Any]], output: str | None, as_: str | None) -> None:
    """As CSV or JSON; DataError where the file cannot be written."""
    form = form_of(output, as_)
    plainly = [{name: _cell(cell) for name, cell in row.items()} for row in rows]
    text = json.dumps(plainly, indent=1) + "\n" if form == "json" else _csv(plainly)
    if output is None or output == "-":
        sys.stdout.write(text)
        return
    try:
        Path(output).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{output}: {error.strerror or error}") from None


def form_of(output: str | None, as_: str | None) -> str:
    """The one that was asked for, or as the file's name ends, or CSV."""
    named = [form for form in ("json", "jsonl") if output is not None and output.endswith(f".{form}")]
    return as_ or (named[0] if named else "csv")


class Rows:
    """Rows that are written as they come; the first one says which columns there are."""

    def __init__(self, file: TextIO, form: str, *, at_once: bool) -> None:
        self._file = file
        self._csv = csv.writer(file, lineterminator="\n") if form == "csv" else None
        self._header: list[str] | None = None
        self._at_once = at_once

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write some more."""
        for row in rows:
            plainly = {name: _cell(cell) for name, cell in row.items()}
            if self._csv is None:
                self._file.write(json.dumps(plainly) + "\n")
                continue
            if self._header is None:
                self._header = list(plainly)
                self._csv.writerow(self._header)
            cells = [plainly[name] for name in self._header]
            self._csv.writerow(["" if cell is None else cell for cell in cells])
        if self._at_once:
            self._file.flush()


@contextmanager
def rows_to(output: str | None, as_: str | None) -> Iterator[Rows]:
    """To stdout, or to a file that has its name when all are in it, and NAME.part until then; DataError where it cannot
    be written.
    """
    form = form_of(output, as_)
    if output is None or output == "-":
        yield Rows(sys.stdout, form, at_once=True)
        return
    path = Path(output)
    # What is there and no file, such as a pipe, keeps its name and is written as it is.
    part = path if path.exists() and not path.is_file() else path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield Rows(file, form, at_once=False)
        if part != path:
            part.replace(path)
    except ForetellError:
        if part != path and not part.stat().st_size:
            part.unlink()
        raise
    except OSError as error:
        raise DataError(f"{output}: {error.strerror or error}") from None


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns by row."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cell(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, datetime) else cell


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
        writer.writerows(["" if cell is None else cell for cell in row.values()] for row in rows)
    return text.getvalue()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers to the right."""
    cells = [list(header), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(header))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines) + "\n"


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else plain(str(cell))
