"""Intervals of a trained network: from which windows, in which mode, and what is said of them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models import artifact, intervals
from models.archive import RESIDUALS_FILE, record
from models.artifact import FormatError
from models.intervals import Base, Table
from models.store import Store
from tests.training import world
from training.data.dataset import Dataset, prepare
from training.errors import DataError
from training.fitting.fit import Fitted, fit
from training.publishing.publish import publish
from training.recipe import Recipe
from training.reporting.intervals import section
from training.scoring.calibrate import Answers, adaptive, calibrate
from training.scoring.evaluate import answers, export
from training.scoring.series import SeriesScores

SPLIT = {"train": 0.5, "validation": 0.1, "calibration": 0.2}
STEPS = 3
TARGETS = ("load", "heat")


@cache
def made(folder: Path, method: str, horizon: int = 1) -> tuple[Recipe, Dataset, Fitted]:
    """A trained network of a recipe that calibrates; two targets, three steps."""
    file = world.write(folder / "rows.csv", world.rows(900))
    recipe = world.recipe(file, split=SPLIT, intervals={"method": method}, window={"horizon": horizon})
    dataset = prepare(recipe)
    return recipe, dataset, fit(recipe, dataset, tell=lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data of this file lie."""
    return tmp_path_factory.mktemp("calibrate")


def residuals(recipe: Recipe, dataset: Dataset, fitted: Fitted, part: str) -> Any:  # noqa: ANN401  an array
    """Truth minus forecast [W, N, T], through the exported network, computed here."""
    module = export(recipe, fitted.network, dataset.windows["test"])
    found = [asked.truth - forecast for asked, forecast, _ in answers(recipe, dataset.windows[part], module)]
    return torch.cat(found).numpy()


@pytest.mark.parametrize("horizon", [1, 3])
def test_margins_are_ranks_of_the_calibration_errors(folder: Path, horizon: int) -> None:
    """Recursive or direct, each end is the order statistic of the errors of the exported network in that mode."""
    recipe, dataset, fitted = made(folder, "conformal", horizon)
    found = calibrate(recipe, dataset, export(recipe, fitted.network, dataset.windows["test"]))
    assert found is not None
    errors = np.sort(residuals(recipe, dataset, fitted, "calibration"), 0)
    count = len(errors)
    (bounds,) = found.table.bounds(Base(np.zeros((1, STEPS, 2), np.float32)), [90])

    upper, lower = -(-(count + 1) * 95 // 100), (count + 1) * 5 // 100
    np.testing.assert_allclose(bounds.upper[0], errors[upper - 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bounds.lower[0], errors[lower - 1], rtol=1e-4, atol=1e-5)
    assert found.intervals.windows == count == len(dataset.windows["calibration"])


@pytest.mark.parametrize("method", ["conformal", "scaled", "cqr"])
def test_coverage_is_measured_on_the_test_windows(folder: Path, method: str) -> None:
    """What the spec says was counted again here, step by step, with the table that the archive holds."""
    recipe, dataset, fitted = made(folder, method)
    store = Store(folder / method)
    published = publish(recipe, dataset, fitted, store)
    content = published.archive.read_bytes()
    table = Table.unpack(record(content, RESIDUALS_FILE) or b"")
    loaded = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1])
    spec = loaded.spec
    assert spec.intervals is not None
    assert spec.training.calibration == spec.intervals.calibration

    inside = []
    for asked, outputs, _ in answers(recipe, dataset.windows["test"], loaded.module):
        values = outputs.numpy()
        moves = table.volatility(asked.targets.numpy()) if method == "scaled" else None
        base = Base(values[:, :, :2], values[:, :, 2:4], values[:, :, 4:], moves)
        (bounds,) = table.bounds(base, [90])
        truth = asked.truth.numpy()
        inside.append((bounds.lower <= truth) & (truth <= bounds.upper))
    coverage = np.concatenate(inside).mean((0, 2))

    np.testing.assert_allclose(spec.intervals.coverage["90"], coverage, atol=0.01)
    assert spec.quantiles == ((0.05, 0.95) if method == "cqr" else ())
    assert spec.outputs == (6 if method == "cqr" else 2)
    assert "## Intervals" in (published.archive.parent / "report" / "report.md").read_text()


def test_forecasts_and_intervals_keep_within_the_limits_of_the_recipe(folder: Path) -> None:
    """A target that is never below 11 has neither forecasts nor intervals there, in the report as in the archive."""
    recipe = made(folder, "conformal")[0]
    given = recipe.given()
    given["data"]["features"][0]["minimum"] = 11
    limited = Recipe.model_validate(given)
    again = prepare(limited)
    network = fit(limited, again, tell=lambda _: None).network
    found = calibrate(limited, again, export(limited, network, again.windows["test"]))
    assert found is not None
    (bounds,) = found.table.bounds(Base(np.full((1, STEPS, 2), 11, np.float32)), [90])
    assert (bounds.lower[0, :, 0] == 11).all()
    assert (bounds.lower[0, :, 1] < 11).all()
    forecasts = torch.cat([answer for _, answer, _ in answers(limited, again.windows["test"], network)])
    assert forecasts[:, :, 0].min() == 11
    with pytest.raises(ValueError, match="must be less than maximum"):
        world.recipe(data={"features": [{"name": "load", "role": "target", "minimum": 2, "maximum": 1}]})


def test_no_calibration_span_means_no_intervals(folder: Path) -> None:
    """A recipe as it was makes a model as it was."""
    file = world.write(folder / "plain.csv", world.rows(300))
    recipe = world.recipe(file, training={"epochs": 1})
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda _: None)
    assert calibrate(recipe, dataset, export(recipe, fitted.network, dataset.windows["test"])) is None


def test_levels_that_the_windows_cannot_support_are_refused(folder: Path) -> None:
    """Before any training: with the number of windows that there are, that it takes, and the key to change."""
    asked = made(folder, "conformal")[0].having({"intervals.levels": [80, 99.9]})
    with pytest.raises(DataError, match=r"99\.9 takes 1999 calibration windows; there are 17\d.*split\.calibration"):
        prepare(asked)


def test_intervals_without_a_calibration_span_are_refused() -> None:
    """A section that would do nothing is an error."""
    with pytest.raises(ValueError, match=r"intervals: nothing to calibrate them on; set split\.calibration"):
        world.recipe(intervals={"method": "conformal"})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"levels": [90, 80]}, "levels: each once, in rising order"),
        ({"levels": [100]}, "levels"),
        ({"quantiles": [0.9, 0.1]}, "quantiles: the first"),
        ({"method": "bootstrap"}, "method"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], reason: str) -> None:
    """Each at its place."""
    with pytest.raises(ValueError, match=reason):
        world.recipe(split=SPLIT, intervals=given)


def _asked(truth: Any, times: Any) -> Answers:  # noqa: ANN401  arrays
    zeros = np.zeros_like(truth)
    return Answers(zeros, zeros, truth, None, times)


def test_adaptive_levels_use_no_truth_before_it_came() -> None:
    """Change what came at an hour: nothing changes of any forecast that was made before that was known."""
    random = np.random.default_rng(4)
    table = intervals.calibrate(
        Base(np.zeros((200, STEPS, 1))), random.normal(size=(200, STEPS, 1)), np.ones((STEPS, 1))
    )
    times = np.arange(60) * 3600
    truth = random.normal(size=(60, STEPS, 1))
    changed = truth.copy()
    truth[20], changed[20] = 100.0, 0.0
    base = _asked(truth, times).base(1)
    before, after = (adaptive(table, base, _asked(kind, times), 80, 3600, rate=0.5) for kind in (truth, changed))
    differing = (before != after)[:, :, 0]
    differing[20] = False
    # What comes at the first step is known an hour later, at the third three hours later.
    first = [int(np.flatnonzero(differing[:, step])[0]) - 20 for step in range(STEPS)]
    assert all(hours >= step + 1 for step, hours in enumerate(first))
    assert min(first) < 6


def test_adaptive_levels_make_up_for_a_drift() -> None:
    """Where errors double after calibration, adaptive coverage returns to the level, and the plain one does not."""
    random = np.random.default_rng(5)
    table = intervals.calibrate(
        Base(np.zeros((500, STEPS, 1))), random.normal(size=(500, STEPS, 1)), np.ones((STEPS, 1))
    )
    asked = _asked(random.normal(size=(1500, STEPS, 1)) * 2, np.arange(1500) * 3600)
    inside = adaptive(table, asked.base(1), asked, 80, 3600)
    (bounds,) = table.bounds(asked.base(1), [80])
    plain = ((bounds.lower <= asked.truth) & (asked.truth <= bounds.upper)).mean()
    assert plain < 0.55
    assert abs(inside[500:].mean() - 0.8) < 0.03


def test_report_says_where_coverage_is_off(folder: Path) -> None:
    """In bold, with the level, what was covered and what adaptive levels would have."""
    recipe, dataset, fitted = made(folder, "conformal")
    store = Store(folder / "said")
    published = publish(recipe, dataset, fitted, store)
    spec = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1]).spec
    assert spec.intervals is not None
    poor = spec.intervals.model_copy(
        update={"coverage": {"80": [0.7] * STEPS, "90": [0.9] * STEPS}, "adaptive": {"80": [0.79] * STEPS}}
    )
    text = "\n".join(section(spec.model_copy(update={"intervals": poor}), []))
    assert "**The test windows are not like those that calibrated.**" in text
    assert "- 80 %: 70.0 % were inside; 79.0 % with adaptive levels" in text
    assert "- 90 %" not in text
    good = spec.intervals.model_copy(update={"coverage": {"80": [0.8] * STEPS}})
    assert "within 2 points of every level" in "\n".join(section(spec.model_copy(update={"intervals": good}), []))


@pytest.fixture(scope="module")
def uneven(folder: Path) -> tuple[Recipe, Dataset, Fitted]:
    """A series, one twenty times as wild, and one that ends before the test; a single table of errors for all."""
    frames = {"calm": world.rows(900), "wild": world.rows(850, seed=1).with_columns(pl.col("load", "heat") * 20)}
    frames["gone"] = world.rows(300, seed=2)
    frame = pl.concat([one.with_columns(station=pl.lit(name)) for name, one in frames.items()])
    recipe = world.recipe(
        world.write(folder / "uneven.csv", frame),
        data={"series": "station"},
        split=SPLIT,
        intervals={"levels": [80, 97.5]},
        training={"epochs": 1},
    )
    dataset = prepare(recipe)
    return recipe, dataset, fit(recipe, dataset, tell=lambda _: None)


def test_coverage_is_told_of_each_series(uneven: tuple[Recipe, Dataset, Fitted], tmp_path: Path) -> None:
    """Counted again here; the mean by windows is that of all. The page says where it is off, and the file has it."""
    recipe, dataset, fitted = uneven
    published = publish(recipe, dataset, fitted, Store(tmp_path))
    loaded = artifact.load(published.archive, digest=Store(tmp_path).index().models["tiny"].versions[1])
    table = Table.unpack(record(published.archive.read_bytes(), RESIDUALS_FILE) or b"")
    errors = residuals(recipe, dataset, fitted, "test")
    (bounds,) = table.bounds(Base(np.zeros_like(errors)), [80])
    inside = (bounds.lower <= errors) & (errors <= bounds.upper)

    calm, wild, gone = published.series

    assert loaded.spec.intervals is not None
    # The windows of one series come after those of the one before.
    assert calm.covered["80"] == pytest.approx(100 * inside[: calm.windows].mean(), abs=0.5)
    assert wild.covered["80"] == pytest.approx(100 * inside[calm.windows :].mean(), abs=0.5)
    assert gone.covered == {}
    for level in ("80", "97.5"):
        whole = np.average([calm.covered[level], wild.covered[level]], weights=[calm.windows, wild.windows])
        assert whole == pytest.approx(100 * np.mean(loaded.spec.intervals.coverage[level]))
    report = published.archive.parent / "report"
    lines = pl.read_csv(report / "series.csv")
    assert lines["coverage_97.5"].to_list() == pytest.approx(
        [one.coverage[target]["97.5"] if one.coverage else None for one in published.series for target in TARGETS]
    )
    page = (report / "report.md").read_text()
    assert f"**Levels do not hold for each series: `calm` {calm.covered['80']:.1f} % at 80 %" in page
    assert "80 %: % inside | 97.5 %: % inside |" in page


def test_series_that_are_covered_otherwise_are_named(uneven: tuple[Recipe, Dataset, Fitted], tmp_path: Path) -> None:
    """The worst two of those with windows enough, and the methods that help; nothing where all are near."""
    recipe, dataset, fitted = uneven
    published = publish(recipe, dataset, fitted, Store(tmp_path))
    spec = artifact.load(published.archive, digest=Store(tmp_path).index().models["tiny"].versions[1]).spec

    def said(*shares: float, windows: int = 100) -> str:
        series = [
            SeriesScores(f"s{index}", 900, 0, 0, windows, {}, {"load": {"80": share, "90": 0.9}})
            for index, share in enumerate(shares)
        ]
        return "\n".join(section(spec, series))

    assert "each series: `s1` 33.0 % at 80 %, `s3` 100.0 % at 80 %.**\n3 of 4 with" in said(0.75, 0.33, 0.91, 1.0)
    assert '`intervals.method = "scaled" or "cqr"`' in said(0.75, 0.33)
    assert "each series" not in said(0.71, 0.89)
    assert "each series" not in said(0.33, 1.0, windows=99)
    assert "each series" not in said(0.33)


def test_archive_without_its_residuals_is_kept_out(folder: Path, tmp_path: Path) -> None:
    """A model that says that it has intervals must have what makes them, and of its own shape."""
    recipe, dataset, fitted = made(folder, "conformal")
    store = Store(folder / "kept")
    published = publish(recipe, dataset, fitted, store)
    spec = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1]).spec
    assert spec.intervals is not None
    other = spec.model_copy(update={"intervals": spec.intervals.model_copy(update={"calibrated_steps": 9})})
    packed = record(published.archive.read_bytes(), RESIDUALS_FILE) or b""
    for residuals_, reason, said in (
        (None, "holds no residuals", spec),
        (b"x", "not a table of intervals", spec),
        (packed[:-9], "damaged", spec),
        (packed, "of 3 steps and 2 targets; the model has 9 and 2", other),
    ):
        digest = artifact.save(fitted.network, said, tmp_path / "model.pt", residuals_)
        with pytest.raises(FormatError, match=reason):
            artifact.load(tmp_path / "model.pt", digest=digest)
