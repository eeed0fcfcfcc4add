"""Whether training is limited by arithmetic: windows/s of the whole loop beside the same steps on one fixed batch.

    python -m benchmarks.training.loop training/recipes/weather-lstm.toml

The loop has everything that a run has: shuffling, gathering, Lightning, sums for the history. The bare one has forward,
backward, clip and optimizer step alone. Both run in turns and the best of each counts: other work on the machine only
ever slows one down.
"""

import argparse
import time
from pathlib import Path

import torch

from training.data.dataset import Dataset, prepare
from training.fitting.fit import build, fit
from training.fitting.objective import Objective
from training.fitting.optimisation import optimiser
from training.recipe import Recipe, load

_TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Training loop against bare arithmetic, in windows/s.")
    parser.add_argument("recipe", type=Path)
    recipe = load(parser.parse_args().recipe)
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1})})
    torch.set_num_threads(recipe.training.threads)
    dataset = prepare(recipe)
    turns = [(whole(recipe, dataset), bare(recipe, dataset)) for _ in range(_TURNS)]
    loop, fixed = (max(speeds) for speeds in zip(*turns, strict=True))
    print(f"loop {loop:,.0f} windows/s, bare {fixed:,.0f} windows/s, ratio {loop / fixed:.3f}")


def whole(recipe: Recipe, dataset: Dataset) -> float:
    """Windows/s of an epoch as `python -m training train` runs it."""
    return fit(recipe, dataset, tell=lambda _: None).epochs[0].windows_per_s


def bare(recipe: Recipe, dataset: Dataset) -> float:
    """Windows/s of as many steps on a batch that is gathered once."""
    options, windows = recipe.training, dataset.windows["train"]
    objective = Objective(build(recipe, dataset), recipe)
    optimizer = optimiser(options, objective.network.parameters())
    batch = windows.gather(torch.arange(min(options.batch, len(windows))))
    steps = max(len(windows) // options.batch, 1)
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        (objective.errors(batch) @ objective.weights).backward()
        torch.nn.utils.clip_grad_norm_(objective.network.parameters(), options.clip)
        optimizer.step()
    return steps * len(batch.rows) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
