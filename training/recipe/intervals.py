"""How prediction intervals are made: a section of the recipe."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from models.intervals import LevelError, miscoverage
from models.spec import Method
from training.recipe.section import Section

Level = Annotated[float, Field(gt=0, lt=100)]
Quantile = Annotated[float, Field(gt=0, lt=1)]


class Intervals(Section):
    """Prediction intervals, calibrated on windows of their own; `split.calibration` says how many there are.

    Each is so wide that it would have held the right share of what came after those windows (split conformal).
    """

    method: Method = "conformal"
    """From the forecast; the same in units of how much the window moves (`scaled`); or from two quantiles that the
    network forecasts besides (`cqr`, Romano et al., 2019), which makes them as wide as it finds the day uncertain."""
    symmetric: bool = False
    """As far down as up; half as many windows are enough for a level, but a biased forecast has wider intervals."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (80.0, 90.0, 95.0)
    """Percent: those that the test windows are measured at; requests may ask for others."""
    quantiles: tuple[Quantile, Quantile] = (0.05, 0.95)
    """Of `cqr`: the lower and the upper one."""
    extrapolate: bool = False
    """Beyond `window.steps`, give the widest of the calibrated ones, marked, instead of refusing."""

    @model_validator(mode="after")
    def _goes_upwards(self) -> Self:
        low, high = self.quantiles
        if low >= high:
            raise ValueError(f"quantiles: the first ({low:g}) must be below the second ({high:g})")
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError("levels: each once, in rising order")
        for level in self.levels:
            try:
                miscoverage(level)
            except LevelError as error:
                raise ValueError(f"levels: {error}") from error
        return self
