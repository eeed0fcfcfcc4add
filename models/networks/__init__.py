"""The networks, found by their file names: a new file here is a new architecture, and nothing else changes.

Each file defines a `Config`, whose `build` makes the network for a shape.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from models.calendar import Dated, Dates
from models.calendar import within as within_calendar
from models.core import Config, Core, Shape, Surroundings
from models.forecaster import Forecaster
from models.gaps import Observed
from models.gaps import within as within_gaps
from models.layers.scaler import Scaler
from models.seasonal import Seasonal
from models.spec import Derived, Feature

PLAIN = Surroundings()
"""Windows are complete, and nobody is told when they were."""


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
    features: Sequence[Feature],
    *,
    window: int,
    horizon: int,
    derived: Sequence[Derived] = (),
    interval: int = 3600,
    quantiles: int = 0,
) -> Shape:
    """What these features ask of a network; each of the derived is of one of them."""
    names = [feature.name for feature in features]
    return Shape(
        window=window,
        horizon=horizon,
        roles=tuple("future" if feature.is_known else feature.role for feature in features),
        static=tuple(index for index, feature in enumerate(features) if feature.role == "static"),
        quantiles=quantiles,
        interval=interval,
        derived=tuple((names.index(one.of), one) for one in derived),
    )


def build(
    architecture: str,
    config: Mapping[str, Any],
    features: Sequence[Feature],
    shape: Shape,
    surroundings: Surroundings = PLAIN,
) -> Forecaster:
    """A fresh network in its shell, for the shape that these features ask for.

    pydantic.ValidationError for a wrong option, ValueError for a shape that the network cannot have.
    """
    options = config_of(architecture)(**config)
    return Forecaster(surrounded(options, shape, surroundings), Scaler(features, shape.quantiles))


def surrounded(options: Config, shape: Shape, surroundings: Surroundings) -> Core:
    """The network of these options within what completes its windows and tells it of their time."""
    gaps, calendar, short = surroundings.gaps, surroundings.calendar, surroundings.short
    completes = gaps is not None or short
    dated = within_gaps(shape, gaps, short=short) if completes else shape
    seen = within_calendar(dated, calendar) if calendar else dated
    core = options.build(seen)
    if options.cycle:
        core = Seasonal(core, options.cycle)
    if calendar:
        core = Dated(core, dated, Dates(calendar, surroundings.timezone, surroundings.holidays))
    return Observed(core, shape, gaps, short=short) if completes else core
