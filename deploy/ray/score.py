"""Forecasts of a Parquet data set with a series in every row, through Ray Data (docs/cluster.md).

    python -m deploy.ray.score DATA --model weather --steps 24 --to OUT

What is there already is not done again. Settings are those of the service that have a meaning here: FORETELL_ARTIFACTS,
_DEVICE, _PRECISION, _MAX_BATCH_ROWS, _TORCH_THREADS, _TRUSTED_KEY. RAY_ADDRESS names a cluster; without it there is one
on this machine for as long as it takes.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from app.errors import InvalidError
from app.forecasts.bands import levels_of
from app.settings import Settings, SettingsError
from deploy.ray.plan import Given, Plan, planned
from deploy.ray.table import ColumnsError
from deploy.ray.work import Folder, Manifest, Part, WorkError, parts_of
from models.signature import SignatureError
from models.store import StoreError

_TELL_S = 5.0
_INTERRUPTED = 130
_BLOCKS = 1000
"""At most: Ray keeps account of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 where every series has a forecast or a reason, 1 where it could not go on, 2 for what is wrong with
    the order.
    """
    parser = _parser()
    try:
        given = _given(parser.parse_args(arguments))
        settings = Settings.read()
        manifest, plan = planned(given, settings)
        with Folder(given.to).claimed(manifest):
            return _scored(given, manifest, plan)
    except KeyboardInterrupt:
        parser.exit(_INTERRUPTED, "stopped; started again, it goes on from here\n")
    except (WorkError, ColumnsError, StoreError, SignatureError, SettingsError, InvalidError) as error:
        detail = error.detail if isinstance(error, InvalidError) else str(error)
        parser.exit(2, f"foretell: {detail}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.ray.score",
        description="Forecasts of a Parquet data set with a series in every row.",
        epilog="Started again, it does what is missing. See docs/cluster.md for the columns.",
    )
    parser.add_argument("data", type=Path, help="a Parquet file, or a folder of them")
    parser.add_argument("--to", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", help="number, alias or latest [production where it is set, else latest]")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--level", default="", help="percents of prediction intervals, with commas between")
    parser.add_argument("--band", choices=("step", "path"), default="step")
    parser.add_argument("--id", help="column of the series' names [as the model's tables call it, else id]")
    parser.add_argument("--actors", type=int, help="processes that compute [one for each core or GPU]")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each; a half is two on one")
    return parser


def _given(read: argparse.Namespace) -> Given:
    levels = levels_of(read.level) if read.level else ()
    if read.steps < 1 or (read.actors or 1) < 1 or read.gpus < 0:
        raise WorkError("--steps and --actors are 1 at least, --gpus 0")
    return Given(
        read.data, read.to, read.model, read.version, read.steps, levels, read.band, read.id, read.actors, read.gpus
    )


class _Actor:
    """A scorer in a process of Ray's."""

    def __init__(self, plan: Plan) -> None:
        # Torch is only in processes that compute.
        from app.device.runtime import devices
        from deploy.ray.scoring import Scorer

        # Of several, Ray shows a process those that are its.
        self._scorer = Scorer(plan, devices(plan.device)[0])

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
        """Score parts; what they came to."""
        rows = zip(batch["path"].tolist(), batch["group"].tolist(), batch["rows"].tolist(), strict=True)
        counts = [self._scorer.score(Part(*row)) for row in rows]
        return {
            "forecast": np.array([count.forecast for count in counts], np.int64),
            "rejected": np.array([count.rejected for count in counts], np.int64),
        }


def _scored(given: Given, manifest: Manifest, plan: Plan) -> int:
    folder = Folder(plan.root)
    every, missing = parts_of(manifest), folder.missing(manifest)
    series = sum(part.rows for part in every)
    model = plan.model
    _say(f"{model.name} {model.version} ({model.digest}): {plan.steps} steps of {series} series in {len(every)} parts")
    if len(missing) < len(every):
        _say(f"{len(every) - len(missing)} parts are there already")
    began = time.monotonic()
    done = 0
    if missing:
        try:
            done = _run(given, plan, missing)
        except Exception as error:  # Ray has many, and whatever it was, what is done stays done
            logging.getLogger("app").debug("scoring failed", exc_info=error)
            _say(f"it could not go on: {_reason(error)}; started again, it goes on from here", sys.stderr)
            return 1
    took = time.monotonic() - began
    count = folder.count(manifest)
    if folder.missing(manifest) or sum(count) != series:
        _say(f"{sum(count)} of {series} series are there; start it again", sys.stderr)
        return 1
    speed = f", {done} now in {took:.1f} s: {done / took:.0f} series/s" if done else ""
    _say(f"{count.forecast} forecast, {count.rejected} rejected{speed}")
    return 0


def _run(given: Given, plan: Plan, missing: Sequence[Part]) -> int:
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = int(there.get("GPU", 0) / given.gpus) if given.gpus else int(there.get("CPU", 1))
    actors = min(given.actors or most, most, len(missing))
    if not actors:
        raise WorkError(f"the cluster has {there.get('GPU', 0):g} GPUs; --gpus {given.gpus:g} are none for a process")
    parts = ray.data.from_items([part._asdict() for part in missing], override_num_blocks=min(_BLOCKS, len(missing)))
    results = parts.map_batches(
        cast(Any, _Actor),
        fn_constructor_args=(plan,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=given.gpus or None,
        num_cpus=None if given.gpus else 1,
    )
    return _told(results.iter_rows(), len(missing))


def _told(results: Iterable[dict[str, Any]], parts: int) -> int:
    """How many series there were; says meanwhile how far it is."""
    began = told = time.monotonic()
    series = 0
    for done, row in enumerate(results, 1):
        series += int(row["forecast"] + row["rejected"])
        now = time.monotonic()
        if now - told >= _TELL_S:
            told = now
            _say(f"{done} of {parts} parts, {series} series, {series / (now - began):.0f}/s")
    return series


def _reason(error: Exception) -> str:
    """The last line of what a process of Ray's says, which ends with what was raised there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _say(text: str, to: Any = None) -> None:  # noqa: ANN401  a stream
    (to or sys.stdout).write(f"{text}\n")
    (to or sys.stdout).flush()


if __name__ == "__main__":
    sys.exit(main())
