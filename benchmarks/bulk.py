"""How fast a Parquet data set is scored through Ray Data, beside the same runtime in one process without Ray.

python -m benchmarks.bulk make DATA --series 1000000     # plausible series for the model, 4 GB for a million
python -m benchmarks.bulk plain DATA --parts 20          # some of its parts, in this process
python -m deploy.ray.score DATA --model weather --steps 24 --to OUT
"""

import argparse
import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.settings import Settings
from deploy.ray.plan import Given, contents, model_of, planned
from deploy.ray.scoring import Scorer
from deploy.ray.work import FORECASTS, REJECTED, parts_of
from models.spec import Spec
from models.store import Store

_START = datetime(2026, 1, 1, tzinfo=UTC)
_GROUP = 4096
_FILE = 25
"""Row groups in a file."""
_DAY = timedelta(days=1)


def make(folder: Path, spec: Spec, series: int, *, group: int = _GROUP, seed: int = 0) -> None:
    """A data set with a window of each series: a daily cycle, a drift and noise, of the size of the training rows."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    hours = np.arange(spec.window, dtype=np.float32) * np.float32(2 * np.pi * (spec.frequency / _DAY))
    features = [feature for feature in spec.features if feature.role != "static"]
    offsets = np.arange(group + 1, dtype=np.int32) * spec.window
    writer: pq.ParquetWriter | None = None
    for number, first in enumerate(range(0, series, group)):
        rows = min(group, series - first)
        columns: dict[str, pa.Array] = {
            "id": pa.array([f"series-{index}" for index in range(first, first + rows)]),
            "start": pa.array([_START + index % 8760 * spec.frequency for index in range(first, first + rows)]),
        }
        for feature in features:
            phase = random.uniform(0, 2 * np.pi, (rows, 1)).astype(np.float32)
            noise = random.standard_normal((rows, spec.window), np.float32)
            values = feature.shift + feature.scale * (np.sin(hours + phase) + np.float32(0.3) * noise)
            columns[feature.name] = pa.ListArray.from_arrays(
                offsets[: rows + 1], values.clip(*feature.limits).astype(np.float32).ravel()
            )
        table = pa.table(columns)
        if writer is None or number % _FILE == 0:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{number // _FILE:05}.parquet", table.schema, compression="none")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def plain(data: Path, model: str, steps: int, parts: int) -> None:
    """Score some parts in this process."""
    with tempfile.TemporaryDirectory() as folder:
        given = Given(data, Path(folder), model, None, steps, (), "step", None, None, 0)
        manifest, plan = planned(given, Settings.read())
        for name in (FORECASTS, REJECTED):
            (plan.root / name).mkdir()
        scorer = Scorer(plan, "cpu")
        began, series = time.monotonic(), 0
        for part in parts_of(manifest)[:parts]:
            series += sum(scorer.score(part))
        took = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{series} series in {took:.1f} s: {series / took:.0f} series/s, peak {peak:.0f} MiB")


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "plain"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="weather")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=20)
    given = parser.parse_args()
    if given.what == "plain":
        plain(given.data, given.model, given.steps, given.parts)
        return
    store = Store(Settings.read().artifacts)
    model, _ = model_of(store, given.model, None)
    with store.opened(model.name, model.version) as archive:
        spec, _ = contents(archive, model)
    began = time.monotonic()
    make(given.data, spec, given.series)
    print(f"made in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
