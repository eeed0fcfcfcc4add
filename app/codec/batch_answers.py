"""The answers of a batch to lines of JSON, one a window.

Shapes: B windows, L window, N steps, T targets.
"""

from collections.abc import Iterable

import numpy as np
import orjson

from app.codec.answers import stamps_of
from app.errors import ForetellError
from app.forecasts.batch import Answered, Batch
from app.forecasts.predictor import Choice, Forecast

Content = dict[str, object]


def head(batch: Batch, choice: Choice) -> bytes:
    """What is about to be done."""
    model, spec = choice.meant.id, choice.meant.spec
    content: Content = {
        "model": model.name,
        "version": model.version,
        "digest": model.digest,
        "targets": spec.targets,
        "steps": choice.steps,
        "windows": batch.windows,
    }
    if choice.attention != "none":
        rows = spec.attention_rows
        content["attention"] = {"steps_per_row": spec.horizon // rows} if rows else None
    return written(content)


def lines(answered: Answered, told: Content | None) -> bytes:
    """What came of some windows; of one without a forecast what is `told` of its error."""
    names = answered.names
    failed: list[Content] = [{"error": told}]
    found = failed if isinstance(answered.result, ForetellError) else _forecasts(answered.result)
    content = []
    for index, line in enumerate(found):
        called = {"window": answered.start + index}
        content.append(written({**called, **({} if names is None else {"series": names[index]}), **line}))
    return b"".join(content)


def written(content: Content) -> bytes:
    """A line."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _forecasts(forecast: Forecast) -> Iterable[Content]:
    stamps = stamps_of(forecast.spec, forecast.last, forecast.forecast.shape[1])
    for index, values in enumerate(forecast.forecast):
        line: Content = {"forecast": np.ascontiguousarray(values)}
        if forecast.intervals is not None:
            line["intervals"] = {
                level: {"lower": np.ascontiguousarray(lower[index]), "upper": np.ascontiguousarray(upper[index])}
                for level, (lower, upper) in forecast.intervals.bounds.items()
            }
        if forecast.attention is not None:
            line["attention"] = np.ascontiguousarray(forecast.attention[index])
        if stamps is not None:
            line["timestamps"] = stamps[index]
        yield line
