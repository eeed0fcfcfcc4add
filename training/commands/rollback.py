"""let an alias stand for the version that it stood for before"""

import argparse

from rich.console import Console

from training.commands import say, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("alias")
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store

    version = Store(given.artifacts).roll_back(given.name, given.alias)
    say(console, f"{given.name}: {given.alias} is version {version} again")
