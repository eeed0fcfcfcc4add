"""make a private key to sign versions with, and print the public one for FORETELL_TRUSTED_KEY"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="where the private key is written, for nobody else to read")


def run(given: argparse.Namespace, console: Console) -> None:
    from models.signature import Signer

    say(console, Signer.make(given.file).public)
