"""Rows to Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.bench import Row, medians

Cells = dict[Any, dict[str, list[Row]]]


@dataclass(frozen=True, slots=True)
class Table:
    """A caption and rows of texts."""

    caption: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The first column is text, the others are numbers."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [" | ".join(row) for row in [self.columns, rule, *self.rows]]
        head = [f"**{self.caption}**", ""] if self.caption else []
        return "\n".join([*head, *(f"| {line} |" for line in lines)])


def by_cell(rows: Sequence[Row]) -> Cells:
    """Rows by cell, then by label, in the order in which they first came."""
    labels = dict.fromkeys(row["label"] for row in sorted(rows, key=lambda row: int(row["round"])))
    found: Cells = {}
    for row in rows:
        found.setdefault(row["cell"], {label: [] for label in labels})[row["label"]].append(row)
    return {cell: {label: of for label, of in of.items() if of} for cell, of in found.items()}


def closed_tables(rows: Sequence[Row], unit: str) -> list[Table]:
    """A table for each cell: rate, latency, processor time, and the ratios to the best other."""
    columns = [
        "server",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "server CPU, ms",
        "rate : best other",
        "p99 : best other",
    ]
    tables = []
    for cell, of in by_cell(rows).items():
        middle = {label: medians(rounds) for label, rounds in of.items()}
        lines = [
            [
                label,
                number(row["rate"]),
                number(row["p50_ms"]),
                number(row["p99_ms"]),
                number(row["server_cpu_s"] * 1e3),
                ratio(row, middle, "rate", best=max),
                ratio(row, middle, "p99_ms", best=min),
            ]
            for label, row in middle.items()
        ]
        tables.append(Table(f"{cell} {unit}", columns, lines))
    return tables


def open_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each cell: what was sent and answered, and latency from when it was due."""
    columns = ["server", "sent/s", "answered/s", "p50, ms", "p99, ms", "p99.9, ms", "unanswered", "p99 : best other"]
    columns.append("sent late p99, ms")
    tables = []
    for cell, of in by_cell(rows).items():
        middle = {label: medians(rounds) for label, rounds in of.items()}
        lines = [
            [
                label,
                number(row["rate"]),
                number(row["achieved"]),
                number(row["p50_ms"]),
                number(row["p99_ms"]),
                number(row["p999_ms"]),
                number(row["unanswered"]),
                ratio(row, middle, "p99_ms", best=min) if _same_rate(middle) else "",
                number(row["late_p99_ms"]),
            ]
            for label, row in middle.items()
        ]
        tables.append(Table(str(cell), columns, lines))
    return tables


def ratio(row: Row, rows: Mapping[str, Row], name: str, *, best: Any) -> str:  # noqa: ANN401  min or max
    """To the best of another project: Foretell's variants are not others to each other."""
    others = [
        other[name] for label, other in rows.items() if label != row["label"] and not (other["ours"] and row["ours"])
    ]
    return f"{row[name] / best(others):.2f}" if others and best(others) > 0 else ""


def _same_rate(rows: Mapping[str, Row]) -> bool:
    """Whether latencies are of the same rate: else a ratio of them says nothing."""
    return len({row["rate"] for row in rows.values()}) == 1


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"
