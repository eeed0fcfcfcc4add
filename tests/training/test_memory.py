"""Memory: a long series takes what its rows take, however many windows overlap."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch

from tests.training import world
from training.data.dataset import prepare
from training.data.windows import Batches

ROWS = 3_000_000

PEAK = """
import resource, sys
from pathlib import Path
from training.data.dataset import prepare
from training.recipe import load

for path in sys.argv[1:]:
    prepare(load(Path(path)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_long_series_is_prepared_in_memory_of_the_order_of_its_rows(tmp_path: Path) -> None:
    """Reading, measuring and finding windows peaks below four times what times and values take in the file.

    A copy of each window, of 48 rows, would take 16 times that.
    """
    short, long = (_recipe(tmp_path, rows) for rows in (1000, ROWS))

    found = subprocess.run([sys.executable, "-c", PEAK, short, long], capture_output=True, text=True, check=True)

    before, peak = map(int, found.stdout.split())
    assert peak - before < 4 * ROWS * (8 + 4)


def _recipe(folder: Path, rows: int) -> str:
    times = np.datetime64("2000-01-01", "us") + np.arange(rows) * np.timedelta64(1, "h")
    load = np.sin(np.arange(rows, dtype=np.float32))
    file = world.write(folder / f"{rows}.parquet", pl.DataFrame({"time": times, "load": load}))
    given = world.given(
        file, data={"features": [{"name": "load", "role": "target"}]}, window={"length": 36, "steps": 12}
    )
    path = folder / f"{rows}.toml"
    path.write_text(world.toml(given))
    return str(path)


def test_the_numbers_of_windows_are_narrow(tmp_path: Path) -> None:
    """Where a window starts, and the order of an epoch, take no more than a value of the series each."""
    windows = prepare(world.recipe(world.write(tmp_path / "a.csv", world.rows(100)))).windows["train"]
    order = Batches(windows, 8, seed=1)._order()

    assert windows.starts.dtype == order.dtype == torch.int32
