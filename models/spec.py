"""What an artifact says of itself: `spec.json`, a frozen pydantic model that needs no torch.

Shapes: L window, F features, H horizon (steps a pass), N steps, T targets, K known-future covariates, R attention
rows a pass. Values are in the units of the data, never scaled.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

FORMAT = "torchscript/1"
"""The only archive format that this release reads; docs/decisions/0001 says what the field is for."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]
Role = Literal["target", "past", "future", "static"]
Recursion = Literal["carried", "sliding"]
Ahead = Literal["forecast", "given", "constant"]
Scaling = Literal["standard", "min_max", "robust", "none"]
CalendarName = Literal["hour", "day_of_week", "day_of_month", "day_of_year", "holiday"]
Method = Literal["conformal", "scaled", "cqr"]

_AHEAD: dict[Role | None, Ahead] = {"future": "given", "static": "constant"}
_IQR_OF_NORMAL = 1.349
"""The distance of the quartiles of a normal distribution, in standard deviations."""

_NAME = re.compile(NAME_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_model_name(text: str) -> bool:
    """Whether `text` may name a model (and so a folder and a part of a URL)."""
    return _NAME.fullmatch(text) is not None


def first_error(error: ValidationError) -> str:
    """The first thing wrong with a document, after its place where it has one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


class Frozen(BaseModel):
    """The manners of every part of a spec: immutable, and no field that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Statistics(Frozen):
    """Of one feature over the training rows, in its unit."""

    mean: FiniteFloat
    std: FiniteFloat
    min: FiniteFloat
    max: FiniteFloat
    quartiles: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    """At 25, 50 and 75 %; None where the archive is older than they are."""

    @property
    def scale(self) -> float:
        """What stands for 1 after scaling: `std`, or 1 for a constant feature, which tells nothing and stays zero."""
        return self.std or 1.0


def limits_of(role: Role, minimum: float | None, maximum: float | None) -> tuple[float, float]:
    """What a feature keeps within, infinite where nothing is said; ValueError where that cannot be."""
    if role != "target" and (minimum, maximum) != (None, None):
        raise ValueError("minimum and maximum are of targets: nothing else is forecast for anybody")
    low, high = -math.inf if minimum is None else minimum, math.inf if maximum is None else maximum
    if low >= high:
        raise ValueError(f"minimum ({low:g}) must be less than maximum ({high:g})")
    return low, high


class Feature(Frozen):
    """One column of the window."""

    name: Annotated[str, Field(min_length=1)]
    role: Role
    ahead: Ahead = Field(default_factory=lambda given: _AHEAD.get(given.get("role"), "forecast"))
    """How it goes on in a recursion: forecast with the targets and fed back, given by the request, or as it was."""
    unit: str = ""
    scaling: Scaling = "standard"
    """How the graph scales it: a value x becomes (x - shift) / scale."""
    minimum: FiniteFloat | None = None
    """Of a target: what no forecast and no interval goes below; likewise above:"""
    maximum: FiniteFloat | None = None
    statistics: Statistics

    @model_validator(mode="after")
    def _is_within(self) -> Self:
        limits_of(self.role, self.minimum, self.maximum)
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest that may be forecast."""
        return limits_of(self.role, self.minimum, self.maximum)

    @property
    def is_known(self) -> bool:
        """Whether its values ahead are known: a static feature has one value, then and now."""
        return self.role in ("future", "static")

    @property
    def shift(self) -> float:
        """What becomes 0: the mean, the minimum, the median, or 0."""
        of = self.statistics
        if self.scaling == "robust" and of.quartiles:
            return of.quartiles[1]
        return {"min_max": of.min, "none": 0.0}.get(self.scaling, of.mean)

    @property
    def scale(self) -> float:
        """What becomes 1: the standard deviation, the range, what the quartiles say the former is, or 1.

        Where that is zero, the standard deviation; where that is, 1.
        """
        of = self.statistics
        spread = of.std
        if self.scaling == "robust" and of.quartiles:
            spread = (of.quartiles[2] - of.quartiles[0]) / _IQR_OF_NORMAL
        return {"min_max": of.max - of.min, "none": 1.0}.get(self.scaling, spread) or of.scale


class Derived(Frozen):
    """A feature that the graph computes from the last `rows` rows of another, so that requests send raw data.

    `difference` is the change from `rows` rows before, `trend` the slope of the least-squares line, a row.
    """

    of: Annotated[str, Field(min_length=1)]
    kind: Literal["mean", "variance", "trend", "difference"]
    rows: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _has_rows_enough(self) -> Self:
        if self.rows < 2 and self.kind != "difference":
            raise ValueError(f"rows: a {self.kind} takes 2 or more; got {self.rows}")
        return self


class Data(Frozen):
    """A file that the model was trained on."""

    file: str
    sha256: str
    rows: PositiveInt


class Span(Frozen):
    """The half-open time [start, end) of one part of the chronological split, and its windows."""

    start: AwareDatetime
    end: AwareDatetime
    windows: PositiveInt


class Gaps(Frozen):
    """What the graph does about missing values in a window: what a request and a training window may lack."""

    method: Literal["carry_forward", "interpolate"]
    """With the last value before the gap, or on a straight line between its neighbours.

    Where there is none before, with the first after it; where there is none after, with the last before it.
    """
    limit: PositiveInt
    """The longest run of missing values of one feature, in rows; a longer one is refused."""
    mask: bool = False
    """Whether the network is told of each value whether it was missing."""


class Calendar(Frozen):
    """What the graph computes from the clock and tells the network of every row, given or ahead."""

    features: Annotated[tuple[CalendarName, ...], Field(min_length=1)]
    """A cycle is a sine and a cosine; a holiday is 1."""
    holidays: str | None = None
    """Whose, as the library `holidays` names them: a country, `US`, or a part of one, `US-NY`."""

    @model_validator(mode="after")
    def _knows_whose_holidays(self) -> Self:
        if ("holiday" in self.features) != (self.holidays is not None):
            raise ValueError("holidays: needed where, and only where, 'holiday' is among the features")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features: each at most once")
        return self


class IntervalScores(Frozen):
    """Of intervals at one level on the test windows, by target, one entry a step ahead."""

    coverage: dict[str, list[FiniteFloat]]
    """The share of the truth that was inside."""
    width: dict[str, list[FiniteFloat]]
    """The mean, in the target's unit."""
    winkler: dict[str, list[FiniteFloat]]
    """The interval score (Winkler, 1972): the width, and 2 / alpha times how far outside the truth was."""


class Intervals(Frozen):
    """How prediction intervals are made, and what they were measured to cover on the test windows."""

    method: Method
    symmetric: bool = False
    levels: list[FiniteFloat]
    """Percent: those that were measured; any other that the calibration windows support can be asked for too."""
    calibrated_steps: PositiveInt
    extrapolate: bool = False
    """Whether there are intervals beyond those steps; they are marked, and no step is narrower than one before."""
    coverage: dict[str, list[FiniteFloat]]
    """By level, then by step: the mean of the targets."""
    windows: PositiveInt
    """That calibrated; they overlap:"""
    effective: PositiveInt
    """about so many are independent."""
    calibration: Span
    scores: dict[str, IntervalScores] = Field(default={})
    """By level: of these intervals."""
    simultaneous: dict[str, dict[str, FiniteFloat]] = Field(default={})
    """By level and target: the share of test windows whose whole path was inside the simultaneous band."""
    adaptive: dict[str, list[FiniteFloat]] = Field(default={})
    """By level, then by step: coverage where the truth of each forecast had corrected later ones; mean of targets."""
    baselines: dict[str, dict[str, IntervalScores]] = Field(default={})
    """By baseline (`gaussian`, `seasonal_naive`), then by level."""


class Training(Frozen):
    """Where the model comes from: enough to make it again."""

    data: list[Data]
    train: Span
    validation: Span
    calibration: Span | None = None
    """None where nothing was calibrated."""
    test: Span
    recipe: dict[str, Any]
    seed: int
    libraries: dict[str, str]
    created: AwareDatetime


class Scores(Frozen):
    """Errors on the test windows in the target's unit, by step ahead (one entry a step).

    `mase` is the mean absolute error over that of the seasonal-naive forecast on the training rows of the same series
    (Hyndman and Koehler, 2006); None where no series has one.
    """

    mae: list[FiniteFloat]
    rmse: list[FiniteFloat]
    r2: list[FiniteFloat | None]
    mase: list[FiniteFloat | None]
    smape: list[FiniteFloat] = Field(default=[])
    """Percent, from 0 to 200; empty, like the two below, where the archive is older than they are."""
    standardised_mse: list[FiniteFloat] = Field(default=[])
    """Of values whose mean and standard deviation on the training rows are 0 and 1, however the model scales them."""
    standardised_mae: list[FiniteFloat] = Field(default=[])


class Metrics(Frozen):
    """Test errors of the exported artifact and of the naive baselines, on the same windows."""

    steps: PositiveInt
    windows: PositiveInt
    season: PositiveInt
    horizon: PositiveInt | None = None
    """Up to this step forecasts are direct, beyond it recursive; None where the archive is older than the field."""
    model: dict[str, Scores]
    """By target."""
    baselines: dict[str, dict[str, Scores]]
    """By baseline (`last_value`, `seasonal_naive`, `linear`), then by target."""


class Example(Frozen):
    """A request and the answer that every load must reproduce: acceptance test and warm-up in one."""

    window: list[list[FiniteFloat | None]]
    """[L, F]; None where a value is missing."""
    start: AwareDatetime | None
    """Time of the window's first row."""
    future: list[list[FiniteFloat]] | None
    """[N, K]; None where the model has no known-future covariates."""
    static: list[FiniteFloat] | None = None
    """[S]; None where the model has no static features."""
    steps: PositiveInt
    forecast: list[list[FiniteFloat]]
    """[N, T]; where the model has quantiles, T of the forecast and then T of each of them."""
    attention: list[list[FiniteFloat]]
    """[R * ceil(N / H), L]"""


class Spec(Frozen):
    """The contract between a model and everyone who uses it (design §3)."""

    name: ModelName
    version: PositiveInt
    format: str = FORMAT
    architecture: str
    config: dict[str, Any]
    recursion: Recursion
    """Beyond one pass: hidden state carried on, or the window moved on. Either way targets and past covariates are
    forecast together and fed back; known-future covariates come from the request."""
    features: Annotated[list[Feature], Field(min_length=1)]
    targets: Annotated[list[str], Field(min_length=1)]
    window: PositiveInt
    horizon: PositiveInt
    attention_rows: Annotated[int, Field(ge=0)]
    embedding: Annotated[int, Field(ge=0)] = 0
    """The width of what `embed` gives; 0 where the archive has no such method."""
    attention_heads: Annotated[int, Field(ge=0)] = 0
    """How many attention heads `heads` gives one by one; 0 where the archive has no such method."""
    derived: tuple[Derived, ...] = ()
    """Features that the graph adds to the window's."""
    frequency: Annotated[timedelta, Field(gt=timedelta(0))]
    """Time between rows; in JSON an ISO 8601 duration, `PT1H`."""
    time: str = "time"
    """What tables call the column of times,"""
    series: str | None = None
    """and that of the series' names; None where a file was a series."""
    timezone: str = "UTC"
    """Of times that name no offset, of the calendar and of the timestamps in answers (IANA name)."""
    clock: bool
    """Whether the forecast depends on when the window was."""
    calendar: Calendar | None = None
    gaps: Literal["refuse"] | Gaps
    shortest: PositiveInt | None = None
    """The fewest rows that a window may have; None where it must have them all."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """That the network forecasts besides."""
    intervals: Intervals | None = None
    training: Training
    metrics: Metrics
    example: Example

    @cached_property
    def columns(self) -> list[str]:
        """The names of a request's columns, in order: the features but the static ones."""
        return [feature.name for feature in self.features if feature.role != "static"]

    @cached_property
    def future(self) -> list[str]:
        """The names of the known-future covariates, in order, which a request gives ahead."""
        return [feature.name for feature in self.features if feature.role == "future"]

    @cached_property
    def static(self) -> list[str]:
        """The names of the static features, in order, which a request gives once for a window."""
        return [feature.name for feature in self.features if feature.role == "static"]

    @cached_property
    def known(self) -> list[str]:
        """The names of the K features whose values ahead are known, in order: known-future and static ones."""
        return [feature.name for feature in self.features if feature.is_known]

    @property
    def outputs(self) -> int:
        """How many numbers a step of the forecast has: T, and T for each quantile."""
        return len(self.targets) * (1 + len(self.quantiles))

    @property
    def fewest(self) -> int:
        """The fewest rows that a window may have."""
        return self.shortest or self.window

    @field_validator("timezone")
    @classmethod
    def _is_a_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # it is looked for as a file
            raise ValueError(f"unknown time zone {name!r}") from error
        return name

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("features: names must be unique")
        if self.targets != [feature.name for feature in self.features if feature.role == "target"]:
            raise ValueError("targets: must be the features whose role is 'target', in the same order")
        if self.attention_rows and self.horizon % self.attention_rows:
            raise ValueError(f"attention_rows: {self.attention_rows} do not divide the horizon of {self.horizon}")
        if self.shortest and self.shortest > self.window:
            raise ValueError(f"shortest: {self.shortest} is more than the window of {self.window}")
        if self.calendar and not self.clock:
            raise ValueError("clock: a model with a calendar has one")
        self._check_example()
        try:
            _ = (self.example.start or _EPOCH) + self.window * self.frequency
        except OverflowError:
            raise ValueError(f"window: {self.window} rows {self.frequency} apart end after the year 9999") from None
        return self

    def _check_example(self) -> None:
        example, future, static = self.example, len(self.future), len(self.static)
        passes = -(-example.steps // self.horizon)
        for name, rows, height, width in (
            ("window", example.window, self.window, len(self.columns)),
            ("future", example.future or [], example.steps if future else 0, future),
            ("static", [example.static] if example.static else [], 1 if static else 0, static),
            ("forecast", example.forecast, example.steps, self.outputs),
            ("attention", example.attention, self.attention_rows * passes, self.window),
        ):
            if len(rows) != height or any(len(row) != width for row in rows):
                raise ValueError(f"example.{name}: must be {height} rows of {width} numbers")
        if self.clock and example.start is None:
            raise ValueError("example.start: missing, although the model has a clock")
