"""copy a published version into another store, with its number, its report and its signature: from staging to
production, say
"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, store, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "version",
        metavar="NAME[:VERSION]",
        help="a published model; VERSION is a number, an alias or latest (default: latest)",
    )
    parser.add_argument("to", metavar="STORE", type=store, help="where it is published: a folder or an address")
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign it there with this key of `signing-key`")
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.signature import Signer
    from models.store import Store
    from training.judging import versions

    signer = None if given.key is None else Signer.read(given.key)
    source, target = Store(given.artifacts), Store(given.to)
    name, version = versions.find(source, given.version)
    if source.copy(name, version, target, signer=signer):
        say(console, f"{name} version {version} is published: {target.where(name, version)}")
    else:
        say(console, f"{name} version {version} is there already: {target.where(name, version)}")
