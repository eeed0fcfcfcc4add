"""The manners of a recipe's tables: every key is known, and every problem is told with its full place."""

import difflib
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError


class Section(BaseModel):
    """A table of the recipe: immutable, and refusing keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, given: object) -> object:
        if isinstance(given, dict):
            refuse_unknown(given, cls.model_fields)
        return given


def refuse_unknown(given: dict[str, Any], valid: Collection[str]) -> None:
    """Raise for the first key that is not valid, naming the nearest that is."""
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise PydanticCustomError(
                "unknown_key",
                "unknown key{hint} (valid: {valid})",
                {"key": key, "hint": hint, "valid": ", ".join(valid)},
            )


def describe(problem: ErrorDetails) -> str:
    """One problem of a ValidationError: its place as TOML would spell it, what is wrong and what is valid."""
    kind, place, text = problem["type"], problem["loc"], problem["msg"].removeprefix("Value error, ")
    if kind == "unknown_key":
        return f"{_dotted((*place, problem['ctx']['key']))}: {text}"
    if kind == "missing":
        return f"{_dotted(place)}: missing"
    got = problem["input"]
    shown = f"; got {got!r}" if isinstance(got, str | int | float) and kind != "value_error" else ""
    return f"{_dotted(place)}: {text}{shown}" if place else text


def _dotted(place: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
