"""The commands: what they print, and that a user's mistake is one line and exit code 2."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models import networks
from models.store import Store
from tests.training import world
from training.__main__ import main
from training.fitting.objective import Objective
from training.judging import versions

FILLED = {"method": "carry_forward", "limit": 1}


def write_recipe(folder: Path, **sections: Mapping[str, Any]) -> str:
    """Beside rows of 160 hours, unless the test has written its own."""
    if not (folder / "rows.csv").exists():
        world.write(folder / "rows.csv", world.rows(160))
    path = folder / "recipe.toml"
    path.write_text(world.toml(world.given(folder / "rows.csv", **sections)))
    return str(path)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that ends with 2."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_train_publishes_and_shows_the_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From recipe to store: a line an epoch, the table of errors, where the archive lies."""
    store = tmp_path / "store"

    assert main(["train", write_recipe(tmp_path), "--artifacts", str(store)]) == 0

    shown = capsys.readouterr().out
    assert shown.count("windows/s") == 2
    assert "heat    seasonal_naive" in shown
    assert shown.rstrip().endswith(str(store / "tiny/1/model.pt"))
    assert list(Store(store).index().models["tiny"].versions) == [1]


def test_several_series_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file with gaps: a line on the screen, all errors as CSV, the series in the report and in the spec a file."""
    frames = [world.with_gap(world.rows(160, seed=seed), "load", 40, 1) for seed in range(3)]
    named = [frame.with_columns(station=pl.lit(name)) for frame, name in zip(frames, "abc", strict=True)]
    world.write(tmp_path / "rows.csv", pl.concat(named).sort("time", maintain_order=True))
    data = {"series": "station", "gaps": FILLED}
    recipe = write_recipe(tmp_path, data=data, window={"shortest": 6}, training={"epochs": 1})
    store = tmp_path / "store"

    assert main(["train", recipe, "--artifacts", str(store)]) == 0
    assert main(["check", recipe]) == 0

    shown = capsys.readouterr().out
    assert re.search(r"^3 series: MASE from [\d.]+ \([abc]\) to [\d.]+ \([abc]\), median", shown, re.MULTILINE)
    assert ["b", "160", "0", "1"] in [line.split() for line in shown.splitlines()]
    report = store / "tiny/1/report"
    lines = list(csv.DictReader((report / "series.csv").read_text().splitlines()))
    assert [(line["series"], line["target"]) for line in lines] == [
        (name, of) for name in "abc" for of in ("load", "heat")
    ]
    assert {(line["rows"], line["missing_cells"], line["windows"]) for line in lines} == {("160", "1", "30")}
    page = (report / "report.md").read_text()
    assert "| b | 160 | 0 | 1 |" in page
    errors = [float(line["standardised_mae"]) for line in lines if line["series"] == "b"]
    assert f" | {sum(errors) / 2:.3f} |" in next(line for line in page.splitlines() if line.startswith("| b | 30 |"))
    spec = versions.load(Store(store), "tiny").spec
    assert ([data.rows for data in spec.training.data], spec.series, spec.shortest) == ([480], "station", 6)


def test_check_shows_rows_gaps_and_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipe and data are looked through without training."""
    gap = world.with_gap(world.rows(160), "load", 20, 3)
    world.write(tmp_path / "rows.csv", gap.filter(pl.int_range(pl.len()) != 50))

    sections = {"data": {"gaps": FILLED}, "split": {"calibration": 0.1}, "intervals": {"levels": [80]}}
    assert main(["check", write_recipe(tmp_path, **sections)]) == 0

    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rows.csv", "159", "1", "6"] in found
    parts = (["validation"], ["calibration"], ["test"])
    assert [line[-1] for line in found if line[:1] in parts] == ["14", "14", "14"]


def test_networks_lists_every_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    """With each option and its default."""
    assert main(["networks"]) == 0

    shown = capsys.readouterr().out
    assert all(name in shown for name in networks.names())
    assert any(line.split()[:3] == ["lstm", "hidden", "64"] for line in shown.splitlines())


def test_alias_points_to_a_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An alias is set for a version that is there, and refused for one that is not."""
    store = str(tmp_path / "store")
    main(["train", write_recipe(tmp_path, training={"epochs": 1}), "--artifacts", store])
    capsys.readouterr()

    assert main(["alias", "tiny", "production", "1", "--artifacts", store]) == 0
    assert Store(Path(store)).index().models["tiny"].aliases == {"production": 1}
    assert "no version 2" in refusal(capsys, "alias", "tiny", "production", "2", "--artifacts", store)


def test_a_mistake_in_the_recipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key, and a recipe that is not there."""
    path = write_recipe(tmp_path, window={"stepz": 3})

    assert "recipe.toml: window.stepz: unknown key; did you mean 'steps'?" in refusal(capsys, "check", path)
    assert "absent.toml: No such file" in refusal(capsys, "train", str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (pl.exclude("wind"), "no column 'wind'"),
        (pl.all().replace_strict({}, default="?", return_dtype=pl.String), "is not an ISO 8601 time"),
        ([pl.exclude("load"), pl.lit("?").alias("load")], "row 1, column 'load': '?' is not a number"),
    ],
)
def test_a_mistake_in_the_data_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: pl.Expr | list[pl.Expr], expected: str
) -> None:
    """A wrong file costs one message, not a traceback."""
    world.write(tmp_path / "rows.csv", world.rows(160).select(change))

    assert expected in refusal(capsys, "train", write_recipe(tmp_path), "--artifacts", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_ctrl_c_ends_in_a_word_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell expects it: status 130."""
    recipe = write_recipe(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Objective, "on_train_epoch_start", interrupted)

    assert main(["train", recipe, "--artifacts", str(tmp_path / "store")]) == 130
    assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / "store" / "tiny").exists()
