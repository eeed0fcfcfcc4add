"""Write docs/reference from the code: python -m docs.generate (make docs).

Settings, endpoints, metrics and commands are listed as the program itself knows them, so that the pages cannot be
wrong; tests/docs/test_reference.py says when they are old.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from app.access.needs import NEEDS
from app.lifecycle import Lifecycle
from app.main import create_app
from app.metrics import Metrics
from app.processes.backend import Local
from app.settings import PREFIX, Settings
from app.ticket import ModelId
from training import commands

FOLDER = Path(__file__).parent / "reference"
_NOTE = "Written by `make docs` from the code; change it there.\n"
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false"}


def settings() -> str:
    """Every FORETELL_ variable: what is valid, its default, what it does."""
    rows = []
    schemas = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default is None or default == "" else f"`{str(default).lower() if default is True else default}`"
        rows.append((f"`{PREFIX}{name.upper()}`", _valid(schemas[name]), shown, _cell(field.description or "")))
    head = f"""# Settings

{_NOTE}
Environment variables, read once at the start; `python -m app --help` says the same. An unknown one with the prefix
`{PREFIX}`, or a value out of bounds, stops the start with a line that names it.
"""
    return _page(head, _table(("variable", "valid", "default", ""), rows))


def http() -> str:
    """Every endpoint of the OpenAPI document: the scope that it takes, and what it does."""
    given = Settings.model_validate({"artifacts": Path("artifacts")})
    paths = create_app(given, Lifecycle(), Local()).api.openapi()["paths"]
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for path, operations in paths.items():
        for method, operation in operations.items():
            need = NEEDS.get((method.upper(), path), "admin")
            scope = "" if need == "open" else f"`{need}`"
            groups[operation["tags"][0]].append((f"`{method.upper()} {path}`", scope, _cell(operation["summary"])))
    head = f"""# Endpoints

{_NOTE}
`/openapi.json` has parameters, bodies and answers, `/docs` and `/redoc` show them. A scope is what a key has to have
where keys are asked for ([security](../security.md)); `admin` always takes one. The pages (`/`, `/docs`, `/redoc`,
`/openapi.json`) and `/health/…` take none.
"""
    parts = (f"## {name.capitalize()}\n\n{_table(('endpoint', 'scope', ''), rows)}" for name, rows in groups.items())
    return _page(head, *parts)


def metrics() -> str:
    """Everything at /metrics: its kind, its labels, and what is counted."""
    rows = [(f"`{it.name}`", it.kind, ", ".join(f"`{label}`" for label in it.labels), it.text) for it in _shown()]
    head = f"""# Metrics

{_NOTE}
At `/metrics`, for all processes of a service together. A histogram has `_bucket` (with the label `le`), `_sum` and
`_count`. What they are good for: [watching](../watching.md), [operations](../operations.md).
"""
    return _page(head, _table(("metric", "kind", "labels", ""), rows))


def training() -> str:
    """Every command of `python -m training` with its arguments."""
    parser = argparse.ArgumentParser(prog="python -m training")
    commands.add_to(parser)
    (parsers,) = (action.choices for action in _actions(parser) if isinstance(action.choices, dict))
    head = f"""# Commands of the training

{_NOTE}
`python -m training COMMAND`; each says the same with `--help`. What they are for:
[training](../../training/README.md). The keys of a recipe: [recipes](../recipes.md).
"""
    parts = []
    for name, command in parsers.items():
        rows = [_argument(action) for action in _actions(command) if action.dest != "help"]
        table = _table(("argument", ""), rows) if rows else ""
        parts.append(f"## {name}\n\n{_sentence(command.description)}\n\n{table}".rstrip() + "\n")
    return _page(head, *parts)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings,
    "http.md": http,
    "metrics.md": metrics,
    "training.md": training,
}


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), "utf-8")


class _Shown(NamedTuple):
    name: str
    kind: str
    labels: Sequence[str]
    text: str


def _shown() -> Iterator[_Shown]:
    made = Metrics()

    class Version(NamedTuple):
        id: ModelId
        state: str

    version = Version(ModelId("a", 1, "sha256:0"), "ready")
    made.watch(lambda: [version], lambda: [("a", "production", 1, 1)], lambda: {"http": 1}, lambda: True, lambda: True)
    # A metric without a series has no labels in what is collected, so they are asked of the collector itself.
    for collector in made._counted._collector_to_names:  # type: ignore[attr-defined]  # noqa: SLF001
        (family,) = collector.collect()
        yield _Shown(_whole(family), family.type, collector._labelnames, family.documentation)  # type: ignore[attr-defined]  # noqa: SLF001
    for family in made._live.collect():  # noqa: SLF001
        labels = sorted({label for sample in family.samples for label in sample.labels})
        yield _Shown(_whole(family), family.type, labels, _sentence(family.documentation))


def _whole(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    # Its help is laid out by the terminal's width and by Python's version; these are not.
    return parser._actions  # noqa: SLF001


def _argument(action: argparse.Action) -> tuple[str, str]:
    named = str(action.metavar or "/".join(map(str, action.choices or ())) or action.dest.upper())
    takes = "" if action.nargs == 0 else f" {named}"
    name = f"{action.option_strings[-1]}{takes}" if action.option_strings else str(action.metavar or action.dest)
    text = _cell((action.help or "") % {"default": action.default})
    return f"`{name}`", text


def _valid(schema: dict[str, Any]) -> str:
    # Of what may be left out, what is valid where it is there.
    schema = next((kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if schema.get("format") == "path":
        return "path"
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([_KINDS[schema["type"]], ", ".join(bounds)]).strip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str | None) -> str:
    told = _cell(text or "").rstrip(".")
    return f"{told[:1].upper()}{told[1:]}."


def _page(*parts: str) -> str:
    return "\n".join(parts)


if __name__ == "__main__":
    main()
