"""let an alias stand for a published version, others get a share of its clients, another be asked in shadow"""

import argparse

from rich.console import Console

from training.commands import say, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("alias")
    parser.add_argument("version", type=int)
    parser.add_argument(
        "--split",
        type=_share,
        action="append",
        default=[],
        metavar="VERSION=PERCENT",
        help="so many percent of the clients get another version; may be given several times",
    )
    parser.add_argument("--shadow", type=int, metavar="VERSION", help="a version that is asked the same, and compared")
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    from models.store import Store

    split = dict(given.split)
    Store(given.artifacts).point(given.name, given.alias, given.version, split=split, shadow=given.shadow)
    shares = "".join(f", version {version} for {share:g} % of clients" for version, share in split.items())
    shadow = "" if given.shadow is None else f", version {given.shadow} in shadow"
    say(console, f"{given.name}: {given.alias} is version {given.version}{shares}{shadow}")


def _share(text: str) -> tuple[int, float]:
    version, _, percent = text.partition("=")
    try:
        return int(version), float(percent)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not VERSION=PERCENT") from None
