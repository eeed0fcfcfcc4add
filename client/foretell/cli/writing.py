"""Rows to a file or to stdout, and tables for people."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from foretell.cli.ending import plain
from foretell.errors import DataError


def write(rows: Sequence[Mapping[str, Any]], output: str | None, as_: str | None) -> None:
    """As CSV or JSON; DataError where the file cannot be written."""
    form = as_ or ("json" if output is not None and output.endswith(".json") else "csv")
    plainly = [{name: _cell(cell) for name, cell in row.items()} for row in rows]
    text = json.dumps(plainly, indent=1) + "\n" if form == "json" else _csv(plainly)
    if output is None or output == "-":
        sys.stdout.write(text)
        return
    try:
        Path(output).write_text(text, encoding="utf-8", newline="")
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
