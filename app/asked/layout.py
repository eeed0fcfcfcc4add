"""A query laid out for a model: its rows and columns as the archive takes them, or why it does not take them.

Shapes: B windows, l rows that a window has, L window, C columns of a request, F features, H steps a pass, N steps,
P passes, K known features (known-future ones, and the static ones among them), S static features.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from app.asked import times
from app.asked.query import Query, Static
from app.errors import InvalidError, Place
from app.ticket import Floats, Times
from models.spec import Gaps, Spec

_MICROSECOND = timedelta(microseconds=1)
_MICROSECONDS = 1_000_000
"""In a second."""
_LONGEST_ECHO = 80
_MOST_TOLD = 10
_NONE = "the model has no {}"


class Layout(NamedTuple):
    """What an order takes: windows [B, L, F], time [B] and the known future [B, P * H, K].

    `last` [B] is the time of each window's last row in epoch microseconds, None where nobody said when it was; `time`
    is the same in seconds, and zeros where the model has no clock.
    """

    windows: Floats
    time: Times
    known: Floats
    last: Times | None


def lay_out(query: Query, spec: Spec, steps: int, *, most: int) -> Layout:
    """For that many steps; InvalidError naming the first place that does not fit, and where there are more than `most`
    windows.
    """
    windows = _windows(query, spec, most)
    last = _last(query, spec)
    static = _static(query, spec)
    known = _known(query, spec, steps, static)
    if static is not None:
        windows = _beside(windows, static, [feature.role == "static" for feature in spec.features])
    time = last // _MICROSECONDS if spec.clock and last is not None else np.zeros(len(windows), np.int64)
    return Layout(windows, time, known, last)


def _windows(query: Query, spec: Spec, most: int) -> Floats:
    """[B, L, C], those that are shorter with rows of nothing before them."""
    places, windows = query.places, query.windows
    if len(windows) > most:
        raise InvalidError(Place("windows", f"{len(windows)} windows; a request may have at most {most}"))
    if isinstance(windows, np.ndarray) and windows.shape[1:] == (spec.window, len(spec.columns)) and not query.gaps:
        return windows
    columns, names = windows[0].shape[1], spec.columns
    if columns != len(names):
        problem = f"{columns} numbers; the model takes {len(names)}: {', '.join(names)}"
        raise InvalidError(Place(places.of_row(0, 0), problem))
    for index, window in enumerate(windows):
        _check_length(len(window), spec, places.of(index))
    whole = np.full((len(windows), spec.window, columns), np.nan, np.float32)
    for index, window in enumerate(windows):
        whole[index, -len(window) :] = window
    _check_gaps(whole, query, spec)
    return whole


def _check_length(rows: int, spec: Spec, place: str, given: str = "") -> None:
    if spec.fewest <= rows <= spec.window:
        return
    takes = f"needs at least {spec.fewest}" if rows < spec.fewest else f"takes at most {spec.window}"
    if spec.fewest == spec.window:
        takes = f"takes exactly {spec.window}"
    raise InvalidError(Place(place, f"{rows} rows{given}; the model {takes}"))


def _check_gaps(whole: Floats, query: Query, spec: Spec) -> None:
    """InvalidError naming the first value that must not be missing."""
    missing = np.isnan(whole)
    # Rows of nothing in front count as not given, where there may be fewer rows.
    absent = np.logical_and.accumulate(missing.all(2), 1) & (spec.shortest is not None)
    for index, rows in enumerate((spec.window - absent.sum(1)).tolist()):
        _check_length(rows, spec, query.places.of(index), " with a value")
    missing &= ~absent[:, :, None]
    if isinstance(spec.gaps, Gaps):
        _check_runs(missing, absent, spec.gaps.limit, query, spec)
    elif missing.any():
        place = _first_place(missing, query, spec)
        raise InvalidError(Place(place, f"{query.places.missing}, but the model does not fill gaps"))


def _check_runs(missing: NDArray[np.bool_], absent: NDArray[np.bool_], limit: int, query: Query, spec: Spec) -> None:
    """InvalidError where more values of a column are missing in a row than the limit, or all of them."""
    empty = (missing | absent[:, :, None]).all(1)
    if empty.any():
        index, column = (int(one) for one in np.argwhere(empty)[0])
        name = spec.columns[column]
        raise InvalidError(Place(query.places.of(index), f"no value of {name!r}; the model cannot fill all of them"))
    if limit >= spec.window:
        return
    before = np.cumsum(np.pad(missing, ((0, 0), (1, 0), (0, 0))), 1)
    long = np.asarray(before[:, limit + 1 :] - before[:, : -limit - 1] > limit)
    if long.any():
        place = _first_place(long, query, spec)
        problem = f"more than {limit} values missing in a row; the model fills at most so many"
        raise InvalidError(Place(place, problem))


def _first_place(marks: NDArray[np.bool_], query: Query, spec: Spec) -> str:
    """The first that is marked of windows [B, L, C], as the client counts it."""
    index, row, column = (int(one) for one in np.argwhere(marks)[0])
    return query.places.of_cell(index, row - spec.window + len(query.windows[index]), column, spec.columns[column])


def _last(query: Query, spec: Spec) -> Times | None:
    """Epoch microseconds of each window's last row [B]; None where nobody said."""
    if query.start is None:
        if spec.clock:
            problem = f"needed: the time of the first row, since the model has a clock{query.places.hint}"
            raise InvalidError(Place("start", problem))
        return None
    zone, step = ZoneInfo(spec.timezone), spec.frequency // _MICROSECOND
    return np.array(
        [
            times.moment(start, zone, "start" if query.single else f"start[{index}]") + (len(window) - 1) * step
            for index, (start, window) in enumerate(zip(query.start, query.windows, strict=True))
        ]
    )


def _static(query: Query, spec: Spec) -> Floats | None:
    """[B, S]; None where the model has none."""
    names = spec.static
    if not names:
        if query.static is not None:
            raise InvalidError(Place("static", _NONE.format("static features")))
        return None
    if query.static is None:
        raise InvalidError(Place("static", f"needed: {', '.join(names)}{query.places.hint}"))
    return np.array(
        [
            _static_row(given, names, "static" if query.single else f"static[{index}]")
            for index, given in enumerate(query.static)
        ],
        np.float32,
    )


def _static_row(given: Static, names: list[str], place: str) -> list[float]:
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            raise InvalidError(Place(place, f"{len(given)} numbers; the model takes {len(names)}: {', '.join(names)}"))
        return list(given)
    lacking = [Place(f"{place}.{name}", "missing") for name in names if name not in given]
    # A name may be as long as a body, and there may be as many.
    unknown = [name[:_LONGEST_ECHO] for name in given if name not in names][:_MOST_TOLD]
    if unknown or lacking:
        raise InvalidError(*lacking, *(Place(f"{place}.{name}", f"unknown{near(name, names)}") for name in unknown))
    return [given[name] for name in names]


def near(name: str, names: Iterable[str]) -> str:
    """What somebody may have meant who wrote that name, to end a message with."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _known(query: Query, spec: Spec, steps: int, static: Floats | None) -> Floats:
    """The known future [B, P * H, K]: what is given, and where that ends within a pass, as in its last row."""
    rows = math.ceil(steps / spec.horizon) * spec.horizon
    future = _future(query, spec, steps, rows)[:, :rows]
    if future.shape[1] < rows:
        future = np.pad(future, ((0, 0), (0, rows - future.shape[1]), (0, 0)), mode="edge")
    if static is None:
        return future
    return _beside(future, static, [feature.role == "static" for feature in spec.features if feature.is_known])


def _future(query: Query, spec: Spec, steps: int, whole: int) -> Floats:
    """[B, N or more, K], without the static ones; rows of nothing in whole passes where there are none."""
    names, windows = spec.future, len(query.windows)
    if not names:
        if query.future is not None:
            raise InvalidError(Place("future", _NONE.format("known-future covariates")))
        return np.empty((windows, whole, 0), np.float32)
    if query.future is None:
        raise InvalidError(Place("future", f"needed: {steps} rows of {', '.join(names)}{query.places.hint}"))
    given, rows, columns = query.future.shape
    if columns != len(names):
        raise InvalidError(
            Place("future", f"{columns} numbers a row; the model takes {len(names)}: {', '.join(names)}")
        )
    if given != windows:
        raise InvalidError(Place("future", f"for {given} windows, but there are {windows}"))
    if rows < steps:
        raise InvalidError(Place("future", f"{rows} rows for {steps} steps: {steps - rows} are missing"))
    return query.future


def _beside(rows: Floats, static: Floats, is_static: list[bool]) -> Floats:
    """Rows [B, n, *] with the static features [B, S] repeated in each, where the columns are those."""
    windows, height, width = rows.shape
    columns = np.array(is_static)
    together = np.empty((windows, height, width + static.shape[1]), np.float32)
    together[:, :, ~columns] = rows
    together[:, :, columns] = static[:, None]
    return together
