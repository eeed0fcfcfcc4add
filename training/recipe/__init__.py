"""What a training run is asked to do: a TOML file, read into frozen models that know every key they may meet."""

import copy
import difflib
import tomllib
import zoneinfo
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from itertools import product
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models import networks, spec
from models.core import Config
from models.spec import Calendar, Derived, ModelName, Role, Scaling, limits_of
from training.errors import RecipeError
from training.recipe import holidays
from training.recipe.intervals import Intervals
from training.recipe.section import Section, describe, refuse_unknown
from training.recipe.space import Search

Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

ARCHITECTURE = "network.architecture"
_OF_A_MEMBER = ("network.", "training.", "window.length")

_timezones = cache(zoneinfo.available_timezones)


class Column(Section):
    """A column of the files that the model is given; the order of columns is that of the window's features."""

    name: Text
    role: Role
    unit: str = ""
    minimum: FiniteFloat | None = None
    """Of a target: no forecast and no interval goes below, such as 0 for what is counted; likewise above:"""
    maximum: FiniteFloat | None = None
    scaling: Scaling = "standard"
    """By the training rows: mean and standard deviation, minimum and range, median and quartiles, or not at all."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        limits_of(self.role, self.minimum, self.maximum)
        return self


class DerivedColumn(Derived, Section):
    # Of the spec, with the manners of a recipe.
    __doc__ = Derived.__doc__


class CalendarColumns(Calendar, Section):
    # Of the spec, with the manners of a recipe.
    __doc__ = Calendar.__doc__

    @field_validator("holidays")
    @classmethod
    def _exist(cls, whose: str | None) -> str | None:
        if whose is not None:
            holidays.refuse_unknown(whose)
        return whose


class Gaps(Section):
    """What to do about missing values in the rows that are given: by default every window avoids them.

    The model fills them itself, so that requests may lack as much. What is to be forecast, what is known ahead and what
    is static is never filled.
    """

    method: Literal["refuse", "carry_forward", "interpolate"] = "refuse"
    """Avoid them; carry the last value forward; or draw a straight line between the neighbours."""
    limit: PositiveInt | None = None
    """The longest run of missing values of one feature that is filled, in rows; windows avoid longer ones."""
    mask: bool = False
    """Whether the network is told of each value whether it was missing."""

    @property
    def in_graph(self) -> spec.Gaps | None:
        """What the model does about them; None where it fills none."""
        if self.method == "refuse" or self.limit is None:
            return None
        return spec.Gaps(method=self.method, limit=self.limit, mask=self.mask)

    @model_validator(mode="after")
    def _says_how_far(self) -> Self:
        if self.method == "refuse" and (self.limit is not None or self.mask):
            raise ValueError("method: must be 'carry_forward' or 'interpolate' where there is a limit or a mask")
        if self.method != "refuse" and self.limit is None:
            raise ValueError(f"limit: needed where method is {self.method!r}")
        return self


class Data(Section):
    """Where the rows come from. Every file, or every name in it, is a series of its own: no window crosses from one to
    another."""

    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """CSV or Parquet, relative to the current directory; columns that are no features do not matter."""
    time: Text = "time"
    """The column of times."""
    timezone: str = "UTC"
    """Whose clocks times without an offset were read from, and the calendar goes by: an IANA name, "Europe/Berlin".

    Rows are evenly spaced in absolute time, so days that begin at local midnight are off the grid: leave them UTC."""
    series: Text | None = None
    """The column of series' names, where a file holds several; their rows may be mixed."""
    frequency: timedelta
    """Time between rows; in TOML an ISO 8601 duration, "PT1H"."""
    features: Annotated[tuple[Column, ...], Field(min_length=1)]
    derived: tuple[DerivedColumn, ...] = ()
    """Features that the model computes from these, so that requests need not: `of`, `kind`, `rows`."""
    gaps: Gaps = Gaps()
    calendar: CalendarColumns | None = None
    """What the model tells the network of every row's time: `features`, of hour, day_of_week, day_of_month, day_of_year
    and holiday; and with the last one whose `holidays`, a country, "US", or a part of one, "US-NY"."""

    @property
    def names(self) -> list[str]:
        """The F columns, in order."""
        return [column.name for column in self.features]

    @property
    def target_columns(self) -> list[int]:
        """Where the T targets are among the F columns."""
        return [index for index, column in enumerate(self.features) if column.role == "target"]

    @property
    def known_columns(self) -> list[int]:
        """Where the K columns are whose values ahead are known: known-future covariates and static features."""
        return [index for index, column in enumerate(self.features) if column.role in ("future", "static")]

    @property
    def static_columns(self) -> list[int]:
        """Where the static features are among the F columns."""
        return [index for index, column in enumerate(self.features) if column.role == "static"]

    @property
    def holidays(self) -> tuple[int, ...]:
        """Those of the calendar, in days since 1970-01-01."""
        whose = self.calendar and self.calendar.holidays
        return holidays.days_of(whose) if whose else ()

    @property
    def interval(self) -> int:
        """Seconds between rows."""
        return int(self.frequency.total_seconds())

    @model_validator(mode="after")
    def _keeps_time_and_series_apart(self) -> Self:
        if self.time in self.names:
            raise ValueError(f"features: {self.time!r} is the column of times; it cannot be a feature")
        if self.series in (self.time, *self.names):
            raise ValueError(f"series: {self.series!r} is a feature or the column of times")
        return self

    @field_validator("timezone")
    @classmethod
    def _exists(cls, timezone: str) -> str:
        if timezone not in _timezones():
            near = difflib.get_close_matches(timezone, sorted(_timezones()), n=1)
            raise ValueError(f"unknown time zone{f'; did you mean {near[0]!r}?' if near else ''}")
        return timezone

    @model_validator(mode="after")
    def _derives_from_features(self) -> Self:
        for index, one in enumerate(self.derived):
            if one.of not in self.names:
                raise ValueError(f"derived[{index}].of: no feature {one.of!r} (there are: {', '.join(self.names)})")
        return self

    @field_validator("frequency")
    @classmethod
    def _is_whole_seconds(cls, frequency: timedelta) -> timedelta:
        if frequency < timedelta(seconds=1) or frequency.microseconds:
            raise ValueError("must be one or more whole seconds")
        return frequency

    @field_validator("features")
    @classmethod
    def _has_targets(cls, features: tuple[Column, ...]) -> tuple[Column, ...]:
        names = [column.name for column in features]
        if len(set(names)) != len(names):
            raise ValueError("names must be unique")
        if not any(column.role == "target" for column in features):
            raise ValueError("at least one must have role 'target'")
        return features


class Split(Section):
    """Fractions of the time that all files span together, oldest first; what is left over is for the test."""

    train: Fraction = 0.7
    validation: Fraction = 0.1
    calibration: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Between validation and test: what prediction intervals are measured on; with 0 there is no such part."""

    @model_validator(mode="after")
    def _leaves_a_test(self) -> Self:
        used = self.train + self.validation + self.calibration
        if used >= 1:
            parts = "train + validation + calibration" if self.calibration else "train + validation"
            raise ValueError(f"{parts} must be less than 1; got {used:g}")
        return self


class Window(Section):
    """Sizes in rows."""

    length: PositiveInt
    """What the model is given."""
    shortest: PositiveInt | None = None
    """The fewest of these rows with which it forecasts too, more than `horizon`; if not given it needs them all."""
    horizon: PositiveInt = 1
    """What one pass forecasts."""
    steps: PositiveInt
    """What the loss and the metrics cover, in as many passes as that takes."""
    season: PositiveInt
    """The period of the seasonal-naive forecast and of MASE; at most `length`."""

    @model_validator(mode="after")
    def _holds_a_season(self) -> Self:
        if self.season > self.length:
            raise ValueError(f"season ({self.season}) must not be longer than length ({self.length})")
        return self

    @property
    def fewest(self) -> int:
        """The fewest rows that the model is given."""
        return self.shortest or self.length

    @model_validator(mode="after")
    def _shortens(self) -> Self:
        if self.shortest is not None and not self.horizon < self.shortest <= self.length:
            raise ValueError(
                f"shortest ({self.shortest}) must be more than horizon ({self.horizon}) and not more than"
                f" length ({self.length})"
            )
        return self

    @model_validator(mode="after")
    def _learns_what_it_forecasts(self) -> Self:
        if self.horizon > self.steps:
            raise ValueError(
                f"horizon ({self.horizon}) must not be longer than steps ({self.steps}), which the loss covers"
            )
        return self


class Network(Section):
    """An architecture of `models/networks` and its options; `python -m training networks` lists them."""

    architecture: str
    config: SerializeAsAny[Config] = Field(default_factory=dict, validate_default=True)
    """The defaults are the architecture's own."""

    @field_validator("architecture")
    @classmethod
    def _exists(cls, architecture: str) -> str:
        networks.config_of(architecture)
        return architecture

    @field_validator("config", mode="plain")
    @classmethod
    def _of_the_architecture(cls, given: object, info: ValidationInfo) -> object:
        if "architecture" not in info.data:
            return given
        options = networks.config_of(info.data["architecture"])
        if isinstance(given, dict):
            refuse_unknown(given, options.model_fields)
        return options.model_validate(given)


class Augment(Section):
    """Random changes to the training windows, new in every epoch; known-future covariates stay as they are."""

    jitter: NonNegativeFloat = 0.0
    """Noise on the window that is given, in standard deviations of each feature."""
    scaling: NonNegativeFloat = 0.0
    """The spread, about 1, of the factor by which window and truth are stretched about the training mean."""
    window_slicing: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The smallest fraction of the window, its newest rows, that is stretched to the window's length; 1 is all."""
    random_crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The largest fraction of the window, its oldest rows, that is replaced by the oldest row kept."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self != Augment()


class Stateful(Section):
    """Training on long series without windows: the state goes on from step to step, its gradient does not."""

    rows: PositiveInt = 64
    """Through so many rows the gradient of a step goes back."""
    lanes: PositiveInt = 16
    """About so many places at which the series are read at once."""


class Hardware(Section):
    """Where the arithmetic is done. Of several devices, each takes its part of every batch."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: NonNegativeInt = 1
    """Of each machine; 0 takes all that there are. On a CPU they are processes."""
    nodes: PositiveInt = 1
    """Machines; the same command is started on each, by torchrun, SLURM or whatever Lightning recognises."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the arithmetic where it is safe; weights and what is published are always float32."""

    @property
    def parallel(self) -> bool:
        """Whether several processes may take part."""
        return self.devices != 1 or self.nodes > 1


class Training(Section):
    """How the weights are found. The loss is of scaled values: in standard deviations where `scaling` is standard."""

    seed: NonNegativeInt = 0
    threads: PositiveInt = 1
    """Of the processor. Small networks are fastest with one; it is part of the recipe since it decides last digits."""
    epochs: PositiveInt = 30
    patience: PositiveInt = 6
    """Epochs without a better validation error before training stops."""
    batch: PositiveInt = 256
    """Windows a step."""
    loss: Literal["mse", "mae", "huber", "quantile"] = "huber"
    huber_delta: PositiveFloat = 1.0
    """Where the Huber loss turns from squares to absolute values."""
    quantile: Fraction = 0.5
    """What the quantile loss lets the forecast be; 0.5 is the median."""
    covariate_weight: NonNegativeFloat = 0.2
    """Of a past covariate in the loss, where a target has 1: its forecasts are only fed back."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of rmsprop and sgd."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    """Of adamw, taken off the weights at each step; of the others, the factor of their squares in the loss (L2)."""
    schedule: Literal["none", "cosine", "plateau", "exponential", "one_cycle"] = "cosine"
    """Of the learning rate: constant; falling to zero over `epochs`; multiplied by `decay` where there is no progress
    or after each epoch; rising to `learning_rate` and falling to almost zero, step by step."""
    decay: Fraction = 0.5
    """The factor of `plateau` and `exponential`."""
    plateau_patience: PositiveInt = 2
    """Epochs without progress after which `plateau` multiplies."""
    warmup: NonNegativeFloat = 0.0
    """Epochs in which the learning rate first rises step by step; for none, cosine and exponential."""
    clip: NonNegativeFloat = 1.0
    """The largest norm of the gradient; 0 leaves it as it is."""
    clip_value: NonNegativeFloat = 0.0
    """The largest absolute value in the gradient, in place of `clip`, which must be 0 then; 0 leaves it as it is."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What the moving average of the weights keeps at each step; 0 goes without. It is validated and published."""
    teacher_forcing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """In the first epoch, the share of passes that go on from what came instead of the forecast; 0 in the last."""
    shorten: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Where there is a `window.shortest`, the share of training windows whose oldest rows, a random number of them, are
    left out."""
    augment: Augment = Augment()
    stateful: Stateful | None = None
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _clips_one_way(self) -> Self:
        if self.clip and self.clip_value:
            raise ValueError(
                f"clip ({self.clip:g}) and clip_value ({self.clip_value:g}) exclude each other; set one of them to 0"
            )
        return self

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup and self.schedule in {"plateau", "one_cycle"}:
            raise ValueError(f"warmup goes with schedule none, cosine or exponential, not with {self.schedule!r}")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup ({self.warmup:g}) must be shorter than epochs ({self.epochs})")
        return self

    @model_validator(mode="after")
    def _streams_alone(self) -> Self:
        if self.stateful is None:
            return self
        for option, used in {
            "teacher_forcing": self.teacher_forcing > 0,
            "augment": self.augment.active,
            "hardware.devices and hardware.nodes": self.hardware.parallel,
        }.items():
            if used:
                raise ValueError(f"stateful training has no windows and one process; it goes without {option}")
        return self


class Recipe(Section):
    """Everything that decides what comes out, given the files."""

    name: ModelName
    """Under which the model is published."""
    data: Data
    split: Split = Split()
    window: Window
    network: Network
    training: Training = Training()
    intervals: Intervals = Intervals()
    ensemble: tuple[dict[str, Any], ...] = ()
    """Several networks trained one after the other and published as one, whose forecast is the mean of theirs: for
    each, full keys of the recipe in quotes, under network and training or window.length, with the member's values."""
    search: Search | None = None

    @property
    def quantiles(self) -> tuple[float, ...]:
        """That the network forecasts besides, for intervals to be taken from."""
        return self.intervals.quantiles if self.intervals.method == "cqr" and self.split.calibration else ()

    def members(self) -> tuple["Recipe", ...]:
        """The recipe of each network: of an ensemble as many as it has, else this one."""
        return tuple(self._members()) or (self,)

    def given(self) -> dict[str, Any]:
        """What the recipe's file says, without the defaults: they depend on the architecture."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"search"})

    def having(self, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with these values at these full keys and without `[search]`; RecipeError where it refuses them.

        Where the architecture changes, options that the new one does not have are left out.
        """
        given = self.given()
        for key in sorted(values, key=lambda key: key != ARCHITECTURE):
            given = put(given, key, values[key])
        try:
            return Recipe.model_validate(given)
        except ValidationError as error:
            raise RecipeError("; ".join(map(describe, error.errors()))) from error

    def _members(self) -> Iterator["Recipe"]:
        for index, values in enumerate(self.ensemble):
            try:
                yield self.having({**values, "ensemble": ()})
            except RecipeError as error:
                raise ValueError(f"ensemble[{index}]: {error}") from error

    @model_validator(mode="after")
    def _has_members(self) -> Self:
        for index, values in enumerate(self.ensemble):
            wrong = [key for key in values if not key.startswith(_OF_A_MEMBER)]
            if wrong:
                valid = ", ".join(f"{key}*" if key.endswith(".") else key for key in _OF_A_MEMBER)
                raise ValueError(f"ensemble[{index}]: {wrong[0]!r} is the same for all members (valid: {valid})")
        for index, member in enumerate(self._members()):
            if member.training.hardware.parallel:
                raise ValueError(f"ensemble[{index}]: training.hardware: members are trained in one process")
            if member.window.length > self.window.length:
                raise ValueError(
                    f"ensemble[{index}]: window.length ({member.window.length}) must not be longer than that of the"
                    f" recipe ({self.window.length})"
                )
        return self

    @model_validator(mode="after")
    def _calibrates(self) -> Self:
        if "intervals" in self.model_fields_set and not self.split.calibration:
            raise ValueError("intervals: nothing to calibrate them on; set split.calibration to 0.1, say")
        return self

    @model_validator(mode="after")
    def _derives_from_the_window(self) -> Self:
        for index, one in enumerate(self.data.derived):
            if one.rows > self.window.length:
                raise ValueError(
                    f"data.derived[{index}].rows ({one.rows}) must not be more than"
                    f" window.length ({self.window.length})"
                )
        return self

    @model_validator(mode="after")
    def _fills_less_than_there_is(self) -> Self:
        limit, window = self.data.gaps.limit, self.window
        if limit is not None and limit >= window.fewest:
            of = "length" if window.shortest is None else "shortest"
            raise ValueError(f"data.gaps.limit ({limit}) must be less than window.{of} ({window.fewest})")
        return self

    @model_validator(mode="after")
    def _stretches_no_gaps(self) -> Self:
        augment = self.training.augment
        moved = {"window_slicing": augment.window_slicing < 1, "random_crop": augment.random_crop > 0}
        gaps = {"data.gaps.method": self.data.gaps.method != "refuse", "window.shortest": self.window.shortest}
        for option, key in product(filter(moved.get, moved), filter(gaps.get, gaps)):
            raise ValueError(f"training.augment.{option} would make gaps longer; it goes without {key}")
        return self

    @model_validator(mode="after")
    def _has_passes_to_force(self) -> Self:
        if self.training.teacher_forcing and self.window.steps <= self.window.horizon:
            raise ValueError(
                f"training.teacher_forcing needs several passes: window.steps ({self.window.steps}) must be more than"
                f" window.horizon ({self.window.horizon})"
            )
        return self

    @model_validator(mode="after")
    def _streams_whole_passes(self) -> Self:
        stateful = self.training.stateful
        if stateful and self.window.shortest:
            raise ValueError("training.stateful has no windows that could be shorter; it goes without window.shortest")
        if stateful and stateful.rows < self.window.horizon:
            raise ValueError(
                f"training.stateful.rows ({stateful.rows}) must not be less than window.horizon ({self.window.horizon})"
            )
        return self

    def record(self) -> dict[str, Any]:
        """The recipe as an artifact keeps it: with every default, without `[search]` and this machine's folders."""
        given = self.model_dump(mode="json", exclude={"search"})
        given["data"]["files"] = [portable(file) for file in self.data.files]
        return given


def put(given: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """What a file says with another value at a full key; RecipeError where no table can be there."""
    changed = copy.deepcopy(given)
    *tables, last = key.split(".")
    table = changed
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{key!r}: {name!r} is not a table")
    table[last] = value
    if key == ARCHITECTURE and value in networks.names():
        valid = networks.config_of(str(value)).model_fields
        config = changed["network"].get("config", {})
        changed["network"]["config"] = {name: option for name, option in config.items() if name in valid}
    return changed


def portable(file: str) -> str:
    """A relative path as it is; of an absolute one only the name, for an artifact tells nothing of its maker's disk."""
    path = PurePath(file)
    return path.name if path.is_absolute() else file


def load(path: Path) -> Recipe:
    """Read a recipe; RecipeError naming every wrong place, one a line."""
    try:
        given = tomllib.loads(path.read_text("utf-8"))
        return Recipe.model_validate(given)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {describe(problem)}" for problem in error.errors())) from error
    except ValueError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
