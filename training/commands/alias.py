"""let an alias stand for a published version"""

import argparse

from rich.console import Console

from training.commands import say, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("alias")
    parser.add_argument("version", type=int)
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store

    Store(given.artifacts).point(given.name, given.alias, given.version)
    say(console, f"{given.name}: {given.alias} is version {given.version}")
