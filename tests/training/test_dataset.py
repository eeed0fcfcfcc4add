"""Split, statistics and windows of a dataset: nothing from later times reaches the training."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.training import world
from training.data.dataset import Dataset, prepare
from training.data.windows import Windows
from training.errors import DataError

LENGTH, STEPS = 12, 3


def dataset(tmp_path: Path, *frames: pl.DataFrame, **sections: dict[str, Any]) -> Dataset:
    files = [world.write(tmp_path / f"{index}.csv", frame) for index, frame in enumerate(frames)]
    return prepare(world.recipe(*files, **sections))


def rows_forecast(windows: Windows) -> set[int]:
    """Epoch seconds of all rows that are forecast in some window."""
    hours = torch.arange(LENGTH, LENGTH + STEPS) * 3600
    return set((windows.clock.at(windows.starts)[:, None] + hours).flatten().tolist())


def test_the_split_is_chronological(tmp_path: Path) -> None:
    """Whatever is forecast in one part is forecast in no other, and the parts follow each other."""
    found = dataset(tmp_path, world.rows(200))

    train, validation, test = (rows_forecast(found.windows[name]) for name in ("train", "validation", "test"))

    assert max(train) < min(validation) <= max(validation) < min(test)
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        span = found.span(name)
        assert span.start.timestamp() <= min(rows) <= max(rows) < span.end.timestamp()


def test_training_windows_do_not_reach_beyond_the_training_rows(tmp_path: Path) -> None:
    """Of 200 rows 140 are for training; the others' windows look back, so that none of their rows is lost."""
    found = dataset(tmp_path, world.rows(200))

    assert {name: len(windows) for name, windows in found.windows.items()} == {
        "train": 140 - LENGTH - STEPS + 1,
        "validation": 20 - STEPS + 1,
        "test": 40 - STEPS + 1,
    }


def test_all_files_are_split_at_the_same_time(tmp_path: Path) -> None:
    """A file that starts later is cut where the others are, so that no station lets another look ahead."""
    found = dataset(tmp_path, world.rows(200), world.rows(150, start=world.START + 50 * world.HOUR))

    assert len(found.windows["train"]) == (140 - LENGTH - STEPS + 1) + (90 - LENGTH - STEPS + 1)
    assert len(found.windows["test"]) == 2 * (40 - STEPS + 1)


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    """They are computed from the training rows of all files, whatever comes after."""
    frames = [world.rows(100), world.rows(100, seed=1)]
    later = pl.int_range(pl.len()) >= 70
    shifted = [
        frame.with_columns(pl.when(later).then(pl.col("load") + 99).otherwise("load").alias("load")) for frame in frames
    ]

    (tmp_path / "shifted").mkdir()
    found, other = dataset(tmp_path, *frames), dataset(tmp_path / "shifted", *shifted)

    training = torch.tensor([frame["load"].to_list()[:70] for frame in frames]).flatten()
    assert found.features == other.features
    assert found.naive_errors == other.naive_errors
    assert found.features[0].statistics.mean == pytest.approx(training.mean().item())
    assert found.features[0].statistics.std == pytest.approx(training.std(correction=0).item())


def test_filled_cells_count_neither_in_statistics_nor_in_the_naive_error(tmp_path: Path) -> None:
    """A value that nobody observed must not make a constant series look easy."""
    frame = world.rows(100).with_columns(load=pl.Series([1.0, 2.0] * 50))
    window = {"length": 12, "steps": 3, "season": 1}

    found = dataset(tmp_path, world.with_gap(frame, "load", 20, 1), data={"gaps": {"carry_forward": 1}}, window=window)

    assert found.naive_errors[0] == 1.0
    assert found.features[0].statistics.mean == pytest.approx((35 * 1.0 + 35 * 2.0 - 1.0) / 69)


def test_no_window_crosses_a_gap_or_a_file(tmp_path: Path) -> None:
    """Every gathered window is a run of consecutive complete rows of one file."""
    frames = [
        world.with_gap(world.rows(100).with_columns(load=pl.int_range(100) * 1.0 + start), "wind", 30, 2)
        for start in (0, 1000)
    ]

    found = dataset(tmp_path, *frames)

    for windows in found.windows.values():
        rows = windows.gather(torch.arange(len(windows))).rows
        assert not rows.isnan().any()
        assert bool((rows[:, 1:, 0] - rows[:, :-1, 0] == 1).all())


def test_windows_of_every_part_share_their_rows(tmp_path: Path) -> None:
    """Three parts and any number of windows need one copy of the rows."""
    found = dataset(tmp_path, world.rows(100), world.rows(100, seed=1))

    assert len({windows.rows.data_ptr() for windows in found.windows.values()}) == 1


def test_a_filled_target_is_given_but_never_forecast(tmp_path: Path) -> None:
    """Windows may read a filled row; none is scored or trained on a target that nobody observed."""
    frame = world.with_gap(world.rows(100), "heat", 40, 1)
    filled = int(world.START.timestamp()) + 40 * 3600

    refused = dataset(tmp_path, frame)
    found = dataset(tmp_path, frame, data={"gaps": {"carry_forward": 1}})

    assert filled not in rows_forecast(found.windows["train"])
    assert len(found.windows["train"]) == len(refused.windows["train"]) + LENGTH


def test_a_filled_covariate_may_be_forecast_over(tmp_path: Path) -> None:
    """Only targets are scored."""
    frame = world.with_gap(world.rows(100), "wind", 40, 1)

    found = dataset(tmp_path, frame, data={"gaps": {"carry_forward": 1}})

    assert len(found.windows["train"]) == 70 - LENGTH - STEPS + 1


def test_a_part_without_a_window_is_refused(tmp_path: Path) -> None:
    """The message says what a window takes and what there is."""
    with pytest.raises(DataError, match=r"no window for test: one takes 15 complete rows .* test spans 2 rows"):
        dataset(tmp_path, world.rows(100), split={"train": 0.7, "validation": 0.28})
    with pytest.raises(DataError, match="longest run without a gap has 9"):
        dataset(tmp_path, world.rows(100).filter(pl.int_range(100) % 10 != 0))


def test_a_column_that_is_empty_in_training_is_refused(tmp_path: Path) -> None:
    """There is nothing to scale it by."""
    with pytest.raises(DataError, match="column 'wind' has no value in the training rows"):
        dataset(tmp_path, world.with_gap(world.rows(100), "wind", 0, 80))


def test_a_series_shorter_than_a_season_has_no_naive_error(tmp_path: Path) -> None:
    """A file too short for training counts for nothing instead of failing."""
    found = dataset(tmp_path, world.rows(100), world.rows(3))

    assert all(error > 0 for error in found.naive_errors)
