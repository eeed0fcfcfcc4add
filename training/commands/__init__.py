"""The commands of `python -m training`, found by their file names: a new file here is a new command.

Each file's docstring is the command's help; `arguments` declares what it takes and `run` does the work. Torch,
Lightning and matplotlib take seconds to import, so a command imports what it needs where it runs.
"""

import argparse
import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from rich.console import Console


class Command(Protocol):
    """What a file of this package defines."""

    __doc__: str | None

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what the command takes."""

    def run(self, given: argparse.Namespace, console: Console) -> None:
        """Do it; TrainingError, StoreError, SignatureError or ArtifactError for what its user can put right."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Let the parser know every command, each setting `run` to its own."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        command = cast(Command, importlib.import_module(f"{__name__}.{module.name}"))
        text = " ".join((command.__doc__ or "").split())
        own = commands.add_parser(module.name.replace("_", "-"), help=text, description=text)
        command.arguments(own)
        own.set_defaults(run=command.run)


def takes_recipe(parser: argparse.ArgumentParser) -> None:
    """The first argument is a recipe's file."""
    parser.add_argument("recipe", type=Path, help="a TOML file, such as training/recipes/weather.toml")


def takes_store(parser: argparse.ArgumentParser) -> None:
    """The option that says where models are published."""
    parser.add_argument(
        "--artifacts",
        type=store,
        default=Path("artifacts"),
        help="the store, a folder or an address such as s3://bucket/models (default: artifacts)",
    )


def store(text: str) -> Path | str:
    """Where a store lies, as it stands on a command line."""
    from models.store import StoreError, parse

    try:
        return parse(text)
    except StoreError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def show(console: Console, lines: list[list[str]]) -> None:
    """Columns wide enough for what stands in them, so that nothing is cut off in a pipe."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say(console, text.rstrip())
    say(console, "")


def say(console: Console, text: str) -> None:
    """One line as it is: no markup, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
