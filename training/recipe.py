"""What a training run is asked to do: a TOML file, read into frozen models that know every key they may meet."""

import tomllib
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
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

from models import networks
from models.core import Config
from models.spec import ModelName, Role
from training.errors import RecipeError
from training.section import Section, describe, refuse_unknown

Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Column(Section):
    """A column of the files that the model is given; the order of columns is that of the window's features."""

    name: Text
    role: Role
    unit: str = ""


class Gaps(Section):
    """What to do about missing values: by default every window avoids them."""

    carry_forward: NonNegativeInt = 0
    """Fill runs of at most so many missing rows with the last value; longer runs stay gaps."""


class Data(Section):
    """Where the rows come from. Every file is a series of its own: no window crosses from one to another."""

    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """CSV or Parquet, relative to the current directory."""
    time: Text = "time"
    """The column of times, UTC where they do not say otherwise."""
    frequency: timedelta
    """Time between rows; in TOML an ISO 8601 duration, "PT1H"."""
    features: Annotated[tuple[Column, ...], Field(min_length=1)]
    gaps: Gaps = Gaps()

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
        """Where the K known-future covariates are among the F columns."""
        return [index for index, column in enumerate(self.features) if column.role == "future"]

    @property
    def interval(self) -> int:
        """Seconds between rows."""
        return int(self.frequency.total_seconds())

    @model_validator(mode="after")
    def _keeps_time_apart(self) -> Self:
        if self.time in self.names:
            raise ValueError(f"features: {self.time!r} is the column of times; it cannot be a feature")
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

    @model_validator(mode="after")
    def _leaves_a_test(self) -> Self:
        if self.train + self.validation >= 1:
            raise ValueError(f"train + validation must be less than 1; got {self.train + self.validation:g}")
        return self


class Window(Section):
    """Sizes in rows."""

    length: PositiveInt
    """What the model is given."""
    horizon: PositiveInt = 1
    """What one pass forecasts."""
    steps: PositiveInt
    """What the loss and the metrics cover, in as many passes as that takes."""
    season: PositiveInt
    """The period of the seasonal-naive forecast and of MASE."""

    @model_validator(mode="after")
    def _holds_a_season(self) -> Self:
        if self.season > self.length:
            raise ValueError(f"season ({self.season}) must not be longer than length ({self.length})")
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


class Training(Section):
    """How the weights are found. The loss is in standard deviations of each feature."""

    seed: NonNegativeInt = 0
    threads: PositiveInt = 1
    """Of the processor. Small networks are fastest with one; it is part of the recipe since it decides last digits."""
    epochs: PositiveInt = 30
    patience: PositiveInt = 6
    """Epochs without a better validation error before training stops."""
    batch: PositiveInt = 256
    """Windows a step."""
    loss: Literal["mse", "mae", "huber"] = "huber"
    covariate_weight: NonNegativeFloat = 0.2
    """Of a past covariate in the loss, where a target has 1: its forecasts are only fed back."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["none", "cosine", "plateau"] = "cosine"
    """Of the learning rate: constant, falling to zero over `epochs`, or halved after each 2 epochs without progress."""
    clip: NonNegativeFloat = 1.0
    """The largest norm of the gradient; 0 leaves it as it is."""


class Recipe(Section):
    """Everything that decides what comes out, given the files."""

    name: ModelName
    """Under which the model is published."""
    data: Data
    split: Split = Split()
    window: Window
    network: Network
    training: Training = Training()

    def record(self) -> dict[str, Any]:
        """The recipe as it is kept in the artifact: with every default, without the folders of this machine."""
        given = self.model_dump(mode="json")
        given["data"]["files"] = [portable(file) for file in self.data.files]
        return given


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
