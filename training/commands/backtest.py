"""train a recipe anew from several origins in its test span, or score a published version from them, and compare with
the baselines
"""

import argparse
from pathlib import Path

from rich.console import Console

from training.commands import say, show, takes_recipe, takes_store


def arguments(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    parser.add_argument(
        "--folds", type=int, default=4, help="stretches of equal length that the test span is cut into (default: 4)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--mode",
        choices=("expanding", "sliding"),
        default="expanding",
        help="for each fold a network is trained on the rows before it, all of them or as many as the recipe's training"
        " span has, but for the validation span in between (default: expanding)",
    )
    how.add_argument(
        "--version",
        metavar="VERSION",
        help="train nothing: score this published version (a number, an alias or latest) of the"
        " recipe's model; the folds are of all rows after its own validation span",
    )
    takes_store(parser)
    parser.add_argument("--output", type=Path, help="folder of the results (default: NAME.backtest)")


def run(given: argparse.Namespace, console: Console) -> None:
    import torch

    from models.store import Store
    from training.judging import backtest, versions
    from training.recipe import load
    from training.reporting import report

    recipe = load(given.recipe)
    torch.set_num_threads(recipe.training.threads)
    if given.version:
        published = versions.load(Store(given.artifacts), f"{recipe.name}:{given.version}")
        found = backtest.score(recipe, given.folds, published)
        about = f"Version {published.spec.version} as it was published, scored from {given.folds} origins."
    else:
        found = backtest.retrain(
            recipe, given.folds, given.mode, tell=lambda fold, epoch: say(console, f"fold {fold}  {epoch}")
        )
        about = f"Trained anew from each of {given.folds} origins, on training spans that are {given.mode}."
    folds = []
    for fold in found:
        folds.append(fold)
        test = fold.test
        say(console, f"fold {fold.number}: {test.windows} test windows, {test.start:%Y-%m-%d} to {test.end:%Y-%m-%d}")
        for line in report.spread(fold.series):
            say(console, f"fold {fold.number}: {line}")
    folder = given.output or Path(f"{recipe.name}.backtest")
    backtest.write(folder, recipe, about, folds)
    show(console, backtest.table(folds))
    say(console, f"{folder / 'report.md'}")
