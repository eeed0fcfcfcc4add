"""Figures as people read them: cells, and tables for a page or for another program."""

import csv
import io
from collections.abc import Mapping, Sequence

from training.scoring.metrics import TITLES

Table = list[list[str]]
"""A head and its rows."""


def cells(averages: Mapping[str, float | None]) -> list[str]:
    """One for each metric, in the order of TITLES."""
    return [number(averages[metric]) for metric in TITLES]


def number(value: float | None) -> str:
    """Three decimals, or three digits where those would be zeros; "-" for what there is not."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.3g}"


def markdown(table: Table, names: int) -> list[str]:
    """Lines of a page; the first `names` columns are text, the others figures."""
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    return [head, "|" + " --- |" * names + " ---: |" * (len(table[0]) - names), *body]


def comma_separated(lines: Sequence[Mapping[str, object]]) -> str:
    """CSV with the keys as its head; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
