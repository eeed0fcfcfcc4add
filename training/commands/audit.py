"""show who changed what in the store, the newest last"""

import argparse
import json

from rich.console import Console

from training.commands import say, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", type=_count, default=20, metavar="N", help="so many changes (default: 20)")
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store

    for said in Store(given.artifacts).audit(given.last):
        about = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in said.items()
                 if key not in ("time", "by", "action") and value not in (None, {})]  # fmt: skip
        say(console, "  ".join([said["time"], said["by"], said["action"], *about]))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
