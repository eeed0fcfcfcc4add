"""How a recipe, or a published version, would have done from several origins in the past.

The origins divide the test span of a split into folds of equal length, one after the other in time. A fold sees the
rows before its own end and no later ones: they are cut off before anything is measured. Its validation span, as long
as that of the split, ends where its test begins, or where the calibration span in between does, and its training span
ends where its validation begins.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

from models.artifact import Artifact, ForecastModule
from models.spec import Gaps, Metrics, Span
from training.data.dataset import Dataset, Part, assemble, split
from training.data.files import Series, read
from training.errors import RecipeError, TrainingError
from training.fitting.fit import fit
from training.fitting.progress import Epoch
from training.recipe import Recipe
from training.reporting import pictures
from training.reporting.tables import Table, comma_separated, markdown, number
from training.scoring.evaluate import evaluate, export
from training.scoring.metrics import OVERALL, TITLES, Averages, averages, forecasts
from training.scoring.series import BySeries, SeriesScores

Mode = Literal["expanding", "sliding"]
"""The training span begins with the data, or is always as long as that of the split and moves on with the origin."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One origin and the errors from it on."""

    number: int
    """From 1."""
    train: Span
    validation: Span
    test: Span
    metrics: Metrics
    series: list[SeriesScores]


def retrain(recipe: Recipe, folds: int, mode: Mode, tell: Callable[[int, Epoch], None]) -> Iterator[Fold]:
    """Train and score from each origin; `tell` hears of every epoch of every fold."""
    if recipe.training.hardware.parallel:
        raise RecipeError("training.hardware: a backtest trains in one process; set devices and nodes to 1")
    series = read(recipe.data)
    spans = split(series, recipe.split, recipe.data.interval)
    for fold, parts in enumerate(layout(spans, folds, mode, recipe.data.interval), 1):
        dataset = _dataset(recipe, series, parts, fold)
        fitted = fit(recipe, dataset, tell=partial(tell, fold))
        module = export(recipe, fitted.network, dataset.windows["test"])
        yield _fold(recipe, dataset, module, fold)


def score(recipe: Recipe, folds: int, published: Artifact) -> Iterator[Fold]:
    """Score a published version, as it is, on folds of all rows after its validation and calibration spans.

    Training statistics and baselines are of its own training span. RecipeError where the recipe's data are not
    what the version reads.
    """
    _refuse_others(recipe, published)
    spec = published.spec
    # Windows as this version takes them, whatever later ones do.
    gaps = spec.gaps.model_dump() if isinstance(spec.gaps, Gaps) else {"method": "refuse"}
    recipe = recipe.having({"data.gaps": gaps, "window.shortest": spec.shortest})
    series = read(recipe.data)
    trained = published.spec.training
    end = max(one.start + len(one) * recipe.data.interval for one in series)
    spans = {"train": _part("train", trained.train), "validation": _part("validation", trained.validation)}
    last = trained.calibration or trained.validation
    whole = Part("test", int(last.end.timestamp()), end)
    for fold, test in enumerate(_tests(whole, folds, recipe.data.interval), 1):
        dataset = _dataset(recipe, series, {**spans, "test": test}, fold)
        yield _fold(recipe, dataset, published.module, fold)


def layout(spans: Mapping[str, Part], folds: int, mode: Mode, interval: int) -> Iterator[dict[str, Part]]:
    """The parts of each fold, from those of the whole split."""
    train, *between = (part for name, part in spans.items() if name != "test")
    for test in _tests(spans["test"], folds, interval):
        parts, border = [test], test.start
        for part in reversed(between):
            parts.append(Part(part.name, border - (part.end - part.start), border))
            border = parts[-1].start
        begin = train.start if mode == "expanding" else border - (train.end - train.start)
        parts.append(Part("train", begin, border))
        yield {part.name: part for part in reversed(parts)}


def _tests(whole: Part, folds: int, interval: int) -> Iterator[Part]:
    """The test span in as many stretches of equal length, but for a row."""
    rows = (whole.end - whole.start) // interval
    if not 1 <= folds <= rows:
        raise RecipeError(f"folds: must be from 1 to {max(rows, 0)}, the rows that there are for testing; got {folds}")
    borders = [whole.start + rows * fold // folds * interval for fold in range(folds + 1)]
    for start, end in pairwise(borders):
        yield Part("test", start, end)


def _dataset(recipe: Recipe, series: Sequence[Series], parts: dict[str, Part], fold: int) -> Dataset:
    interval, end = recipe.data.interval, parts["test"].end
    known = [before(one, end, interval) for one in series if one.start < end]
    try:
        return assemble(recipe, known, parts)
    except TrainingError as error:
        raise type(error)(f"fold {fold}: {error}") from error


def before(series: Series, end: int, interval: int) -> Series:
    """The series as it was known at `end`, in epoch seconds: no row of then or later is left."""
    rows = min(len(series), -(-(end - series.start) // interval))
    return replace(series, values=series.values[:rows])


def _fold(recipe: Recipe, dataset: Dataset, module: ForecastModule, fold: int) -> Fold:
    series = BySeries(recipe, dataset)
    metrics = evaluate(recipe, dataset, module, watches=[series.add])
    train, validation, test = (dataset.span(name) for name in ("train", "validation", "test"))
    return Fold(fold, train, validation, test, metrics, series.scores())


def _part(name: str, span: Span) -> Part:
    return Part(name, int(span.start.timestamp()), int(span.end.timestamp()))


def _refuse_others(recipe: Recipe, version: Artifact) -> None:
    spec, data = version.spec, recipe.data
    for place, asked, known in (
        ("data.features", [(one.name, one.role) for one in data.features], [(f.name, f.role) for f in spec.features]),
        ("data.frequency", data.frequency, spec.frequency),
        ("window.length", recipe.window.length, spec.window),
        ("window.horizon", recipe.window.horizon, spec.horizon),
    ):
        if asked != known:
            raise RecipeError(f"{place}: {spec.name} version {spec.version} was made for {known}; got {asked}")


def table(folds: Sequence[Fold]) -> Table:
    """Mean absolute errors of every target and forecast by fold, their mean and their standard deviation.

    Of all targets together, the mean of the standardised ones.
    """
    head = ["target", "forecast", "metric", *(f"fold {fold.number}" for fold in folds), "mean", "std"]
    lines = [head]
    for target in _targets(folds):
        metric = "standardised_mae" if target == OVERALL else "mae"
        for name, of in _by_forecast(folds).items():
            values = [means[target][metric] for means in of]
            lines.append([target, name, TITLES[metric], *map(number, values), *map(number, _spread(values))])
    return lines


def write(folder: Path, recipe: Recipe, about: str, folds: Sequence[Fold]) -> None:
    """Fill the folder: `backtest.json` with everything, `backtest.csv` by step, `report.md` and its pictures.

    `about` says in a sentence what was done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "backtest.json").write_text(json.dumps(_record(recipe, about, folds), indent=2) + "\n", "utf-8")
    (folder / "backtest.csv").write_text(comma_separated(list(_lines(folds))), "utf-8")
    units = {column.name: column.unit for column in recipe.data.features}
    by_step, by_fold = _curves(recipe, folds)
    steps = pictures.steps_label(recipe.data.frequency)
    for name, figure in {
        "errors.png": pictures.errors(
            by_step, units=units, across=steps, horizon=recipe.window.horizon, emphasis=recipe.name
        ),
        "folds.png": pictures.errors(by_fold, units=units, across="fold", emphasis=recipe.name),
    }.items():
        pictures.save(figure, folder / name)
    (folder / "report.md").write_text(_page(recipe, about, folds), "utf-8")


def _targets(folds: Sequence[Fold]) -> list[str]:
    targets = list(folds[0].metrics.model)
    return [*targets, OVERALL] if len(targets) > 1 else targets


def _by_forecast(folds: Sequence[Fold]) -> dict[str, list[Averages]]:
    """Of each forecast its means over all steps, fold by fold."""
    found: dict[str, list[Averages]] = {}
    for fold in folds:
        for name, scores in forecasts(fold.metrics).items():
            found.setdefault(name, []).append(averages(scores, slice(None)))
    return found


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation; None where a fold has no value."""
    known = [value for value in values if value is not None]
    return (fmean(known), pstdev(known)) if len(known) == len(values) else (None, None)


def _record(recipe: Recipe, about: str, folds: Sequence[Fold]) -> dict[str, object]:
    overall = {
        name: {
            target: {
                metric: dict(zip(("mean", "std"), _spread([means[target][metric] for means in of]), strict=True))
                for metric in TITLES
            }
            for target in _targets(folds)
        }
        for name, of in _by_forecast(folds).items()
    }
    return {
        "about": about,
        "recipe": recipe.record(),
        "overall": overall,
        "folds": [
            {
                "number": fold.number,
                **{name: getattr(fold, name).model_dump(mode="json") for name in ("train", "validation", "test")},
                "metrics": {**fold.metrics.model_dump(mode="json"), "series": [asdict(one) for one in fold.series]},
            }
            for fold in folds
        ],
    }


def _lines(folds: Sequence[Fold]) -> Iterator[dict[str, object]]:
    for fold in folds:
        for name, of in forecasts(fold.metrics).items():
            for target, scores in of.items():
                for step in range(fold.metrics.steps):
                    yield {
                        "fold": fold.number,
                        "test_start": fold.test.start.isoformat(),
                        "forecast": name,
                        "target": target,
                        "step": step + 1,
                        **{metric: getattr(scores, metric)[step] for metric in TITLES},
                    }


_Curves = dict[str, dict[str, list[float]]]


def _curves(recipe: Recipe, folds: Sequence[Fold]) -> tuple[_Curves, _Curves]:
    """Mean absolute errors of each target and forecast: by step as the mean of the folds, and by fold."""
    by_step: _Curves = {}
    by_fold: _Curves = {}
    for name in (*folds[0].metrics.baselines, "model"):
        label = recipe.name if name == "model" else name
        for target in folds[0].metrics.model:
            errors = [forecasts(fold.metrics)[name][target].mae for fold in folds]
            by_step.setdefault(target, {})[label] = [fmean(values) for values in zip(*errors, strict=True)]
            by_fold.setdefault(target, {})[label] = [fmean(values) for values in errors]
    return by_step, by_fold


def _page(recipe: Recipe, about: str, folds: Sequence[Fold]) -> str:
    spans: Table = [["fold", "train from", "validation from", "test from", "until", "test windows"]]
    for fold in folds:
        moments = (fold.train.start, fold.validation.start, fold.test.start, fold.test.end)
        spans.append([str(fold.number), *(f"{moment:%Y-%m-%d %H:%M}" for moment in moments), str(fold.test.windows)])
    means: Table = [["target", "forecast", *TITLES.values()]]
    for target in _targets(folds):
        for name, of in _by_forecast(folds).items():
            figures = [_spread([by[target][metric] for by in of])[0] for metric in TITLES]
            means.append([target, name, *map(number, figures)])
    return "\n".join(
        [
            f"# Backtest of {recipe.name}",
            "",
            about,
            "",
            *markdown(spans, 5),
            "",
            "Times are UTC. No fold sees a row from the end of its test span on, and what is scaled or standardised is",
            "so by its own training rows.",
            "",
            f"## Mean absolute errors by fold, steps 1 to {recipe.window.steps}",
            "",
            *markdown(table(folds), 3),
            "",
            "![errors by fold](folds.png)",
            "",
            "## Means of the folds",
            "",
            *markdown(means, 2),
            "",
            "![errors by step, means of the folds](errors.png)",
            "",
        ]
    )
