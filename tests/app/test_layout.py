"""Queries laid out for a model: what a model takes, and the place that is named when it does not."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from app.asked.layout import Layout, lay_out
from app.asked.query import WINDOW, WINDOWS, Query
from app.errors import InvalidError
from models.spec import Gaps, Spec
from tests.app.specs import spec_of

NAN = float("nan")
FILLS = {"gaps": Gaps(method="carry_forward", limit=2)}
SHORT: dict[str, Any] = {"shortest": 2}


def one(rows: list[list[float]], **beside: object) -> Query:
    windows = np.array([rows], np.float32)
    return Query(
        windows, **{"future": None, "start": None, "single": True, "gaps": bool(np.isnan(windows).any())} | beside
    )


def several(*windows: list[list[float]], **beside: object) -> Query:
    found = [np.array(rows, np.float32) for rows in windows]
    gaps = any(bool(np.isnan(window).any()) for window in found)
    return Query(found, **{"future": None, "start": None, "single": False, "gaps": gaps, "places": WINDOWS} | beside)


def lay(query: Query, spec: Spec, steps: int = 1, most: int = 10) -> Layout:
    return lay_out(query, spec, steps, most=most)


WHOLE = [[1.0], [2.0], [3.0], [4.0]]


def test_a_whole_window_is_taken_as_it_is() -> None:
    """Nothing is copied where nothing is to be done."""
    query = one(WHOLE)

    laid = lay(query, spec_of())

    assert laid.windows is query.windows
    assert laid.time.tolist() == [0]
    assert laid.known.shape == (1, 2, 0)
    assert laid.last is None


@pytest.mark.parametrize("rows", [2, 3])
def test_short_windows_get_rows_of_nothing_in_front(rows: int) -> None:
    """As many as are missing."""
    laid = lay(one(WHOLE[-rows:]), spec_of(**SHORT))

    np.testing.assert_array_equal(laid.windows, [[[NAN]] * (4 - rows) + WHOLE[-rows:]])


def test_windows_of_several_lengths() -> None:
    """Each is filled up on its own, at the front."""
    laid = lay(several(WHOLE, WHOLE[2:]), spec_of(**SHORT))

    np.testing.assert_array_equal(laid.windows, [WHOLE, [[NAN], [NAN], [3], [4]]])


def test_gaps_stay_missing() -> None:
    """To fill them is the model's business."""
    rows = [[1, NAN], [NAN, NAN], [3, NAN], [4, 5]]
    spec = spec_of(("target", "past"), gaps=Gaps(method="carry_forward", limit=3))

    np.testing.assert_array_equal(lay(one(rows), spec).windows, [rows])


def test_static_features_are_repeated_in_every_row() -> None:
    """In the window and in the known future, each in the place that it has among the features."""
    spec = spec_of(("static", "target", "future", "static"), horizon=2)
    query = several(
        *[[[1, 2]] * 4] * 2,
        future=np.array([[[7], [8], [9]]] * 2, np.float32),
        static=[[5, 6], {"static_3": 4, "static_0": 3}],
    )

    laid = lay(query, spec, steps=3)

    np.testing.assert_array_equal(laid.windows[:, 0], [[5, 1, 2, 6], [3, 1, 2, 4]])
    assert (laid.windows == laid.windows[:, :1]).all()
    np.testing.assert_array_equal(laid.known[0], [[5, 7, 6], [5, 8, 6], [5, 9, 6], [5, 9, 6]])
    np.testing.assert_array_equal(laid.known[1, 3], [3, 9, 4])


def test_absent_rows_know_their_static_features() -> None:
    """A row that was not given lacks what changes, and only that."""
    laid = lay(one([[3], [4]], static=[[9]]), spec_of(("target", "static"), **SHORT))

    np.testing.assert_array_equal(laid.windows[0], [[NAN, 9], [NAN, 9], [3, 9], [4, 9]])


def test_static_features_alone_are_a_known_future() -> None:
    """Without a known-future covariate, too, each step has them."""
    laid = lay(one(WHOLE, static=[[9]]), spec_of(("target", "static")), steps=3)

    np.testing.assert_array_equal(laid.known, np.full((1, 4, 1), 9))


def test_the_time_is_that_of_the_last_row() -> None:
    """From the first row that was given, in seconds for a model with a clock, and for the timestamps in any case."""
    start = [datetime(1970, 1, 1, tzinfo=UTC)]

    short = lay(one(WHOLE[1:], start=start), spec_of(**SHORT, clock=True))
    timeless = lay(one(WHOLE, start=start), spec_of())

    assert short.time.tolist() == [2 * 3600]
    assert timeless.time.tolist() == [0]
    assert timeless.last is not None
    assert timeless.last.tolist() == [3 * 3600 * 10**6]


def test_a_start_without_an_offset_is_of_the_models_zone() -> None:
    """Each of several on its own."""
    starts = [datetime(2013, 7, 1), datetime(2013, 7, 1, tzinfo=UTC)]  # noqa: DTZ001  that is what is read

    time = lay(several(WHOLE, WHOLE, start=starts), spec_of(clock=True, timezone="America/New_York")).time

    assert (time[0] - time[1]) == 4 * 3600


def test_leading_rows_without_a_value_count_as_not_given() -> None:
    """A short window may be filled up by the client; runs of missing values are counted behind such rows."""
    rows = [[NAN, NAN], [NAN, NAN], [3, NAN], [4, 5]]

    laid = lay(one(rows), spec_of(("target", "past"), **SHORT, gaps=Gaps(method="carry_forward", limit=1)))

    np.testing.assert_array_equal(laid.windows, [rows])


def test_without_short_windows_they_are_gaps() -> None:
    """Which are filled up to the limit, from behind."""
    assert np.isnan(lay(one([[NAN], [NAN], [3], [4]]), spec_of(**FILLS)).windows).sum() == 2


TWO = ("target", "past")
RICH = ("target", "future", "static")
REFUSALS: dict[str, tuple[Query, Spec, str]] = {
    "too few": (one(WHOLE[1:]), spec_of(), "window: 3 rows; the model takes exactly 4"),
    "too many": (one([*WHOLE, [5]]), spec_of(), "window: 5 rows; the model takes exactly 4"),
    "too many for a short one": (one([*WHOLE, [5]]), spec_of(**SHORT), "window: 5 rows; the model takes at most 4"),
    "too few for a short one": (one([[1]]), spec_of(**SHORT), "window: 1 rows; the model needs at least 2"),
    "one too short": (several(WHOLE, [[1]]), spec_of(**SHORT), r"windows\[1\]: 1 rows; the model needs at least 2"),
    "too little in it": (
        one([[NAN], [NAN], [NAN], [4]]),
        spec_of(**SHORT, **FILLS),
        "window: 1 rows with a value; the model needs at least 2",
    ),
    "nothing in it": (one([[NAN]] * 4), spec_of(**SHORT, **FILLS), "window: 0 rows with a value"),
    "a gap": (one([[1], [2], [NAN], [4]]), spec_of(), r"window\[2\]\[0\]: null, but the model does not fill gaps"),
    "a gap in a short one": (
        several(WHOLE, [[1], [NAN], [3]]),
        spec_of(**SHORT),
        r"windows\[1\]\[1\]\[0\]: null, but the model does not fill gaps",
    ),
    "a long gap": (
        one([[1, 1], [2, NAN], [3, NAN], [4, NAN]]),
        spec_of(TWO, **FILLS),
        r"window\[1\]\[1\]: more than 2 values missing in a row; the model fills at most so many",
    ),
    "a column of nothing": (
        several([[1, 1]] * 4, [[1, NAN]] * 4),
        spec_of(TWO, gaps=Gaps(method="carry_forward", limit=9)),
        r"windows\[1\]: no value of 'past_1'; the model cannot fill all of them",
    ),
    "a column of nothing after absent rows": (
        one([[NAN, NAN], [NAN, 2], [NAN, 3], [NAN, 4]]),
        spec_of(TWO, **SHORT, gaps=Gaps(method="carry_forward", limit=9)),
        "window: no value of 'target_0'",
    ),
    "columns": (one([[1, 2]] * 4), spec_of(), r"window\[0\]: 2 numbers; the model takes 1: target_0"),
    "static as a column": (
        one([[1, 2]] * 4, static=[[1]]),
        spec_of(("target", "static")),
        r"window\[0\]: 2 numbers; the model takes 1: target_0",
    ),
    "windows": (several(*[WHOLE] * 11), spec_of(), "windows: 11 windows; a request may have at most 10"),
    "no start": (
        one(WHOLE),
        spec_of(clock=True),
        "start: needed: the time of the first row, since the model has a clock",
    ),
    "no static": (one(WHOLE), spec_of(("target", "static")), "static: needed: static_1"),
    "needless static": (one(WHOLE, static=[[1]]), spec_of(), "static: the model has no static features"),
    "static of another length": (
        one(WHOLE, static=[[1, 2]]),
        spec_of(("target", "static")),
        "static: 2 numbers; the model takes 1: static_1",
    ),
    "static names": (
        several(WHOLE, WHOLE, static=[[1], {"static1": 2}]),
        spec_of(("target", "static")),
        r"static\[1\].static_1: missing; static\[1\].static1: unknown; did you mean 'static_1'\?",
    ),
    "no future": (one(WHOLE), spec_of(("target", "future")), r"window\[0\]: 1 numbers; the model takes 2"),
    "static in the future": (
        one([[1, 2]] * 4, static=[[1]], future=np.ones((1, 1, 2), np.float32)),
        spec_of(RICH),
        "future: 2 numbers a row; the model takes 1: future_1",
    ),
    "short future": (
        one([[1, 2]] * 4, static=[[1]], future=np.ones((1, 1, 1), np.float32)),
        spec_of(RICH),
        "future: 1 rows for 3 steps: 2 are missing",
    ),
}


@pytest.mark.parametrize(("query", "spec", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(query: Query, spec: Spec, says: str) -> None:
    """What the model does not take names its first place."""
    with pytest.raises(InvalidError, match=f"^{says}"):
        lay(query, spec, steps=3)


def test_gaps_up_to_the_limit_are_taken() -> None:
    """A run of just the limit, wherever it is, and several of them."""
    for rows in ([NAN, NAN, 3, 4], [1, NAN, NAN, 4], [1, 2, NAN, NAN], [NAN, 2, NAN, 4]):
        lay(one([[value] for value in rows]), spec_of(**FILLS))


def test_endless_names_are_cut() -> None:
    """What a refusal tells of a body is short."""
    query = one(WHOLE, static=[{f"{number}{'z' * 10_000}": 1.0 for number in range(1000)}], places=WINDOW)

    with pytest.raises(InvalidError) as refusal:
        lay(query, spec_of(("target", "static")))

    assert len(refusal.value.detail) < 2000
