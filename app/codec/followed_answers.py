"""What came of forecasts, to JSON.

Shapes: B windows, n rows that followed, T targets.
"""

from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson
from numpy.typing import NDArray

from app.asked import times
from app.forecasts.predictor import stamping
from app.hindsight.followed import Compared, Judged, Surprises

_FIELDS = 5
"""Values that are told of an actual at most, but for those of each level."""


def effort_of(compared: Compared) -> int:
    """What such an answer takes to write, in numbers of JSON."""
    levels = 0 if compared.said.spec.intervals is None else len(compared.said.spec.intervals.levels)
    values = compared.truth.size * (_FIELDS + levels)
    return values + stamping(compared.said.layout.last, compared.truth.shape[1])


def judged(judged: Judged) -> bytes:
    """Errors and coverage: values [n, T], or [B][n][T] for several windows; null where it is not known what came."""
    compared, lesson = judged.compared, judged.lesson
    # Shortest in single precision, which is what forecasts and actuals are.
    answer = {**_head(compared), "errors": _numbers(compared, judged.errors.astype(np.float32))}
    if judged.levels:
        covered = judged.covered().items()
        answer["covered"] = {level: _flags(compared, flags, judged.known) for level, flags in covered}
        answer["adaptive"] = None if lesson is None else {"actuals": lesson.actuals}
    answer["counted"] = int(judged.fresh.sum())
    return _written(answer)


def surprises(surprises: Surprises, level: str) -> bytes:
    """How unusual each row is at a level: values [n, T], or [B][n][T] for several windows."""
    compared, p_values, (lower, upper) = surprises.compared, surprises.p_values, surprises.bounds
    bounds = {"lower": _numbers(compared, lower), "upper": _numbers(compared, upper)}
    return _written(
        {
            **_head(compared),
            "level": level,
            "expected": _numbers(compared, compared.forecast),
            "intervals": {level: bounds},
            "p_values": _numbers(compared, p_values),
            "anomalous": _flags(compared, p_values <= surprises.miscoverage, ~np.isnan(p_values)),
        }
    )


def _head(compared: Compared) -> dict[str, object]:
    said = compared.said
    head: dict[str, object] = {
        "model": said.model.name,
        "version": said.model.version,
        "digest": said.model.digest,
        "targets": said.spec.targets,
    }
    stamps = _stamps(compared)
    return head if stamps is None else {**head, "timestamps": stamps}


def _stamps(compared: Compared) -> object:
    """The times of the rows that followed; None where it is not known when the windows were."""
    last, spec = compared.said.layout.last, compared.said.spec
    if last is None:
        return None
    zone, pairs = ZoneInfo(spec.timezone), list(zip(last.tolist(), compared.lengths, strict=True))
    made = {(moment, rows): times.stamps(moment, spec.frequency, rows, zone) for moment, rows in set(pairs)}
    if None in made.values():
        return None
    found = [made[pair] for pair in pairs]
    return found[0] if compared.single else found


def _numbers(compared: Compared, values: NDArray[np.floating[Any]]) -> object:
    """[n, T], or a list of these, each as long as its own; null for NaN."""
    kept = [np.ascontiguousarray(rows[:length]) for rows, length in zip(values, compared.lengths, strict=True)]
    return kept[0] if compared.single else kept


def _flags(compared: Compared, values: NDArray[np.bool_], known: NDArray[np.bool_]) -> object:
    """The same of booleans, null where nothing is known."""
    told = values.astype(object)
    told[~known] = None
    kept = [rows[:length].tolist() for rows, length in zip(told, compared.lengths, strict=True)]
    return kept[0] if compared.single else kept


def _written(answer: dict[str, object]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
