"""The commands of the training module: train, check, networks, alias."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich import get_console
from rich.console import Console

from training.errors import TrainingError

# Torch, Lightning and matplotlib take seconds to import: each command imports what it needs.

_USER_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 and a line on stderr for whatever its user can put right."""
    given = _parser().parse_args(arguments)

    from models.artifact import ArtifactError
    from models.store import StoreError

    try:
        # Rich's own, as Lightning's bar draws on it: lines printed on another would be drawn over.
        given.run(given, get_console())
    except (TrainingError, StoreError, ArtifactError) as error:
        _say(Console(stderr=True), f"error: {error}")
        return _USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Make and publish forecasting models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe and publish the model")
    train.add_argument("recipe", type=Path)
    train.set_defaults(run=_train)

    check = commands.add_parser("check", help="read a recipe and its data, show rows, gaps and windows, train nothing")
    check.add_argument("recipe", type=Path)
    check.set_defaults(run=_check)

    networks = commands.add_parser("networks", help="list the architectures, their options and defaults")
    networks.set_defaults(run=_networks)

    alias = commands.add_parser("alias", help="let an alias stand for a published version")
    alias.add_argument("name")
    alias.add_argument("alias")
    alias.add_argument("version", type=int)
    alias.set_defaults(run=_alias)

    for command in (train, alias):
        command.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="the store (default: artifacts)")
    return parser


def _train(given: argparse.Namespace, console: Console) -> None:
    import torch

    from models.store import Store
    from training import report
    from training.dataset import prepare
    from training.fit import fit
    from training.publish import publish
    from training.recipe import load

    store = Store(given.artifacts)
    # A store that cannot be read is better known before the training than after it.
    store.index()
    recipe = load(given.recipe)
    torch.set_num_threads(recipe.training.threads)
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda epoch: _say(console, str(epoch)), bar=console.is_terminal)
    published = publish(recipe, dataset, fitted, store)
    _print(console, report.table(published.metrics))
    name = f"{published.name} version {published.version}"
    _say(console, f"{name}, trained in {fitted.seconds:.0f} s: {published.archive}")


def _check(given: argparse.Namespace, console: Console) -> None:
    from training.dataset import prepare
    from training.fit import build
    from training.recipe import load

    recipe = load(given.recipe)
    dataset = prepare(recipe)
    weights = sum(parameter.numel() for parameter in build(recipe, dataset).parameters())
    _print(console, [["file", "rows", "absent rows", "filled cells", "missing cells"], *dataset.inventory()])
    spans = [dataset.span(name) for name in dataset.parts]
    parts = zip(dataset.parts, spans, strict=True)
    lines = [
        [name, f"{span.start:%Y-%m-%d %H:%M}", f"{span.end:%Y-%m-%d %H:%M}", str(span.windows)] for name, span in parts
    ]
    _print(console, [["part", "from (UTC)", "until", "windows"], *lines])
    _say(console, f"{recipe.network.architecture} with {weights:,} weights")


def _networks(_: argparse.Namespace, console: Console) -> None:
    from models import networks

    lines = [["architecture", "option", "default", "valid"]]
    for name in networks.names():
        fields: dict[str, Any] = networks.config_of(name).model_json_schema()["properties"]
        for option, field in fields.items():
            limits = {key: value for key, value in field.items() if key not in {"title", "default"}}
            valid = ", ".join(map(str, limits.pop("enum", [])))
            bounds = ", ".join(f"{key} {value}" for key, value in limits.items() if key != "type")
            lines.append([name, option, str(field["default"]), valid or f"{field['type']} {bounds}".strip()])
    _print(console, lines)


def _alias(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store

    Store(given.artifacts).point(given.name, given.alias, given.version)
    _say(console, f"{given.name}: {given.alias} is version {given.version}")


def _print(console: Console, lines: list[list[str]]) -> None:
    """Columns wide enough for what stands in them, so that nothing is cut off in a pipe."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        _say(console, text.rstrip())
    _say(console, "")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
