"""The report: figures, words that do not flatter, and pictures that stay small and the same."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from models.spec import Metrics, Scores
from models.store import Store
from tests.training.world import Made
from training.publishing.publish import publish
from training.reporting import pictures, report
from training.scoring.series import SeriesScores


@pytest.fixture(scope="module")
def folders(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The reports of the same network, published twice."""
    one, other = (publish(*made, Store(tmp_path_factory.mktemp("store"))).archive.parent / "report" for _ in range(2))
    return one, other


def scores(mae: list[float], rmse: list[float] | None = None) -> Scores:
    ones = [1.0] * len(mae)
    return Scores(
        mae=mae, rmse=rmse or mae, r2=ones, mase=ones, smape=ones, standardised_mse=ones, standardised_mae=ones
    )


def metrics(**model: list[float]) -> Metrics:
    """Of a model with these errors by target, and a baseline that errs by 2 everywhere, squared by 4."""
    steps = len(next(iter(model.values())))
    baseline = {target: scores([2.0] * steps, [4.0] * steps) for target in model}
    return Metrics(
        steps=steps,
        windows=9,
        season=1,
        horizon=1,
        model={target: scores(mae) for target, mae in model.items()},
        baselines={"linear": baseline},
    )


def test_the_report_has_figures_and_pictures(folders: tuple[Path, Path]) -> None:
    """A page that shows and explains every picture, and pictures that stay small."""
    folder, _ = folders
    page = (folder / "report.md").read_text()
    found = {path.name for path in folder.glob("*.png")}

    assert found == {"loss.png", "errors.png", "forecast.png", "places.png", "residuals.png", "attention.png"}
    assert all(f"]({name})" in page for name in found)
    assert "| heat | seasonal_naive |" in page
    assert "| heat | 2 to 3, recursive |" in page
    assert sum((folder / name).stat().st_size for name in found) < 400_000


def test_metrics_json_has_every_step_and_every_average(folders: tuple[Path, Path]) -> None:
    """Scores by step, and means over all, the direct and the recursive steps, of the model and the baselines."""
    found = json.loads((folders[0] / "metrics.json").read_text())

    mae = found["model"]["heat"]["mae"]
    means = {stretch: of["model"]["heat"]["mae"] for stretch, of in found["averages"].items()}
    assert means == pytest.approx({"all": sum(mae) / 3, "direct": mae[0], "recursive": (mae[1] + mae[2]) / 2})
    assert found["averages"]["all"].keys() == {"model", "last_value", "seasonal_naive", "linear"}
    assert len(found["baselines"]["linear"]["load"]["smape"]) == 3


def test_the_same_network_gives_the_same_report(folders: tuple[Path, Path]) -> None:
    """Byte by byte, pictures included."""
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)

    assert one == other


def test_the_page_says_where_a_baseline_is_as_good() -> None:
    """By target, baseline and metric; nothing is said of what the model wins."""
    assert report.losses(metrics(load=[1.0, 1.0], heat=[1.0, 1.5])) == []
    assert report.losses(metrics(load=[1.0, 1.0], heat=[1.0, 3.5])) == ["heat: MAE 2.250 against 2.000 of `linear`"]
    assert report.losses(metrics(load=[2.0, 2.0])) == ["load: MAE 2.000 against 2.000 of `linear`"]
    assert [line.split(" against")[0] for line in report.losses(metrics(load=[5.0, 5.0]))] == [
        "load: MAE 5.000",
        "load: RMSE 5.000",
    ]


def test_the_table_has_every_target_and_all_together() -> None:
    """All together only where there are several, and only what has no unit."""
    several, single = report.table(metrics(load=[1.0, 3.0], heat=[1.0, 1.0])), report.table(metrics(load=[1.0]))

    assert several[0][:4] == ["target", "forecast", "MAE", "RMSE"]
    assert [line[:4] for line in several[1:]] == [
        ["load", "model", "2.000", "2.000"],
        ["load", "linear", "2.000", "4.000"],
        ["heat", "model", "1.000", "1.000"],
        ["heat", "linear", "2.000", "4.000"],
        ["(all)", "model", "-", "-"],
        ["(all)", "linear", "-", "-"],
    ]
    assert [line[0] for line in single[1:]] == ["load", "load"]


def test_a_picture_shows_no_more_targets_than_can_be_read() -> None:
    """With hundreds of targets, the first ones."""
    curves = {f"t{index}": {"model": [1.0, 2.0]} for index in range(30)}

    figure = pictures.errors(curves, units=dict.fromkeys(curves, ""), across="steps", horizon=1)

    assert [axes.get_title() for axes in figure.axes] == [f"t{index}" for index in range(pictures.SHOWN)]


@pytest.mark.parametrize("hours", [3, 60, 100, 2000])
def test_the_axis_of_times_suits_any_test_span(hours: int) -> None:
    """However long it is, ticks are at round times (matplotlib warns where it finds none)."""
    figure = Figure()
    axes = figure.subplots()

    pictures._draw_course(axes, torch.zeros(50), torch.linspace(0, hours * 3600, 50).long() + 1_770_000_000)
    figure.draw_without_rendering()

    assert 2 <= len(axes.get_xticks()) <= 7


def test_more_residuals_than_torch_sorts_can_be_drawn() -> None:
    """A long series has millions of test windows; those far out are left aside all the same."""
    values = torch.linspace(-1, 1, 2**23 + 1)
    axes = Figure().subplots()

    pictures._draw_spread(axes, values, values, 3)

    low, high = axes.get_xlim()
    assert (low, high) == pytest.approx((-1.1, 1.1), rel=0.01)


def series(count: int) -> list[SeriesScores]:
    """The first is forecast worst and has the largest scaled error, the last one has none."""
    found = []
    for index in range(count):
        mase = count - index if index < count - 1 else None
        errors = {"mae": 2.0, "rmse": 3.0, "mase": mase, "standardised_mae": 0.5}
        found.append(SeriesScores(f"s{index}", 100, 1, 4, 30, {"load": errors}))
    return found


def test_of_few_series_the_page_shows_all_in_order() -> None:
    """Those with a scaled error, the best first; and says of how many."""
    page = report._best_and_worst(series(4))

    assert [line.split(" | ")[0] for line in page if line.startswith("| s")] == ["| series", "| s2", "| s1", "| s0"]
    assert "| s2 | 30 | 2.000 | 3.000 | 2.000 | 0.500 |" in page
    assert any("which 3 of 4 have" in line for line in page)
    assert report._best_and_worst(series(2)) == []


def test_of_many_series_the_page_shows_the_best_and_the_worst() -> None:
    """Ten each, and the first of the inventory; the others are in the file."""
    many = series(60)
    page = report._best_and_worst(many)
    inventory = report._inventory(many)

    shown = [line.split(" | ")[0].removeprefix("| ") for line in page if line.startswith("| s")]
    assert shown == [*(f"s{index}" for index in range(58, 48, -1)), *(f"s{index}" for index in range(9, -1, -1))]
    assert sum(line.startswith("| s") for line in inventory) == 1 + 20
    assert any("and 40 more" in line for line in inventory)


def test_the_spread_of_series_is_a_line() -> None:
    """The best, the worst and the median, where there are several to compare."""
    assert report.spread(series(6)) == ["5 series: MASE from 2.000 (s4) to 6.000 (s0), median 4.000 (s2)"]
    assert report.spread(series(2)) == []
