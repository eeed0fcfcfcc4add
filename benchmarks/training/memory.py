"""What a long series takes: python -m benchmarks.training.memory

A series of each width is written as Parquet, then trained on for a few hundred steps in a process of its own. What
counts is the peak beside what the interpreter takes once everything is imported.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

_MIB = 1024**2
_STEPS = 300


class _EnoughError(Exception):
    """The steps are done: an epoch of so many windows would take an hour."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--features", type=int, nargs="+", default=[1, 3], help="default: 1 3")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        measure(options.file, options.features[0])
        return
    print("| rows | features | float32, MiB | imports, MiB | peak above them, MiB: read | trained |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for features in options.features:
            file = Path(folder) / f"{features}.parquet"
            write(file, options.rows, features)
            command = [sys.executable, "-m", "benchmarks.training.memory", "--file", str(file), "--features"]
            found = subprocess.run([*command, str(features)], stdout=subprocess.PIPE, text=True, check=True).stdout
            size = options.rows * features * 4 / _MIB
            print(f"| {options.rows:,} | {features} | {size:.0f} | {' | '.join(found.split())} |", flush=True)


def write(file: Path, rows: int, features: int) -> None:
    """A wave of a day of minutes with noise in each column."""
    random, minutes = np.random.default_rng(0), np.arange(rows)
    times = np.datetime64("2000-01-01", "us") + minutes * np.timedelta64(1, "m")
    columns = {
        f"x{index}": (np.sin(minutes * 2 * np.pi / 1440 + index) + 0.1 * random.normal(size=rows)).astype(np.float32)
        for index in range(features)
    }
    pl.DataFrame({"time": times, **columns}).write_parquet(file)


def measure(file: Path, features: int) -> None:
    """Prints MiB: after the imports, and the peaks above that after reading and after training."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import Callback

    from training.data.dataset import prepare
    from training.fitting.fit import fit
    from training.recipe import Recipe

    class Stop(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
            if trainer.global_step == _STEPS:
                raise _EnoughError

    torch.set_num_threads(1)
    imports = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / _MIB
    recipe = Recipe.model_validate(
        {
            "name": "long",
            "data": {
                "files": [str(file)],
                "frequency": "PT1M",
                "features": [{"name": f"x{index}", "role": "target"} for index in range(features)],
            },
            "window": {"length": 96, "horizon": 24, "steps": 24, "season": 24},
            "network": {"architecture": "lstm", "config": {"hidden": 32, "layers": 1}},
            "training": {"epochs": 1},
        }
    )
    dataset = prepare(recipe)
    peaks = [_peak()]
    try:
        fit(recipe, dataset, tell=lambda _: None, callbacks=[Stop()])
    except _EnoughError:
        peaks.append(_peak())
    print(f"{imports:.0f}", *(f"{peak - imports:.0f}" for peak in peaks))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
