"""What the clock says of a row: local hours, days and holidays, computed in the graph."""

import math
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import artifact, networks
from models.calendar import Dates
from models.core import Surroundings
from models.spec import Calendar, CalendarName
from tests import builders

EPOCH = date(1970, 1, 1)
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata")


def columns(name: CalendarName, moment: datetime, timezone: str) -> list[float]:
    """What a calendar of that one feature says of an instant."""
    dates = Dates(Calendar(features=(name,)), timezone)
    return [round(value, 4) for value in dates(torch.tensor([[int(moment.timestamp())]]))[0, 0].tolist()]


def turn(share: float) -> list[float]:
    """Sine and cosine of a part of the whole cycle."""
    return [round(math.sin(2 * math.pi * share), 4), round(math.cos(2 * math.pi * share), 4)]


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30)),  # noqa: DTZ001  hypothesis wants them without a zone
    st.sampled_from(ZONES),
)
def test_dates_are_those_of_the_zone(moment: datetime, timezone: str) -> None:
    """At any instant, hour and day are what Python's own calendar says."""
    instant = moment.replace(tzinfo=UTC)
    local = instant.astimezone(ZoneInfo(timezone))
    seconds = local.hour * 3600 + local.minute * 60 + local.second
    march = date(local.year - (local.month < 3), 3, 1)

    assert columns("hour", instant, timezone) == pytest.approx(turn(seconds / 86_400), abs=2e-3)
    for name, share in (
        ("day_of_week", local.weekday() / 7),
        ("day_of_month", (local.day - 1) / 31),
        ("day_of_year", (local.date() - march).days / 365.2425),
    ):
        # A day is 0.017 away from the next one.
        assert columns(name, instant, timezone) == pytest.approx(turn(share), abs=1e-3)


@pytest.mark.parametrize("month_day", [(3, 9), (11, 2)])
def test_hours_at_a_change_of_summer_time(month_day: tuple[int, int]) -> None:
    """Through the night in which New York's clocks change, every hour is the one on the wall."""
    start = datetime(2025, *month_day, 3, tzinfo=UTC)
    for hours in range(8):
        instant = start + timedelta(hours=hours)
        local = instant.astimezone(ZoneInfo("America/New_York"))
        assert columns("hour", instant, "America/New_York") == pytest.approx(turn(local.hour / 24), abs=1e-3)


def test_holidays_are_days_of_the_zone() -> None:
    """A holiday lasts from local midnight to local midnight."""
    day = date(2026, 7, 4)
    calendar = Calendar(features=("holiday",), holidays="US")
    dates = Dates(calendar, "America/New_York", [(day - EPOCH).days])
    midnight = int(datetime(2026, 7, 4, tzinfo=ZoneInfo("America/New_York")).timestamp())
    times = torch.tensor([[midnight - 1, midnight, midnight + 86_399, midnight + 86_400]])
    assert dates(times)[0, :, 0].tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("architecture", networks.names())
def test_every_pass_sees_its_own_hours(architecture: str) -> None:
    """Stepping on from a window is the same as asking with a window that ends later, as far as the calendar goes."""
    surroundings = Surroundings(calendar=Calendar(features=("hour",)), timezone="Europe/Berlin")
    network = builders.network(
        architecture, {}, roles=("target", "future"), window=8, horizon=2, surroundings=surroundings
    )
    window, time, future = builders.inputs(network, 3, 4)
    module = artifact.export(network, window, time, future, 4)
    here, _ = module.rollout(window, time, future, 4)
    elsewhen, _ = module.rollout(window, time + 6 * 3600, future, 4)
    assert not torch.allclose(here, elsewhen)

    state = network.encode(window, time)
    first, _, state = network.decode(state, future[:, :2])
    ahead = network.core.dated(future[:, 2:], time + 4 * 3600)  # type: ignore[operator]
    assert torch.equal(state[-1], time + 2 * 3600)
    assert torch.equal(ahead[:, -1, 1:], network.core.dates((time + 4 * 3600).unsqueeze(1))[:, 0])  # type: ignore[operator]
    torch.testing.assert_close(first, here[:, :2], rtol=1e-4, atol=1e-4)


def test_correcting_keeps_the_clock() -> None:
    """After a pass is corrected by what came, the state is that of a network that forecast it so."""
    surroundings = Surroundings(calendar=Calendar(features=("hour", "day_of_week")))
    network = builders.network("gru", {}, roles=("target", "past"), window=8, horizon=2, surroundings=surroundings)
    window, time, future = builders.inputs(network, 3, 4)
    core = network.core
    state = core.encode(network.scaler.scale_rows(window), time)
    outputs, _, state = core.decode(state, future[:, :2])
    corrected = core.correct(state, core.rows(outputs, future[:, :2]))
    for one, other in zip(corrected, state, strict=True):
        torch.testing.assert_close(one, other)
