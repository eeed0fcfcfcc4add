"""A tiny world for the training tests: hourly rows of two seasonal targets and a covariate, and a recipe for them.

recipe = write_recipe(tmp_path, files=[write_rows(tmp_path / "a.csv", 300)], training={"epochs": 2})
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.dataset import Dataset
from training.fitting.fit import Fitted
from training.recipe import Recipe

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
COLUMNS = ("load", "heat", "wind")
ROLES = ("target", "target", "past")

Made = tuple[Recipe, Dataset, Fitted]
"""What is ready to be published."""


def rows(count: int, *, seed: int = 0, start: datetime = START) -> pl.DataFrame:
    """Waves of a season of 6 rows with noise: columns `time` (ISO 8601 text), load, heat and wind."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(count) * 2 * np.pi / 6)
    noise = random.normal(size=(len(COLUMNS), count)) * 0.1
    return pl.DataFrame(
        {
            "time": [f"{start + index * HOUR:%Y-%m-%dT%H:%M:%SZ}" for index in range(count)],
            "load": 10 + 2 * wave + noise[0],
            "heat": -3 + wave + noise[1],
            "wind": 5 + noise[2],
        }
    )


def with_gap(frame: pl.DataFrame, column: str, first: int, count: int) -> pl.DataFrame:
    """The same rows with `count` empty cells from row `first` (counted from 0) on."""
    index = pl.int_range(pl.len())
    gap = index.is_between(first, first + count - 1)
    return frame.with_columns(pl.when(gap).then(None).otherwise(pl.col(column)).alias(column))


def write(path: Path, frame: pl.DataFrame) -> Path:
    """As CSV or Parquet, by the name."""
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)
    return path


def given(*files: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as TOML would give it; `sections` replace single keys of theirs."""
    complete: dict[str, dict[str, Any]] = {
        "data": {
            "files": [str(file) for file in files] or ["rows.csv"],
            "frequency": "PT1H",
            "features": [{"name": name, "role": role} for name, role in zip(COLUMNS, ROLES, strict=True)],
        },
        "window": {"length": 12, "horizon": 1, "steps": 3, "season": 6},
        "network": {"architecture": "lstm", "config": {"hidden": 8, "layers": 1, "dropout": 0.0}},
        "training": {"epochs": 2, "batch": 32, "learning_rate": 0.01},
    }
    for name, keys in sections.items():
        complete[name] = {**complete.get(name, {}), **keys}
    return {"name": "tiny", **complete}


def recipe(*files: Path, **sections: Mapping[str, Any]) -> Recipe:
    """The recipe of `given`, read."""
    return Recipe.model_validate(given(*files, **sections))


def toml(table: Mapping[str, Any]) -> str:
    """A recipe as the text that `tomllib` reads back to it."""
    return "\n".join(f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
