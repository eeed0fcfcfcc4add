"""What the clock says of every row, given or ahead: hour, day and holiday, in local time, computed in the graph.

Shapes: B rows, n rows of a window, F features, H steps a pass, X columns that are added.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import torch
from torch import Tensor, nn

from models.core import Core, Shape
from models.spec import Calendar
from models.surrounding import Surrounding, widened

_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNTIL = 2100
"""The year up to which the graph knows of changes of the clock; after it the last one stays."""
_YEAR_DAYS = 365.2425
"""On average."""


def columns_of(calendar: Calendar) -> int:
    """How many columns it adds: two of a cycle, one of holidays."""
    return sum(1 if name == "holiday" else 2 for name in calendar.features)


def within(shape: Shape, calendar: Calendar) -> Shape:
    """The shape that the core inside sees."""
    return widened(shape, columns_of(calendar))


class Dated(Surrounding):
    """State: that of the core inside, then the time of the last row, int64 [B]."""

    interval: Final[int]

    def __init__(self, inner: Core, shape: Shape, dates: "Dates") -> None:
        super().__init__(inner, shape)
        self.clock = True
        self.interval = shape.interval
        self.dates = dates

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        state = self.inner.encode(self.dated(window, time), time)
        state.append(time)
        return state

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        time = state[-1] + future.size(1) * self.interval
        modelled, attention, inner = self.inner.decode(state[:-1], self.dated(future, time))
        inner.append(time)
        return modelled, attention, inner

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        inner = self.inner.correct(state[:-1], self.dated(rows, state[-1]))
        inner.append(state[-1])
        return inner

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.embed(self.dated(window, time), time)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.heads(self.dated(window, time), time)

    def dated(self, rows: Tensor, time: Tensor) -> Tensor:
        """Rows [B, n, any], the last of them at these times [B] -> with the calendar behind them."""
        before = torch.arange(1 - rows.size(1), 1, device=time.device) * self.interval
        return torch.cat([rows, self.dates(time.unsqueeze(1) + before).to(rows.dtype)], 2)


class Dates(nn.Module):
    """Instants to the columns of a calendar, in the local time of a zone.

    `holidays` are days since 1970-01-01.
    """

    names: Final[list[str]]
    year: Final[float]
    changes: Tensor
    offsets: Tensor
    holidays: Tensor

    def __init__(self, calendar: Calendar, timezone: str, holidays: Sequence[int] = ()) -> None:
        super().__init__()
        self.names = list(calendar.features)
        self.year = _YEAR_DAYS
        changes, offsets = _clock_changes(timezone)
        # A day that never comes, so that there is always one to compare with.
        days = sorted({*holidays, -1_000_000})
        self.register_buffer("changes", torch.tensor(changes, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64), persistent=False)
        self.register_buffer("holidays", torch.tensor(days, dtype=torch.int64), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Epoch seconds int64 [B, n] -> float32 [B, n, X]."""
        local = time + self.offsets[torch.searchsorted(self.changes, time, right=True)]
        day = torch.div(local, 86_400, rounding_mode="floor")
        columns: list[Tensor] = []
        for name in self.names:
            if name == "holiday":
                place = torch.searchsorted(self.holidays, day).clamp(max=self.holidays.size(0) - 1)
                columns.append((self.holidays[place] == day).to(torch.float32))
            else:
                angle = self.turn(name, local, day) * (2.0 * math.pi)
                columns.append(angle.sin())
                columns.append(angle.cos())
        return torch.stack(columns, 2)

    def turn(self, name: str, local: Tensor, day: Tensor) -> Tensor:
        """How far round its cycle each instant is, from 0 to 1."""
        if name == "hour":
            return (local % 86_400).to(torch.float32) / 86_400.0
        if name == "day_of_week":
            # 1970-01-01 was a Thursday; a week begins on Monday.
            return ((day + 3) % 7).to(torch.float32) / 7.0
        # Civil dates from day numbers, in years that begin in March, so that the leap day is the last (Hinnant, 2013).
        shifted = (day + 719_468) % 146_097
        year = torch.div(
            shifted
            - torch.div(shifted, 1_460, rounding_mode="floor")
            + torch.div(shifted, 36_524, rounding_mode="floor")
            - torch.div(shifted, 146_096, rounding_mode="floor"),
            365,
            rounding_mode="floor",
        )
        leaps = torch.div(year, 4, rounding_mode="floor") - torch.div(year, 100, rounding_mode="floor")
        of_year = shifted - (365 * year + leaps)
        if name == "day_of_year":
            return of_year.to(torch.float32) / self.year
        month = torch.div(5 * of_year + 2, 153, rounding_mode="floor")
        of_month = of_year - torch.div(153 * month + 2, 5, rounding_mode="floor")
        return of_month.to(torch.float32) / 31.0


@lru_cache(maxsize=32)
def _clock_changes(timezone: str) -> tuple[list[int], list[int]]:
    """When a zone's offset from UTC changes, in epoch seconds, and the offsets before, between and after."""
    zone = ZoneInfo(timezone)

    def offset(second: int) -> int:
        local = (_EPOCH + timedelta(seconds=second)).astimezone(zone)
        return round((local.utcoffset() or timedelta()).total_seconds())

    end = int(datetime(_UNTIL, 1, 1, tzinfo=UTC).timestamp())
    changes, offsets = [], [offset(0)]
    for day in range(0, end, _DAY):
        if offset(day + _DAY) == offsets[-1]:
            continue
        low, high = day, day + _DAY
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        changes.append(high)
        offsets.append(offset(high))
    return changes, offsets
