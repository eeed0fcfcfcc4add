"""Versions beside each other: the best is marked where they were tested on the same; otherwise it is said why not."""

import csv
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from models.artifact import Artifact
from models.spec import Scores
from models.store import Store
from tests import builders
from training.__main__ import main
from training.judging import compare, versions


def metrics(mae: float, *, windows: int = 100) -> dict[str, Any]:
    ones = [1.0]
    scores = Scores(mae=[mae], rmse=ones, r2=[mae], mase=ones, smape=ones, standardised_mse=ones, standardised_mae=ones)
    return {"steps": 1, "windows": windows, "season": 24, "model": {"target_0": scores}, "baselines": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`tiny` in two versions: the second errs less, and its R² (which is as large as its error) is worse."""
    found = Store(tmp_path / "store")
    builders.publish_tiny(found, metrics=metrics(3.0))
    builders.publish_tiny(found, metrics=metrics(2.0))
    return found


def loaded(store: Store, *references: str) -> list[Artifact]:
    return [versions.load(store, reference) for reference in references]


def test_the_best_of_each_metric_is_marked(store: Store) -> None:
    """Errors are best when small, R² when large; equals are all the best."""
    head, one, other, *_ = compare.table(loaded(store, "tiny:1", "tiny:2"))

    assert head[:5] == ["target", "version", "MAE", "RMSE", "R²"]
    assert one[:5] == ["target_0", "tiny:1", "3.000", "1.000*", "3.000*"]
    assert other[:5] == ["target_0", "tiny:2", "2.000*", "1.000*", "2.000"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"metrics": metrics(1.0, windows=99)}, "test windows: 99 against 100"),
        ({"frequency": timedelta(minutes=5)}, "frequency: 0:05:00 against 1:00:00"),
        ({"roles": ("target", "target")}, "targets: ['target_0', 'target_1'] against ['target_0']"),
    ],
)
def test_what_was_tested_otherwise_is_not_compared(store: Store, changes: dict[str, Any], difference: str) -> None:
    """Nothing is marked, and the difference is told."""
    builders.publish_tiny(store, "other", **changes)
    found = loaded(store, "tiny:1", "other")

    assert compare.differences(found) == [f"other:1 and tiny:1 differ in their {difference}"]
    assert not any(compare.BEST in cell for line in compare.table(found) for cell in line)


def test_other_data_and_another_test_span_are_told(store: Store) -> None:
    """By digest, not by name."""
    training = loaded(store, "tiny:1")[0].spec.training
    data = [training.data[0].model_copy(update={"sha256": "1" * 64})]
    span = training.test.model_copy(update={"start": training.test.start + builders.HOUR})
    builders.publish_tiny(
        store, "other", metrics=metrics(1.0), training=training.model_copy(update={"data": data, "test": span})
    )

    told = compare.verdict(loaded(store, "tiny:1", "other"))

    assert told[0].startswith("Not comparable")
    assert [line.split(":1 differ in their ")[1].split(":")[0] for line in told[1:]] == ["data", "test span"]


def test_versions_are_named_by_number_alias_or_not_at_all(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Without either it is the newest; what is not there is refused with what is."""
    store.point("tiny", "production", 1)

    found = loaded(store, "tiny", "tiny:latest", "tiny:production", "tiny:1")

    assert [version.spec.version for version in found] == [2, 2, 1, 1]
    for reference, told in (
        ("tiny:3", "tiny has no version '3' (there are: 1, 2, production, latest)"),
        ("giant", "has no model 'giant' (there are: tiny)"),
    ):
        assert main(["compare", reference, "--artifacts", str(store.root)]) == 2
        assert told in capsys.readouterr().err


def test_the_command_shows_a_table_and_writes_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the screen, as CSV, and as a page with a picture."""
    output = tmp_path / "out"

    assert main(["compare", "tiny:1", "tiny", "--artifacts", str(store.root), "--output", str(output)]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = list(csv.DictReader((output / "compare.csv").read_text().splitlines()))
    page = (output / "report.md").read_text()
    assert ["target_0", "tiny:2", "2.000*", "1.000*", "2.000"] in [line[:5] for line in lines]
    assert [(row["target"], row["version"], row["mae"]) for row in rows[:2]] == [
        ("target_0", "tiny:1", "3.0"),
        ("target_0", "tiny:2", "2.0"),
    ]
    assert "| tiny:2 | linear |" in page
    assert "](errors.png)" in page
    assert (output / "errors.png").stat().st_size > 1000
