"""Every architecture on the shipped weather data, by one recipe, beside the baselines.

    .venv/bin/python -m benchmarks.accuracy.networks --results networks.jsonl

Each forecasts the day ahead in one pass, with its own defaults. An architecture that stands in the results already is
not trained again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from models import networks
from models.spec import Scores
from training.data.dataset import prepare
from training.fitting.fit import fit
from training.recipe import load
from training.scoring.evaluate import evaluate, export

ROOT = Path(__file__).parents[2]
COMMON = {
    "window.horizon": 24,
    "training.epochs": 5,
    "training.patience": 3,
    "training.ema": 0.99,
    "training.learning_rate": 1e-3,
    "network.config": {},
}
OWN: dict[str, dict[str, Any]] = {
    "linear": {"network.config.individual": True},
    "segment_lstm": {"network.config.mixing": True, "network.config.segment": 12},
}


def main() -> int:
    """Train what is missing, then show the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.networks")
    parser.add_argument("--results", type=Path, default=Path("networks.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {run["architecture"] for run in _runs(given.results)}
    for name in networks.names():
        if name not in done:
            with given.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(_run(name)) + "\n")
    _show(list(_runs(given.results)))
    return 0


def _run(architecture: str) -> dict[str, Any]:
    recipe = load(ROOT / "training" / "recipes" / "weather.toml").having(
        {"network.architecture": architecture, **COMMON, **OWN.get(architecture, {})}
    )
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda epoch: print(architecture, epoch, file=sys.stderr, flush=True))
    metrics = evaluate(recipe, dataset, export(recipe, fitted.network, dataset.windows["test"]))
    return {
        "architecture": architecture,
        "weights": sum(weights.numel() for weights in fitted.network.parameters()),
        "seconds": round(fitted.seconds),
        "model": _means(metrics.model),
        "baselines": {name: _means(scores) for name, scores in metrics.baselines.items()},
    }


def _means(scores: Mapping[str, Scores]) -> dict[str, tuple[float, float]]:
    return {target: (fmean(found.mae), fmean(found.rmse)) for target, found in scores.items()}


def _runs(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        yield from map(json.loads, results.read_text("utf-8").splitlines())


def _show(runs: list[dict[str, Any]]) -> None:
    baselines = runs[0]["baselines"]
    print("| MAE / RMSE | " + " | ".join(runs[0]["model"]) + " | weights | seconds |")
    print("| --- |" + " ---: |" * (len(runs[0]["model"]) + 2))
    for run in sorted(runs, key=lambda run: sum(mae for mae, _ in run["model"].values())):
        cells = [_cell(run["model"][target], baselines["linear"][target]) for target in run["model"]]
        print(f"| `{run['architecture']}` | {' | '.join(cells)} | {run['weights']:,} | {run['seconds']} |")
    for name, found in baselines.items():
        print(f"| *{name}* | " + " | ".join(f"{mae:.2f} / {rmse:.2f}" for mae, rmse in found.values()) + " | | |")


def _cell(own: list[float], linear: list[float]) -> str:
    """Bold where both errors are below those of the linear baseline."""
    text = f"{own[0]:.2f} / {own[1]:.2f}"
    return f"**{text}**" if own[0] < linear[0] and own[1] < linear[1] else text


if __name__ == "__main__":
    sys.exit(main())
