"""train a recipe and publish the model"""

import argparse

from rich.console import Console

from training.commands import say, show, takes_recipe, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    takes_store(parser)


def run(given: argparse.Namespace, console: Console) -> None:
    import torch

    from models.store import Store
    from training import report
    from training.dataset import prepare
    from training.fit import fit
    from training.publish import publish
    from training.recipe import load

    store = Store(given.artifacts)
    # A store that cannot be read is better known before the training than after it.
    store.index()
    recipe = load(given.recipe)
    torch.set_num_threads(recipe.training.threads)
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda epoch: say(console, str(epoch)), bar=console.is_terminal)
    published = publish(recipe, dataset, fitted, store)
    show(console, report.table(published.metrics))
    name = f"{published.name} version {published.version}"
    say(console, f"{name}, trained in {fitted.seconds:.0f} s: {published.archive}")
