"""train a recipe and publish the model"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, show, takes_recipe, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    takes_store(parser)
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="also log every epoch there, for TensorBoard and as CSV"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign the version with this key of `signing-key`")


def run(given: argparse.Namespace, console: Console) -> None:
    import torch

    from models.signature import Signer
    from models.store import Store
    from training.data.dataset import prepare
    from training.fitting.fit import fit
    from training.publishing.publish import publish
    from training.recipe import load
    from training.reporting import report

    store = Store(given.artifacts)
    # A store or a key that cannot be read is better known before the training than after it.
    store.index()
    signer = None if given.key is None else Signer.read(given.key)
    recipe = load(given.recipe)
    torch.set_num_threads(recipe.training.threads)
    dataset = prepare(recipe)
    fitted = fit(
        recipe,
        dataset,
        tell=lambda epoch: say(console, str(epoch)),
        bar=console.is_terminal,
        logs=given.logs,
    )
    if fitted.rank:
        return
    published = publish(recipe, dataset, fitted, store, signer)
    show(console, report.table(published.metrics))
    for line in report.spread(published.series):
        say(console, line)
    name = f"{published.name} version {published.version}"
    say(console, f"{name}, trained in {fitted.seconds:.0f} s: {published.where}")
