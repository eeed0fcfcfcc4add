"""Split, statistics and windows of a dataset: nothing from later times reaches the training."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.training import world
from training.data.dataset import Dataset, assemble, prepare
from training.data.windows import Windows
from training.errors import DataError

LENGTH, STEPS = 12, 3
FILLED = {"method": "carry_forward", "limit": 1}
WITH_ALTITUDE = [
    *({"name": name, "role": role} for name, role in zip(world.COLUMNS, world.ROLES, strict=True)),
    {"name": "altitude", "role": "static"},
]


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


@pytest.mark.parametrize("shortest", [None, 4])
def test_missing_cells_count_neither_in_statistics_nor_in_the_naive_error(tmp_path: Path, shortest: int | None) -> None:
    """A value that nobody observed must not make a series look easy, nor do rows in front of its first."""
    frame = world.rows(100).with_columns(load=pl.Series([1.0, 2.0] * 50))
    window = {"length": 12, "steps": 3, "season": 1, "shortest": shortest}

    found = dataset(tmp_path, world.with_gap(frame, "load", 20, 1), data={"gaps": FILLED}, window=window)

    assert found.naive_errors[0][0] == 1.0
    assert found.features[0].statistics.mean == pytest.approx((35 * 1.0 + 35 * 2.0 - 1.0) / 69)
    assert found.features[0].statistics.min == 1.0


def test_no_window_crosses_a_gap_or_a_file(tmp_path: Path) -> None:
    """Every gathered window is a run of consecutive rows of one file, complete as far as they are given."""
    frames = [
        world.with_gap(world.rows(100).with_columns(load=pl.int_range(100) * 1.0 + start), "wind", 30, 2)
        for start in (0, 1000)
    ]

    found = dataset(tmp_path, *frames)

    for windows in found.windows.values():
        rows = windows.gather(torch.arange(len(windows))).rows
        assert not rows[:, :LENGTH].isnan().any()
        assert bool((rows[:, 1:, 0] - rows[:, :-1, 0] == 1).all())


def test_windows_of_every_part_share_their_rows(tmp_path: Path) -> None:
    """Three parts and any number of windows need one copy of the rows."""
    found = dataset(tmp_path, world.rows(100), world.rows(100, seed=1))

    assert len({windows.rows.data_ptr() for windows in found.windows.values()}) == 1


def test_a_missing_target_is_given_but_never_forecast(tmp_path: Path) -> None:
    """Windows may have a gap that the model fills; none is scored or trained on a target that nobody observed."""
    frame = world.with_gap(world.rows(100), "heat", 40, 1)
    missing = int(world.START.timestamp()) + 40 * 3600

    refused = dataset(tmp_path, frame)
    found = dataset(tmp_path, frame, data={"gaps": FILLED})

    windows = found.windows["train"]
    assert missing not in rows_forecast(windows)
    assert len(windows) == len(refused.windows["train"]) + LENGTH
    assert windows.gather(torch.arange(len(windows))).rows[:, :LENGTH, 1].isnan().any(1).sum() == LENGTH


@pytest.mark.parametrize("gaps", [{}, {"method": "interpolate", "limit": 1}])
def test_a_missing_past_covariate_may_be_forecast_over(tmp_path: Path, gaps: dict[str, Any]) -> None:
    """Only targets are scored. Given it must be all the same, where nothing is filled."""
    frame = world.with_gap(world.rows(100), "wind", 40, 1)

    found = dataset(tmp_path, frame, data={"gaps": gaps})

    assert len(found.windows["train"]) == 70 - LENGTH - STEPS + 1 - (0 if gaps else LENGTH)


@pytest.mark.parametrize("role", ["future", "target"])
def test_what_is_known_ahead_must_be_there_ahead(tmp_path: Path, role: str) -> None:
    """A gap in it may be given, within the limit, but not be ahead."""
    frame = world.with_gap(world.rows(100), "wind", 40, 2)
    features = [{"name": "load", "role": "target"}, {"name": "wind", "role": role}]

    found = dataset(tmp_path, frame, data={"features": features, "gaps": {"method": "interpolate", "limit": 2}})

    assert len(found.windows["train"]) == 70 - LENGTH - STEPS + 1 - (STEPS + 1)


def test_windows_at_the_beginning_of_a_series_may_be_short(tmp_path: Path) -> None:
    """Of each series: as few rows as the recipe says, behind absent ones, at the times that they would have been."""
    frames = [world.rows(100).with_columns(altitude=1.0), world.rows(90, seed=1, start=world.START + 10 * world.HOUR)]
    frames[1] = frames[1].with_columns(altitude=2.0)
    window = {"shortest": 4}

    found = dataset(tmp_path, *frames, data={"features": WITH_ALTITUDE}, window=window)
    windows = found.windows["train"]
    rows, times = windows.gather(torch.arange(len(windows)))

    assert len(windows) == (70 - 4 - STEPS + 1) + (60 - 4 - STEPS + 1)
    absent = rows[:, :, 0].isnan().sum(1)
    assert absent.tolist() == [*range(8, 0, -1), *[0] * 56, *range(8, 0, -1), *[0] * 46]
    assert torch.equal(rows[:, :, :3].isnan().all(2), torch.arange(LENGTH + STEPS) < absent[:, None])
    assert rows[:, :, 3].unique().tolist() == [1.0, 2.0]
    second = 70 - 4 - STEPS + 1
    for place, frame, first in ((0, frames[0], 0), (second, frames[1], 10)):
        assert torch.equal(rows[place, 8:, :2], torch.tensor(frame[:7, ["load", "heat"]].rows()).float())
        assert times[place] == int(world.START.timestamp()) + (first + 3) * 3600
    assert torch.equal(found.series[1].values[:, 0], torch.tensor(frames[1]["load"].to_list()).float())


def test_runs_of_a_short_window_are_counted_from_its_first_row(tmp_path: Path) -> None:
    """The rows in front are no gap of its first values; one within it is, and only so far as it is in the window."""
    frame = world.with_gap(world.with_gap(world.rows(100), "heat", 0, 2), "load", 20, 3)

    found = dataset(tmp_path, frame, data={"gaps": {"method": "interpolate", "limit": 2}}, window={"shortest": 4})
    first = found.windows["train"].gather(torch.tensor([0])).rows[0]

    assert first[:, 1].isnan().nonzero().flatten().tolist() == [*range(8 + 2)]
    whole = found.windows["train"].gather(torch.arange(8, len(found.windows["train"]))).rows
    assert whole[:, :LENGTH, 0].isnan().sum(1).unique().tolist() == [0, 1, 2]


def test_members_of_an_ensemble_have_short_windows_of_their_own(tmp_path: Path) -> None:
    """A member that reads less lacks less, of the same series."""
    file = world.write(tmp_path / "rows.csv", world.rows(100))
    whole, member = (world.recipe(file, window={"length": length, "shortest": 4}) for length in (12, 6))
    found = prepare(whole)

    own, alone = assemble(member, found.series, found.parts), prepare(member)

    assert torch.equal(own.windows["train"].starts, alone.windows["train"].starts)
    assert torch.equal(own.windows["train"].rows.nan_to_num(-9), alone.windows["train"].rows.nan_to_num(-9))


def test_series_of_one_file_are_kept_apart(tmp_path: Path) -> None:
    """Windows of two series with mixed rows are those of two files."""
    one, other = world.with_gap(world.rows(120), "load", 30, 2), world.rows(100, seed=1, start=world.START + world.HOUR)
    parts = [
        frame.with_row_index().with_columns(pl.lit(name).alias("station")) for name, frame in (("a", one), ("b", other))
    ]
    (tmp_path / "mixed").mkdir()
    (tmp_path / "apart").mkdir()
    sections = {"gaps": FILLED}

    mixed = dataset(tmp_path / "mixed", pl.concat(parts).sort("index"), data={**sections, "series": "station"})
    apart = dataset(tmp_path / "apart", one, other, data=sections)

    assert mixed.features == apart.features
    assert mixed.naive_errors == apart.naive_errors
    for name, windows in apart.windows.items():
        index = torch.arange(len(windows))
        for found, expected in zip(mixed.windows[name].gather(index), windows.gather(index), strict=True):
            assert torch.equal(found.nan_to_num(-9), expected.nan_to_num(-9))
        assert len(mixed.windows[name]) == len(windows)
    assert mixed.names == ["a", "b"]
    assert [(data.rows, len(data.sha256)) for data in mixed.sources()] == [(120 + 100, 64)]


def test_two_files_may_have_series_of_one_name(tmp_path: Path) -> None:
    """They are told apart by the file, and are two."""
    frames = [world.rows(100, seed=seed).with_columns(station=pl.lit("a")) for seed in (0, 1)]

    found = dataset(tmp_path, *frames, data={"series": "station"})

    assert found.names == ["0.csv: a", "1.csv: a"]
    assert [line[1:] for line in found.inventory()[1:]] == [["100", "0", "0"]] * 2
    assert [data.file for data in found.sources()] == ["0.csv", "1.csv"]


def test_a_part_for_calibration_lies_between_validation_and_test(tmp_path: Path) -> None:
    """It takes from the test alone; without a share there is no such part."""
    without = dataset(tmp_path, world.rows(200))
    found = dataset(tmp_path, world.rows(200), split={"calibration": 0.1}, intervals={"levels": [80]})

    assert [*found.parts] == ["train", "validation", "calibration", "test"]
    assert [*without.parts] == ["train", "validation", "test"]
    assert (found.parts["train"], found.parts["validation"]) == (without.parts["train"], without.parts["validation"])
    calibration, test = rows_forecast(found.windows["calibration"]), rows_forecast(found.windows["test"])
    assert max(rows_forecast(found.windows["validation"])) < min(calibration) <= max(calibration) < min(test)
    assert (len(calibration), len(test)) == (20, 20)
    assert found.span("calibration").end == found.span("test").start


def test_each_series_has_a_naive_error_of_its_own(tmp_path: Path) -> None:
    """Over its own training rows; 0 where it has none a season apart."""
    frames = [world.rows(100).with_columns(load=pl.int_range(100) * factor) for factor in (1.0, 3.0)]

    found = dataset(tmp_path, *frames, world.rows(5, seed=2))

    assert [errors[0] for errors in found.naive_errors] == [6.0, 18.0, 0.0]


def test_a_part_without_a_window_is_refused(tmp_path: Path) -> None:
    """The message says what a window takes and what there is."""
    with pytest.raises(DataError, match=r"no window for test: one takes 15 complete rows .* test spans 2 rows"):
        dataset(tmp_path, world.rows(100), split={"train": 0.7, "validation": 0.28})
    gaps = world.rows(100).filter(pl.int_range(100) % 10 > 1)
    with pytest.raises(DataError, match="longest run without a gap has 8"):
        dataset(tmp_path, gaps)
    with pytest.raises(DataError, match=r"15 rows with no gap longer than 1 in a row.* without such a gap has 9"):
        dataset(tmp_path, gaps, data={"gaps": FILLED})


def test_a_column_that_is_empty_in_training_is_refused(tmp_path: Path) -> None:
    """There is nothing to scale it by."""
    with pytest.raises(DataError, match="column 'wind' has no value in the training rows"):
        dataset(tmp_path, world.with_gap(world.rows(100), "wind", 0, 80))


def test_a_series_shorter_than_a_season_has_no_naive_error(tmp_path: Path) -> None:
    """A file too short for training counts for nothing instead of failing."""
    found = dataset(tmp_path, world.rows(100), world.rows(3))

    assert all(error > 0 for error in found.naive_errors[0])
