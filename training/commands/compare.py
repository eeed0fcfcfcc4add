"""show the test errors of published versions beside each other, and whether they may be compared"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, show, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "versions",
        nargs="+",
        metavar="NAME[:VERSION]",
        help="a published model; VERSION is a number, an alias or latest (default: latest)",
    )
    takes_store(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also write table, CSV and picture there")


def run(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store
    from training.judging import compare, versions

    store = Store(given.artifacts)
    found = [versions.load(store, reference) for reference in given.versions]
    show(console, compare.table(found))
    for line in compare.verdict(found):
        say(console, line)
    if given.output:
        compare.write(given.output, found)
        say(console, f"{given.output / 'report.md'}")
