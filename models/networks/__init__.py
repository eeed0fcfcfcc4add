"""The networks, found by their file names: a new file here is a new architecture, and nothing else changes.

Each file defines a `Config`, whose `build` makes the network for a shape.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from models.core import Config, Shape
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from models.seasonal import Seasonal
from models.spec import Derived, Feature


@cache
def names() -> tuple[str, ...]:
    """The architectures there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def config_of(architecture: str) -> type[Config]:
    """The options of an architecture; ValueError naming the nearest for one that does not exist."""
    if architecture not in names():
        near = difflib.get_close_matches(architecture, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown architecture {architecture!r}{hint} (there are: {', '.join(names())})")
    return cast(type[Config], importlib.import_module(f"{__name__}.{architecture}").Config)


def shape_of(
    features: Sequence[Feature], *, window: int, horizon: int, derived: Sequence[Derived] = (), interval: int = 3600
) -> Shape:
    """What these features ask of a network; each of the derived is of one of them."""
    columns = [feature.name for feature in features]
    return Shape(
        window=window,
        horizon=horizon,
        roles=tuple(feature.role for feature in features),
        interval=interval,
        derived=tuple((columns.index(one.of), one) for one in derived),
    )


def build(
    architecture: str,
    config: Mapping[str, Any],
    *,
    window: int,
    horizon: int,
    features: Sequence[Feature],
    derived: Sequence[Derived] = (),
    interval: int = 3600,
) -> Forecaster:
    """A fresh network in its shell; pydantic.ValidationError for a wrong option, ValueError for a wrong shape.

    `interval` is the seconds between rows.
    """
    options = config_of(architecture)(**config)
    core = options.build(shape_of(features, window=window, horizon=horizon, derived=derived, interval=interval))
    return Forecaster(Seasonal(core, options.cycle) if options.cycle else core, Scaler(features))
