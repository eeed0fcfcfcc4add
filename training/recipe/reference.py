"""Every key of a recipe on one page, read off the models that read recipes, so that the page cannot be wrong."""

import inspect
import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from models import networks
from models.core import Config
from training.recipe import Recipe

_HEAD = """# Recipes

A recipe is a TOML file; `python -m training train RECIPE` makes a model of it. These are all its keys. A wrong key or
value stops the command with the place and what is valid. This page is what `python -m training options` prints.
"""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {"string": "text", "integer": "whole number", "boolean": "true, false", "array": "list", "object": "table"}


def page() -> str:
    """The page, as Markdown."""
    lines = [_HEAD, *_section("", Recipe), "## [network.config]", "", _text(Config), ""]
    for name in networks.names():
        lines += [f"### {name}", "", _text(networks.config_of(name)), "", *_table(networks.config_of(name))]
    return "\n".join(lines).rstrip() + "\n"


def _section(place: str, section: type[BaseModel]) -> Iterator[str]:
    """A table of the recipe, and then those inside of it."""
    yield from [f"## [{place}]" if place else "## At the top", "", _text(section), "", *_table(section)]
    for name, field in section.model_fields.items():
        below, many = _below(field)
        if below is not None:
            inner = f"{place}.{name}" if place else name
            yield from _section(f"[{inner}]" if many else inner, below)


def _table(section: type[BaseModel]) -> list[str]:
    schemas = section.model_json_schema()["properties"]
    rows = [
        f"| `{name}` | {_valid(field, schemas[name])} | {_default(field)} | {_line(field.description or '')} |"
        for name, field in section.model_fields.items()
    ]
    return ["| key | valid | default | |", "| --- | --- | --- | --- |", *rows, ""]


def _below(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """The table that a key stands for, if it does, and whether it may stand for several."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Config:
            return kind, get_origin(field.annotation) is tuple
    return None, False


def _valid(field: FieldInfo, schema: dict[str, Any]) -> str:
    if _below(field)[0] is not None:
        return "a table"
    # Of a key that may be left out, what is said of it where it is there.
    schema = next((kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
    kind = schema.get("type", "object")
    return " ".join([_KINDS.get(kind, kind), ", ".join(bounds)]).strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    default = field.get_default(call_default_factory=True)
    return "" if default is None or isinstance(default, BaseModel) or default == () else f"`{json.dumps(default)}`"


def _text(section: type[BaseModel]) -> str:
    return _line(inspect.getdoc(section) or "", "\n\n")


def _line(text: str, between: str = " ") -> str:
    return between.join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).replace("|", "\\|")
