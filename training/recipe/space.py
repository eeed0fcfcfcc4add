"""The `[search]` section of a recipe: what a search may try, and how it goes about it.

`[search.space]` has full keys of the recipe, in quotes, and for each of them one of three:

    "network.config.hidden" = [32, 64, 128]                                  any of these
    "training.learning_rate" = { low = 1e-4, high = 1e-2, log = true }       any number between, both included
    [search.space."network.architecture".lstm]                               a table for each choice, with a space
    "network.config.layers" = [1, 2]                                         that only this choice has

Numbers are whole ones where `low`, `high` and `step` are all written as whole ones.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from training.recipe.section import Section, describe

if TYPE_CHECKING:
    # At run time it would cost every command that reads a recipe half a second.
    from optuna.trial import BaseTrial

Label = str | int | float | bool
"""How a study writes a value down."""


def _number(given: object) -> int | float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ValueError("must be a number")
    return given


Number = Annotated[int | float, PlainValidator(_number)]


class Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: Number
    high: Number
    step: Number | None = None
    """Between neighbours; without it whole numbers are 1 apart, and others are as fine as they come."""
    log: bool = False
    """Each power of ten as often as any other."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low must be greater than 0 where log = true")
        if self.step is not None:
            self._suits(self.step)
        return self

    def _suits(self, step: float) -> None:
        if self.log:
            raise ValueError("step and log = true exclude each other")
        if step <= 0:
            raise ValueError("step must be greater than 0")
        if (_exact(self.high) - _exact(self.low)) % _exact(step):
            raise ValueError("high must be a whole number of steps above low")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def samples(self) -> Sequence[int | float]:
        """Values that must all be valid for the range to be."""
        return self.low, self.high

    @property
    def size(self) -> float:
        """How many numbers there are; inf for a continuum."""
        step = self.step or (1 if self.whole else None)
        return math.inf if step is None else int((_exact(self.high) - _exact(self.low)) / _exact(step)) + 1

    def points(self, name: str) -> Iterator[dict[str, Label]]:
        """Each number, of a range that is no continuum."""
        step = _exact(self.step or 1)
        for index in range(int(self.size)):
            value = _exact(self.low) + index * step
            yield {name: int(value) if self.whole else float(value)}

    def suggest(self, trial: "BaseTrial", name: str) -> int | float:
        """What the study's sampler proposes."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True, slots=True)
class Choices:
    """Any of a list: text, numbers, truth values, or lists and tables."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> dict[Label, Any]:
        """The values by what a study calls them."""
        return {value if isinstance(value, Label) else json.dumps(value): value for value in self.values}

    @property
    def samples(self) -> Sequence[Any]:
        """Values that must all be valid."""
        return self.values

    @property
    def size(self) -> float:
        """How many there are."""
        return len(self.values)

    def points(self, name: str) -> Iterator[dict[str, Label]]:
        """Each of them."""
        for label in self.labels:
            yield {name: label}

    def suggest(self, trial: "BaseTrial", name: str) -> Any:  # noqa: ANN401  whatever TOML holds
        """What the study's sampler proposes."""
        labels: dict[Any, Any] = self.labels
        return labels[trial.suggest_categorical(name, [*labels])]


@dataclass(frozen=True, slots=True)
class Branches:
    """Choices of which each has a space of its own."""

    spaces: dict[str, "Space"]

    @property
    def samples(self) -> Sequence[str]:
        """The choices."""
        return tuple(self.spaces)

    @property
    def size(self) -> float:
        """How many combinations there are."""
        return sum(size(space) for space in self.spaces.values())

    def points(self, name: str) -> Iterator[dict[str, Label]]:
        """Each choice with each point of its space."""
        for choice, space in self.spaces.items():
            for point in grid(space):
                yield {name: choice, **point}

    def suggest(self, trial: "BaseTrial", name: str) -> str:
        """What the study's sampler proposes."""
        return trial.suggest_categorical(name, list(self.spaces))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key of the recipe and what it may be."""

    name: str
    """What a study calls it: the key, and the choices on which it depends."""
    key: str
    domain: Range | Choices | Branches


Space = tuple[Parameter, ...]


class Search(Section):
    """How `python -m training tune` looks for better values; `train` pays no heed to it."""

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """What to try next: what resembles the best so far (Bergstra et al., 2011), anything, or everything in turn."""
    pruner: Literal["hyperband", "median", "none"] = "hyperband"
    """Which trials to stop early: those behind at one of growing numbers of epochs (Li et al., 2018), those behind the
    median of the others after as many epochs, or none."""
    trials: PositiveInt | None = None
    """Of the whole study, however often it is taken up; if not given 50, or every point of a grid."""
    timeout_s: PositiveFloat | None = None
    """Seconds after which a run of the command begins no further trial."""
    seed: NonNegativeInt = 0
    metric: Literal["validation", "mase"] = "validation"
    """What is to become small: the loss on the validation windows, or their mean absolute scaled error."""
    space: Annotated[dict[str, Any], Field(min_length=1)]

    @property
    def parameters(self) -> Space:
        """The space, read."""
        return read(self.space)

    @field_validator("space")
    @classmethod
    def _can_be_read(cls, space: dict[str, Any]) -> dict[str, Any]:
        read(space)
        return space


def read(given: dict[str, Any], within: str = "", taken: frozenset[str] = frozenset()) -> Space:
    """A `[search.space]` as parameters; ValueError naming the key. `within` are the choices that lead to it."""
    taken |= given.keys()
    return tuple(
        Parameter(f"{key} ({within})" if within else key, key, _domain(key, what, within, taken))
        for key, what in given.items()
    )


def size(space: Space) -> float:
    """How many combinations there are; inf where a range is a continuum."""
    return math.prod(parameter.domain.size for parameter in space)


def grid(space: Space) -> Iterator[dict[str, Label]]:
    """Every combination, by the parameters' names; the last parameter changes fastest."""
    if not space:
        yield {}
        return
    first, *others = space
    for point in first.domain.points(first.name):
        for rest in grid(tuple(others)):
            yield {**point, **rest}


def draw(space: Space, trial: "BaseTrial") -> dict[str, Any]:
    """What the trial is to use, by the recipe's keys."""
    found: dict[str, Any] = {}
    for parameter in space:
        found[parameter.key] = parameter.domain.suggest(trial, parameter.name)
        if isinstance(parameter.domain, Branches):
            found |= draw(parameter.domain.spaces[found[parameter.key]], trial)
    return found


def _domain(key: str, given: object, within: str, taken: frozenset[str]) -> Range | Choices | Branches:
    if "." not in key:
        raise ValueError(f'{key!r}: a full key of the recipe is needed, in quotes, such as "training.learning_rate"')
    if isinstance(given, list):
        return _choices(key, given)
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{key!r}: must be a list, a table with low and high, or a table for each choice")
    if not all(isinstance(value, dict) for value in given.values()):
        return _range(key, given)
    spaces = {}
    for choice, space in given.items():
        if twice := taken & space.keys():
            raise ValueError(f"{min(twice)!r}: is searched outside of {key!r}.{choice} already")
        spaces[choice] = read(space, f"{within}, {choice}" if within else choice, taken)
    return Branches(spaces)


def _choices(key: str, given: list[Any]) -> Choices:
    found = Choices(tuple(given))
    if len(found.labels) < max(len(given), 1):
        raise ValueError(f"{key!r}: choices must be one or more, and differ")
    return found


def _range(key: str, given: dict[str, Any]) -> Range:
    try:
        return Range.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{key!r}: {describe(error.errors()[0])}") from error


def _exact(number: float) -> Decimal:
    """As it was written, so that 0.1 goes into 0.5 five times."""
    return Decimal(str(number))
