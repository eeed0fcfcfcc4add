"""A table in Markdown."""

import statistics
from collections.abc import Sequence


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [" | ".join(map(str, row)) for row in [columns, rule, *rows]]
    return "\n".join(f"| {line} |" for line in lines)


def median_and_most(values: Sequence[float]) -> str:
    """Both, in seconds."""
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "-"
