"""The same LSTM trained by Foretell, NeuralForecast and Darts, in the same run: python -m benchmarks.training

Each library trains in a process of its own, in turns; the networks are compared before anything is reported, and the
windows counted by what the LSTM really read. Figures are medians of the rounds; compare them within one run only.

Peers are installed into environments of their own on the first run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import environments
from benchmarks.serving.__main__ import processor

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
FORETELL = "foretell"
PRECISIONS = {FORETELL: "float32", "foretell-bfloat16": "bfloat16"}
"""Foretell's own variants; the second is less arithmetic than the others do, and no part of the comparison."""
LIBRARIES = (*PRECISIONS, "neuralforecast", "darts")
CASES = {"univariate": 1, "three": 3}
"""Features: the target and its past covariates."""
_TRAIN, _VALIDATION = 0.7, 0.1

Run = dict[str, Any]


class WorkerError(Exception):
    """A worker that failed, or that trained something else."""


def main() -> None:
    """Exit status 1 for a worker that fails."""
    options = parse()
    try:
        pythons = {
            name: environments.prepare(name, options.environments, PEERS)
            for name in options.libraries
            if name not in PRECISIONS
        }
        print(f"# Training\n\n{about(options)}\n")
        found = [run(options, pythons, case, threads) for case in options.cases for threads in options.threads]
    except (environments.InstallError, WorkerError) as error:
        sys.exit(f"benchmarks.training: {error}")
    if options.json:
        options.json.write_text(json.dumps({"about": about(options), "cells": found}, indent=1))


def run(options: argparse.Namespace, pythons: Mapping[str, Path], case: str, threads: int | None) -> dict[str, Any]:
    """One cell: every library in every round, printed as a table."""
    runs: dict[str, list[Run]] = {name: [] for name in options.libraries}
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            task = write_task(Path(folder), options, CASES[case], threads, seed=turn)
            for name in options.libraries:
                runs[name].append(train(name, pythons.get(name), task))
    require_same(runs)
    title = f"{case}, {'threads as each library has it' if threads is None else f'threads {threads}'}"
    print(f"## {title}\n\n{table(runs)}\n", flush=True)
    return {"case": case, "threads": threads, "runs": runs}


def write_task(folder: Path, options: argparse.Namespace, features: int, threads: int | None, seed: int) -> Path:
    """The series and what is to be made of it, as every worker reads them."""
    train, end = round(options.rows * _TRAIN), round(options.rows * (_TRAIN + _VALIDATION))
    rows = series(options.rows, features, seed)
    rows = (rows - rows[:train].mean(0)) / rows[:train].std(0)
    np.save(folder / "values.npy", rows.astype(np.float32))
    names = ("length", "horizon", "hidden", "layers", "batch", "epochs", "learning_rate")
    task = {name: getattr(options, name) for name in names}
    path = folder / "task.json"
    path.write_text(json.dumps({**task, "train": train, "end": end, "seed": seed, "threads": threads}))
    return path


def series(rows: int, features: int, seed: int) -> NDArray[np.float64]:
    """[R, F]: a day and a week of hours with a slowly wandering level, and noise."""
    random = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    phase = np.arange(features)
    waves = np.sin(hours * 2 * np.pi / 24 + phase) + 0.5 * np.sin(hours * 2 * np.pi / 168 + phase)
    level = np.zeros((rows, features))
    for row, step in enumerate(random.normal(size=(rows - 1, features)), 1):
        level[row] = 0.98 * level[row - 1] + 0.1 * step
    return waves + level + 0.1 * random.normal(size=(rows, features))


def train(name: str, python: Path | None, task: Path) -> Run:
    """What the worker reports; WorkerError with the end of what it said where it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MALLOC_"))}
    if python is None:
        command = [sys.executable, "-m", "benchmarks.training.foretell", str(task), PRECISIONS[name]]
        environment["PYTHONPATH"] = str(ROOT)
    else:
        command = [str(python), str(PEERS / name / "worker.py"), str(task)]
        environment["PYTHONPATH"] = str(PEERS / "shared")
    done = subprocess.run(command, cwd=task.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkerError(f"{name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    report: Run = json.loads(done.stdout.splitlines()[-1])
    return report


def require_same(runs: Mapping[str, list[Run]]) -> None:
    """WorkerError where the LSTMs are not of the same shapes, or of another type of number."""
    found = {name: [(run["lstm"], run["dtype"]) for run in of] for name, of in runs.items()}
    first = next(iter(found.values()))[0]
    for name, shapes in found.items():
        if any(shape != first for shape in shapes):
            raise WorkerError(f"{name} has another LSTM than the others: {shapes[0]} instead of {first}")


def table(runs: Mapping[str, list[Run]]) -> str:
    """Markdown; windows/s are of all epochs but the first."""
    goal = max(median(run["errors"][-1] for run in of) for of in runs.values())
    speeds = {name: median(map(speed, of)) for name, of in runs.items()}
    columns = ["library", "threads", "windows/s", "Foretell : it", "windows an epoch", "whole fit, s"]
    columns += ["MSE held out", f"s to {goal:.3f}", "peak, MiB", "of it imports, MiB"]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for name, of in runs.items():
        cells = [
            name,
            str(of[0]["threads"]),
            f"{speeds[name]:,.0f}",
            f"{speeds[FORETELL] / speeds[name]:.2f}" if FORETELL in speeds else "",
            f"{of[0]['windows'][-1]:,.0f}",
            f"{median(run['fit_s'] for run in of):.1f}",
            f"{median(run['errors'][-1] for run in of):.3f}",
            _seconds([until(run, goal) for run in of]),
            f"{median(run['peak_mib'] for run in of):.0f}",
            f"{median(run['imported_mib'] for run in of):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(run: Run) -> float:
    """Windows/s of the epochs after the first, or of the first where there is no other."""
    windows, seconds = (run[name][1:] or run[name] for name in ("windows", "seconds"))
    return float(sum(windows) / sum(seconds))


def until(run: Run, goal: float) -> float:
    """Seconds of training until the error on the windows held out was no larger; infinite where it never was."""
    total = 0.0
    for seconds, error in zip(run["seconds"], run["errors"], strict=True):
        total += seconds
        if error <= goal:
            return total
    return float("inf")


def _seconds(found: list[float]) -> str:
    middle = median(found)
    return "never" if middle == float("inf") else f"{middle:.1f}"


def about(options: argparse.Namespace) -> str:
    """What was measured where."""
    names = [name for name in options.libraries if name not in PRECISIONS]
    peers = ", ".join((PEERS / name / "requirements.txt").read_text().splitlines()[0] for name in names)
    return (
        f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}; {options.rounds} rounds. {peers}."
        f" {options.rows} rows, window {options.length}, horizon {options.horizon}, LSTM {options.layers} x"
        f" {options.hidden}, batch {options.batch}, {options.epochs} epochs, Adam, MSE, float32."
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="default: all")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument(
        "--threads",
        nargs="+",
        type=_threads,
        default=[None, 1, 2],
        metavar="N|default",
        help="`default`: each library as it comes, with its logs and bars; default: default 1 2",
    )
    for name, value, what in (
        ("rounds", 3, ""),
        ("epochs", 3, "the first is not timed"),
        ("rows", 20_000, ""),
        ("length", 96, ""),
        ("horizon", 24, ""),
        ("hidden", 64, ""),
        ("layers", 2, ""),
        ("batch", 256, ""),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what}; default: {value}".lstrip("; "))
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--environments", type=Path, default=environments.DEFAULT, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    options.environments = options.environments.expanduser().resolve()
    return options


def _threads(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal() or text == "0":
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of threads nor 'default'")
    return int(text)


if __name__ == "__main__":
    main()
