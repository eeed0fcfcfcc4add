"""print every key of a recipe, with what is valid, its default and what it does"""

import argparse

from rich.console import Console

from training.commands import say


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(_: argparse.Namespace, console: Console) -> None:
    from training.recipe.reference import page

    say(console, page().rstrip())
