"""What prediction intervals cover on ETTh1's test months, step by step averaged, beside a normal and a naive interval.

    .venv/bin/python -m benchmarks.accuracy.intervals ETTh1.csv --methods conformal scaled cqr

The rows and the test span are those of the accuracy benchmark; of the four months of validation the first two stop the
training and the last two calibrate.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.accuracy.__main__ import HERE, first_rows
from models.spec import Intervals, IntervalScores
from training.data.dataset import prepare
from training.fitting.fit import fit
from training.recipe import Recipe, load
from training.scoring.calibrate import calibrate
from training.scoring.evaluate import export

METHODS = ("conformal", "scaled", "cqr")
SPLIT = {"train": 0.6, "validation": 0.1, "calibration": 0.1}


def main() -> int:
    """Train a network for each method and print its line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.intervals", description=__doc__.splitlines()[0]
    )
    parser.add_argument("data", type=Path, help="ETTh1.csv")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--horizon", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| interval | level | coverage % | adaptive % | width | Winkler |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as folder:
        data = first_rows(given.data, Path(folder))
        for method in given.methods:
            print("\n".join(_lines(method, _run(_recipe(data, method, given.horizon)))), flush=True)
    return 0


def _recipe(data: Path, method: str, horizon: int) -> Recipe:
    recipe = load(HERE / "fixed.toml")
    return recipe.having(
        {
            "data.files": [str(data)],
            "window.horizon": horizon,
            "window.steps": horizon,
            "split": SPLIT,
            "intervals": {"method": method},
            "ensemble": (),
        }
    )


def _run(recipe: Recipe) -> Intervals:
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda epoch: print(epoch, file=sys.stderr, flush=True))
    found = calibrate(recipe, dataset, export(recipe, fitted.network, dataset.windows["test"]))
    if found is None:
        raise AssertionError("nothing was calibrated")
    return found.intervals


def _lines(method: str, found: Intervals) -> Iterator[str]:
    for level, scores in found.scores.items():
        adaptive = f"{100 * fmean(found.adaptive[level]):.1f}"
        yield _line(method, level, scores, adaptive)
        for name, of in found.baselines.items():
            yield _line(f"{method}: {name}", level, of[level], "")


def _line(name: str, level: str, scores: IntervalScores, adaptive: str) -> str:
    coverage = 100 * fmean(map(fmean, scores.coverage.values()))
    width, winkler = (fmean(map(fmean, of.values())) for of in (scores.width, scores.winkler))
    return f"| {name} | {level} | {coverage:.1f} | {adaptive} | {width:.3f} | {winkler:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
