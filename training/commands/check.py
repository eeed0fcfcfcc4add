"""read a recipe and its data, show rows, gaps and windows, train nothing"""

import argparse

from rich.console import Console

from training.commands import say, show, takes_recipe

arguments = takes_recipe

_SHOWN = 50
"""Series that are told one by one."""


def run(given: argparse.Namespace, console: Console) -> None:
    from training.data.dataset import prepare
    from training.fitting.fit import build
    from training.recipe import load

    recipe = load(given.recipe)
    dataset = prepare(recipe)
    weights = sum(parameter.numel() for parameter in build(recipe, dataset).parameters())
    inventory = dataset.inventory()
    show(console, inventory[: _SHOWN + 1])
    if len(inventory) > _SHOWN + 1:
        say(console, f"and {len(inventory) - _SHOWN - 1} more series")
    spans = [dataset.span(name) for name in dataset.parts]
    parts = zip(dataset.parts, spans, strict=True)
    lines = [
        [name, f"{span.start:%Y-%m-%d %H:%M}", f"{span.end:%Y-%m-%d %H:%M}", str(span.windows)] for name, span in parts
    ]
    show(console, [["part", "from (UTC)", "until", "windows"], *lines])
    say(console, f"{recipe.network.architecture} with {weights:,} weights")
