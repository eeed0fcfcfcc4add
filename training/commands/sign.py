"""vouch for a version that is published"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("version", type=int)
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key of `signing-key`")
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.signature import Signer
    from models.store import Store

    Store(given.artifacts).sign(given.name, given.version, Signer.read(given.key))
    say(console, f"{given.name} version {given.version} is signed")
