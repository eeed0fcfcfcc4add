"""Times to moments and back: which are read, what a wall clock that leaps makes of them, and how they are answered."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.asked import times
from app.errors import InvalidError

UTC_ZONE, NEW_YORK, BERLIN = ZoneInfo("UTC"), ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)
SECOND = 1_000_000


def moment(text: str, zone: ZoneInfo = UTC_ZONE) -> int:
    time = times.read(text)
    assert time is not None
    return times.moment(time, zone, "start")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2013-06-01T12:30:00Z", 1_370_089_800),
        ("2013-06-01T12:30Z", 1_370_089_800),
        ("2013-06-01t12:30:00z", 1_370_089_800),
        ("2013-06-01T12:30:00", 1_370_089_800),
        ("2013-06-01 12:30:00", 1_370_089_800),
        ("2013-06-01T14:30:00+02:00", 1_370_089_800),
        ("2013-06-01T07:00:00-0530", 1_370_089_800),
        ("2013-06-01T12:30:00.250000Z", 1_370_089_800.25),
        ("2013-06-01", 1_370_044_800),
        ("2016-02-29T00:00:00Z", 1_456_704_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_reads_iso_8601(text: str, seconds: float) -> None:
    """With an offset it is that moment; without one, of the zone, here UTC."""
    assert moment(text) == seconds * SECOND


def test_without_an_offset_it_is_wall_clock_time() -> None:
    """In summer and in winter, and only where no offset is named."""
    assert moment("2013-07-01T12:00", NEW_YORK) == moment("2013-07-01T16:00Z")
    assert moment("2013-12-01T12:00", NEW_YORK) == moment("2013-12-01T17:00Z")
    assert moment("2013-07-01T12:00Z", NEW_YORK) == moment("2013-07-01T12:00Z")


@pytest.mark.parametrize(
    ("text", "zone", "says"),
    [
        ("2013-03-10T02:30", NEW_YORK, "'2013-03-10T02:30:00' does not exist in America/New_York"),
        ("2013-03-31T02:00", BERLIN, "does not exist in Europe/Berlin"),
        ("2013-11-03T01:00", NEW_YORK, "'2013-11-03T01:00:00' comes twice in America/New_York; give its offset"),
        ("2013-10-27T02:59:59", BERLIN, "comes twice"),
        ("1969-07-20T20:17:00Z", NEW_YORK, "'1969-07-20T20:17:00Z' is not within the years 1970 to 9999"),
        ("1970-01-01T00:00", BERLIN, "is not within the years 1970 to 9999"),
        ("1970-01-01T00:00:00+00:01", BERLIN, "is not within"),
        ("0001-01-01T00:00:00+05:00", BERLIN, "is not within"),
        ("9999-12-31T23:59:59-05:00", BERLIN, "is not within"),
        ("9999-12-31T23:59:59", NEW_YORK, "is not within"),
        ("0001-01-01T00:00", BERLIN, "is not within"),
    ],
)
def test_refusals(text: str, zone: ZoneInfo, says: str) -> None:
    """A time that is no moment, or two, or out of range says so, with its place."""
    with pytest.raises(InvalidError, match=rf"^start: .*{says}"):
        moment(text, zone)


@pytest.mark.parametrize("text", ["2013-03-10T01:59:59", "2013-03-10T03:00", "2013-11-03T00:59:59", "2013-11-03T02:00"])
def test_beside_the_leap_all_is_well(text: str) -> None:
    """The last moment before it and the first after it are each one moment."""
    moment(text, NEW_YORK)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "01/06/2013", "2013-W22-6", "2013-06-01x00:00", "2013-02-29T00:00Z", "2013-06-01T25:00Z"]
)
def test_what_is_no_time(text: str) -> None:
    """Other ways to write a time, and days that there are not, are none."""
    assert times.read(text) is None


def test_answers_are_steps_apart_in_time() -> None:
    """Over a change of the clocks a step is a step: an hour of the night is left out, or comes twice."""
    spring = times.stamps(moment("2013-03-10T01:00:00-05:00"), HOUR, 2, NEW_YORK)
    autumn = times.stamps(moment("2013-11-03T01:00:00-04:00"), HOUR, 2, NEW_YORK)

    assert spring == ["2013-03-10T03:00:00-04:00", "2013-03-10T04:00:00-04:00"]
    assert autumn == ["2013-11-03T01:00:00-05:00", "2013-11-03T02:00:00-05:00"]


def test_answers_in_utc_end_with_z() -> None:
    """And only there: where winter time is UTC's, the offset stands."""
    assert times.stamps(0, HOUR, 1, UTC_ZONE) == ["1970-01-01T01:00:00Z"]
    winter = moment("2013-12-01T00:00Z")
    assert times.stamps(winter, HOUR, 1, ZoneInfo("Europe/London")) == ["2013-12-01T01:00:00+00:00"]


def test_there_is_no_time_after_the_last_year() -> None:
    """Where a step is beyond what can be written, there are none."""
    assert times.stamps(moment("9999-12-31T22:59:59Z"), HOUR, 1, UTC_ZONE) is not None
    assert times.stamps(moment("9999-12-31T22:59:59Z"), HOUR, 2, UTC_ZONE) is None
    assert times.stamps(moment("9999-12-31T22:59:59Z"), HOUR, 1, ZoneInfo("Asia/Tokyo")) is None


@given(st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)), st.sampled_from([NEW_YORK, BERLIN]))  # noqa: DTZ001
def test_every_moment_comes_back(time: datetime, zone: ZoneInfo) -> None:
    """A moment that is written as wall-clock time is among what that time may be; at most there are two."""
    moment = time.replace(tzinfo=UTC)

    found = times.candidates(moment.astimezone(zone).replace(tzinfo=None), zone)

    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) in found
    assert found == sorted(set(found))
    assert len(found) <= 2


@pytest.mark.parametrize(
    ("found", "gaps", "chosen"),
    [
        ([[0], [10, 20], [20, 30]], False, [0, 10, 20]),
        ([[10, 20], [20, 30], [40]], False, [20, 30, 40]),
        ([[10, 20], [20, 30]], False, [None, None]),
        ([[0], [20, 30]], True, [0, None]),
        ([[5], [10, 25]], True, [5, 25]),
        ([[0], [10, 20], [30]], True, [0, None, 30]),
        ([[0], [10, 20], [20, 30], [40]], True, [0, None, None, 40]),
        ([[5], [10, 25]], False, [5, None]),
        ([[0], [10]], False, [0, 10]),
    ],
)
def test_neighbours_tell_which_it_is(found: list[list[int]], gaps: bool, chosen: list[int | None]) -> None:
    """Of a time that comes twice: the one a step (10) from a sure one; with gaps, any that alone is some steps off.

    Where one of the two is missing, the row before and the row behind tell different ones, and nobody knows.
    """
    assert list(times.chosen(found, 10, gaps=gaps)) == chosen
