"""ETTh1, all features, by the protocol of the literature: what the exported artifact errs on every test window.

    .venv/bin/python -m benchmarks.accuracy ETTh1.csv --league fixed --seeds 1 2 3 --results results.jsonl

The file is that of the Informer authors (github.com/zhouhaoyi/ETDataset); it is not part of this repository. Its first
14 400 rows are split 12/4/4 months, scaled by the training rows, and every test window counts, the last ones too. Each
run is a line in the results, and a run that stands there already is not made again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from training.data.dataset import prepare
from training.fitting.fit import fit
from training.recipe import Recipe, load
from training.scoring.evaluate import evaluate, export

HERE = Path(__file__).parent
LEAGUES = ("fixed", "searched")
HORIZONS = (96, 192, 336, 720)
ROWS = 14_400
WINDOWS = {96: 2785, 192: 2689, 336: 2545, 720: 2161}
"""Test windows of the protocol, by horizon."""

# MSE and MAE by horizon, of full test sets.
REFERENCES = {
    "fixed": {"SegRNN (L=96)": ((0.368, 0.395), (0.408, 0.419), (0.444, 0.440), (0.446, 0.457))},
    "searched": {
        "SegRNN (L=720)": ((0.351, 0.392), (0.392, 0.414), (0.423, 0.433), (0.466, 0.472)),
        "xLSTM-Mixer": ((0.359, 0.386), (0.402, 0.417), (0.408, 0.429), (0.419, 0.448)),
        "DUET": ((0.352, 0.384), (0.398, 0.409), (0.414, 0.426), (0.429, 0.455)),
    },
}


def main() -> int:
    """Run what is missing, then show the table."""
    given = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = first_rows(given.data, Path(folder))
        for horizon, seed in product(given.horizons, given.seeds):
            key = {"league": given.league, "horizon": horizon, "seed": seed}
            if any(key.items() <= run.items() for run in _runs(given.results)):
                continue
            found = _run(_recipe(given.league, data, horizon, seed))
            with given.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(key | found) + "\n")
            print(json.dumps(key | found), flush=True)
    _show(given.league, list(_runs(given.results)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="ETTh1.csv")
    parser.add_argument("--league", choices=LEAGUES, default="fixed")
    parser.add_argument("--horizons", type=int, nargs="+", choices=HORIZONS, default=list(HORIZONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--results", type=Path, default=Path("accuracy.jsonl"))
    return parser.parse_args()


def first_rows(file: Path, folder: Path) -> Path:
    """A copy of the protocol's rows in the folder."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    copy = folder / "etth1.csv"
    copy.write_text("".join(lines[: ROWS + 1]), "utf-8")
    return copy


def _recipe(league: str, data: Path, horizon: int, seed: int) -> Recipe:
    recipe = load(HERE / f"{league}.toml")
    # Members of an ensemble have seeds of their own, which one run shifts all together.
    members = [{**values, "training.seed": 100 * seed + index} for index, values in enumerate(recipe.ensemble)]
    return recipe.having(
        {
            "data.files": [str(data)],
            "window.horizon": horizon,
            "window.steps": horizon,
            "training.seed": seed,
            "ensemble": members,
        }
    )


def _run(recipe: Recipe) -> dict[str, Any]:
    began = time.perf_counter()
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda epoch: print(epoch, file=sys.stderr, flush=True))
    module = export(recipe, fitted.network, dataset.windows["test"])
    found: dict[str, Any] = {}
    for part in ("validation", "test"):
        metrics = evaluate(recipe, dataset, module, part)
        scores = metrics.model.values()
        found |= {
            f"{part}_mse": fmean(error for target in scores for error in target.standardised_mse),
            f"{part}_mae": fmean(error for target in scores for error in target.standardised_mae),
        }
    if metrics.windows != WINDOWS[recipe.window.steps]:
        raise AssertionError(f"{metrics.windows} test windows instead of {WINDOWS[recipe.window.steps]}")
    return {**found, "epochs": len(fitted.epochs), "seconds": round(time.perf_counter() - began)}


def _runs(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        yield from map(json.loads, results.read_text("utf-8").splitlines())


def _show(league: str, runs: list[dict[str, Any]]) -> None:
    print(f"\n| {league} | " + " | ".join(map(str, HORIZONS)) + " | mean MSE |")
    print("| --- |" + " ---: |" * (len(HORIZONS) + 1))
    own = [[run for run in runs if run["league"] == league and run["horizon"] == horizon] for horizon in HORIZONS]
    cells = [_cell([run["test_mse"] for run in found], [run["test_mae"] for run in found]) for found in own]
    whole = all(own) and f"{fmean(fmean(run['test_mse'] for run in found) for found in own):.4f}"
    print(f"| Foretell, {min(map(len, own))} seeds | " + " | ".join(cells) + f" | {whole or '-'} |")
    for name, scores in REFERENCES[league].items():
        shown = [f"{mse:.3f} / {mae:.3f}" for mse, mae in scores]
        print(f"| {name} | " + " | ".join(shown) + f" | {fmean(mse for mse, _ in scores):.4f} |")


def _cell(mse: list[float], mae: list[float]) -> str:
    if not mse:
        return "-"
    spread = f" ± {stdev(mse):.4f}" if len(mse) > 1 else ""
    return f"{fmean(mse):.4f}{spread} / {fmean(mae):.4f}"


if __name__ == "__main__":
    sys.exit(main())
