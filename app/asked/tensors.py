"""What a model takes and gives as named tensors, in the words of the Open Inference Protocol.

Shapes: L window, C columns of a request, N steps, K known-future covariates, S static features, T targets, R attention
rows a pass; -1 is what a request chooses.
"""

from collections.abc import Iterator
from typing import NamedTuple

from models.spec import Spec

WINDOW, TIME, FUTURE, STATIC = "WINDOW", "TIME", "FUTURE", "STATIC"
FORECAST, ATTENTION, LOWER, UPPER = "FORECAST", "ATTENTION", "LOWER_", "UPPER_"
ANY = -1


class Tensor(NamedTuple):
    """One of them; its first size is the number of windows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def inputs_of(spec: Spec) -> list[Tensor]:
    """Each of these is needed."""
    found = [Tensor(WINDOW, "FP32", (ANY, ANY if spec.shortest else spec.window, len(spec.columns)))]
    if spec.clock:
        found.append(Tensor(TIME, "INT64", (ANY, 1)))
    if spec.future:
        found.append(Tensor(FUTURE, "FP32", (ANY, ANY, len(spec.future))))
    if spec.static:
        found.append(Tensor(STATIC, "FP32", (ANY, len(spec.static))))
    return found


def outputs_of(spec: Spec) -> list[Tensor]:
    """Each of these can be asked for; of the bounds, those of the levels that were measured."""
    forecast = (ANY, ANY, len(spec.targets))
    found = [Tensor(FORECAST, "FP32", forecast)]
    if spec.attention_rows:
        found.append(Tensor(ATTENTION, "FP32", (ANY, ANY, spec.window)))
    found += [Tensor(f"{side}{level}", "FP32", forecast) for level in _levels(spec) for side in (LOWER, UPPER)]
    return found


def _levels(spec: Spec) -> Iterator[str]:
    for level in spec.intervals.levels if spec.intervals else ():
        yield f"{level:g}"
