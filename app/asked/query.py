"""What a body says, before anyone knows for which model.

Shapes: B windows, l rows of a window, C columns, N steps, K known-future covariates, S static features, n rows that
followed, T targets; R rows of a series, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from app.ticket import Floats

Static = Mapping[str, float] | Sequence[float]
"""The static features of a window, by name or in the model's order."""


@dataclass(frozen=True, slots=True)
class Places:
    """What a kind of body calls its parts, for refusals."""

    window: str = "window"
    """A window; `{}` is its number."""
    missing: str = "null"
    """What stands for a missing value."""
    hint: str = ""
    """What to do where something is missing of which such a body cannot tell."""

    def of(self, index: int) -> str:
        """A window."""
        return self.window.format(index)

    def of_row(self, index: int, row: int) -> str:
        """A row of it."""
        return f"{self.of(index)}[{row}]"

    def of_cell(self, index: int, row: int, column: int, _name: str) -> str:
        """A value in it."""
        return f"{self.of_row(index, row)}[{column}]"


@dataclass(frozen=True, slots=True)
class _Later(Places):
    """Those of some windows that come after the first `before` of others."""

    places: Places = Places()
    before: int = 0

    def of(self, index: int) -> str:
        return self.places.of(self.before + index)

    def of_row(self, index: int, row: int) -> str:
        return self.places.of_row(self.before + index, row)

    def of_cell(self, index: int, row: int, column: int, name: str) -> str:
        return self.places.of_cell(self.before + index, row, column, name)


WINDOW, WINDOWS = Places(), Places("windows[{}]")
"""Of JSON."""


@dataclass(frozen=True, slots=True)
class Query:
    """A request's windows, and what it gives beside them."""

    windows: Floats | list[Floats]
    """[B, l, C], or a list of [l, C] where they are not of one length; NaN where a value is missing."""
    future: Floats | None
    """[B, N, K]"""
    start: Sequence[datetime] | None
    """[B], the time of each window's first row; without a zone where it named no offset."""
    single: bool
    """Whether it was one window, so that the answer is one forecast and not a list."""
    static: Sequence[Static] | None = None
    """[B]"""
    gaps: bool = False
    """Whether any value is missing."""
    places: Places = WINDOW
    series: list[str] | None = None
    """[B], the names of the windows where they have names."""

    def part(self, start: int, end: int) -> "Query":
        """The windows from `start` to before `end`, called what they are called here."""
        rows = slice(start, end)
        return replace(
            self,
            windows=self.windows[rows],
            future=None if self.future is None else self.future[rows],
            start=None if self.start is None else self.start[rows],
            static=None if self.static is None else self.static[rows],
            places=_Later(missing=self.places.missing, hint=self.places.hint, places=self.places, before=start),
            series=None if self.series is None else self.series[rows],
        )


@dataclass(frozen=True, slots=True)
class Followed:
    """A request's windows, and the rows that followed them."""

    query: Query
    actual: Sequence[Floats]
    """B times [n, T], n of each its own; NaN where a value is not known."""


@dataclass(frozen=True, slots=True)
class Series:
    """A row for every step of an even grid of times."""

    name: str | None
    """None where there is one series without a name."""
    values: Floats
    """[R, F], the features in the model's order; NaN where a value is missing."""
    start: int | None
    """The time of the first row in epoch microseconds; None where no times were given."""
