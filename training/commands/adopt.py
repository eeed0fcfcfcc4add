"""publish a network that was trained elsewhere, scored as a recipe says"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, show, takes_recipe, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    parser.add_argument(
        "source",
        help="TorchScript: a file; a model of a Triton repository (its newest version) or a version's folder; a model "
        "of MLflow's: models:/NAME/VERSION, models:/NAME@ALIAS, runs:/..., or its folder",
    )
    takes_store(parser)
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign the version with this key of `signing-key`")


def run(given: argparse.Namespace, console: Console) -> None:
    import tempfile

    import torch

    from models.signature import Signer
    from models.store import Store
    from training.publishing.adopt import adopt
    from training.publishing.sources import read
    from training.recipe import load
    from training.reporting import report

    store = Store(given.artifacts)
    store.index()
    signer = None if given.key is None else Signer.read(given.key)
    recipe = load(given.recipe)
    torch.set_num_threads(recipe.training.threads)
    with tempfile.TemporaryDirectory(prefix="foretell-") as folder:
        module, declared = read(given.source, Path(folder))
    published = adopt(module, recipe, store, declared=declared, signer=signer)
    show(console, report.table(published.metrics))
    for line in report.spread(published.series):
        say(console, line)
    say(console, f"{published.name} version {published.version}, of {given.source}: {published.where}")
