"""What a person looks at before trusting a version: `report.md` in words and tables, `metrics.json`, `series.csv` with
every series and its errors, and pictures.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from models.spec import Metrics, Spec
from training.fitting.progress import Epoch, kept, runs
from training.reporting import pictures
from training.reporting.intervals import section
from training.reporting.tables import Table, cells, comma_separated, markdown, number
from training.scoring.evaluate import Case
from training.scoring.evidence import Evidence
from training.scoring.metrics import OVERALL, TITLES, averages, forecasts, stretches
from training.scoring.series import METRICS, SeriesScores, ranked

_JUDGED_BY = ("mae", "rmse")
_LOSSES = 20
"""Told one by one on the page; the others are counted."""
_SERIES = 20
"""Told on the page; `series.csv` has all of them."""
_ABOUT = {
    "errors.png": "Mean absolute error by step, beside the baselines.",
    "forecast.png": "The window in the middle of the test span: the example in the archive.",
    "places.png": "The test windows with the smallest, the median and the largest error (mean absolute, standardised),"
    " and when their first step was (UTC).",
    "residuals.png": "Forecast minus truth. A mean away from zero is bias; bars beyond the grey band are something left"
    " to learn.",
    "loss.png": "Training loss and validation error, standardised, and the learning rate.",
    "attention.png": "Attention over the window.",
    "coverage.png": "Share of the test windows inside of the intervals, by step; dotted: where what came corrected"
    " later ones.",
}


def write(
    folder: Path,
    spec: Spec,
    cases: Mapping[str, Case],
    evidence: Evidence,
    epochs: Sequence[Epoch],
    series: Sequence[SeriesScores],
) -> None:
    """Fill the folder; `cases` are the example and others of the test, by what they are called."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(_figures(spec.metrics), indent=2) + "\n", "utf-8")
    (folder / "series.csv").write_text(comma_separated(_by_series(spec, series)), "utf-8")
    example, *others = cases
    drawn = {
        "errors.png": pictures.errors(
            _curves(spec),
            units={feature.name: feature.unit for feature in spec.features},
            across=pictures.steps_label(spec.frequency),
            horizon=spec.horizon,
            emphasis=spec.name,
        ),
        "forecast.png": pictures.forecast(spec, cases[example]),
        "places.png": pictures.places(spec, {name: cases[name] for name in others}),
        "residuals.png": pictures.residuals(spec, evidence),
    }
    if epochs:
        drawn["loss.png"] = pictures.loss(epochs)
    if spec.intervals:
        drawn["coverage.png"] = pictures.coverage(spec, spec.intervals)
    if spec.attention_rows:
        drawn["attention.png"] = pictures.attention(spec, evidence)
    for name, figure in drawn.items():
        pictures.save(figure, folder / name)
    (folder / "report.md").write_text(_page(spec, epochs, list(drawn), series), "utf-8")


def table(metrics: Metrics) -> Table:
    """A head and a row for every target and forecast, and for all targets together: means over all steps."""
    found = {name: averages(scores, slice(None)) for name, scores in forecasts(metrics).items()}
    targets = [*metrics.model, OVERALL] if len(metrics.model) > 1 else list(metrics.model)
    body = [[target, name, *cells(of[target])] for target in targets for name, of in found.items()]
    return [["target", "forecast", *TITLES.values()], *body]


def losses(metrics: Metrics) -> list[str]:
    """A sentence for every baseline that the model is no better than on some target, by the mean over all steps."""
    mean = {name: averages(scores, slice(None)) for name, scores in forecasts(metrics).items()}
    own = mean.pop("model")
    return [
        f"{target}: {TITLES[metric]} {number(ours)} against {number(theirs)} of `{name}`"
        for target in metrics.model
        for name, of in mean.items()
        for metric in _JUDGED_BY
        if (ours := own[target][metric]) is not None and (theirs := of[target][metric]) is not None and ours >= theirs
    ]


def spread(series: Sequence[SeriesScores]) -> list[str]:
    """In a line, how far the series differ; nothing where there is nothing to compare."""
    order = ranked(series)
    if len(order) < 2:
        return []
    best, middle, worst = (
        f"{number(one.overall['mase'])} ({one.name})" for one in (order[0], order[len(order) // 2], order[-1])
    )
    return [f"{len(order)} series: MASE from {best} to {worst}, median {middle}"]


def _figures(metrics: Metrics) -> dict[str, object]:
    """Every score by step, and the averages over each stretch of steps."""
    means = {
        stretch: {name: averages(scores, steps) for name, scores in forecasts(metrics).items()}
        for stretch, steps in stretches(metrics).items()
    }
    return {**metrics.model_dump(mode="json"), "averages": means}


def _kept(epochs: Sequence[Epoch]) -> list[str]:
    """Of each network that was trained, which epoch is published; nothing where it was trained elsewhere."""
    lines = []
    for run in runs(epochs):
        best, speed = kept(run), fmean(epoch.windows_per_s for epoch in run)
        member = f"Member {best.member}: best" if best.member else "Best"
        kept_of = f"{member} of {len(run)} epochs: {best.number} (validation {best.validation:.4f})"
        lines.append(f"{kept_of}, {speed:,.0f} windows/s.")
    return lines


def _curves(spec: Spec) -> dict[str, dict[str, list[float]]]:
    found = {**spec.metrics.baselines, spec.name: spec.metrics.model}
    return {target: {name: of[target].mae for name, of in found.items()} for target in spec.targets}


def _page(spec: Spec, epochs: Sequence[Epoch], drawn: Sequence[str], series: Sequence[SeriesScores]) -> str:
    metrics = spec.metrics
    data = [f"- `{data.file}`: {data.rows} rows, sha256 `{data.sha256}`" for data in spec.training.data]
    parts = [
        f"- {name}: {span.start:%Y-%m-%d %H:%M} to {span.end:%Y-%m-%d %H:%M} UTC, {span.windows} windows"
        for name, span in (
            ("train", spec.training.train),
            ("validation", spec.training.validation),
            ("calibration", spec.training.calibration),
            ("test", spec.training.test),
        )
        if span is not None
    ]
    return "\n".join(
        [
            f"# {spec.name}, version {spec.version}",
            "",
            *_verdict(metrics),
            "",
            f"`{spec.architecture}`: {spec.window} rows in, {spec.horizon} a pass, {spec.recursion} recursion.",
            *_goes_on(spec),
            *_kept(epochs),
            "",
            *data,
            *parts,
            "",
            *_inventory(series),
            "## Errors",
            "",
            f"Of the exported model on all {metrics.windows} test windows, mean of steps 1 to {metrics.steps}.",
            "MAE and RMSE are in the units of the data; MSE (std) and MAE (std) are of values standardised by mean and",
            "standard deviation of the training rows; MASE is relative to the seasonal-naive error (season",
            f"{metrics.season}) on the training rows{_own_rows(series)}. `metrics.json` has every step.",
            "",
            *markdown(table(metrics), 2),
            "",
            *_by_stretch(metrics),
            *section(spec, series),
            *_best_and_worst(series),
            *(line for name in drawn for line in (f"![{name.removesuffix('.png')}]({name})", "", _ABOUT[name], "")),
        ]
    )


def _own_rows(series: Sequence[SeriesScores]) -> str:
    """Which training rows MASE is relative to, where there are several series."""
    return (
        " of each window's own series; windows of series that have none are left out of MASE, and of nothing else"
        if len(series) > 1
        else ""
    )


def _goes_on(spec: Spec) -> list[str]:
    """How the features that are no targets go on beyond a pass."""
    told = {
        "forecast": "are forecast with the targets and fed back",
        "given": "come from the request",
        "constant": "stay as they are",
    }
    lines = []
    for ahead, how in told.items():
        names = [feature.name for feature in spec.features if feature.ahead == ahead and feature.role != "target"]
        lines += [f"- {', '.join(names)} {how}"] if names else []
    lines += ["- hours and days come from the clock"] if spec.clock else []
    return ["", "Ahead, in a recursion,", "", *lines, ""] if lines else []


def _verdict(metrics: Metrics) -> list[str]:
    """In words, whether the model is worth having."""
    found = losses(metrics)
    if not found:
        return ["The model beats every baseline on every target, by MAE and by RMSE."]
    shown = [f"- {line}" for line in found[:_LOSSES]]
    more = [f"- and {len(found) - _LOSSES} more"] if len(found) > _LOSSES else []
    return ["**The model does not beat every baseline.** It is no better on:", "", *shown, *more]


def _by_stretch(metrics: Metrics) -> list[str]:
    """The model's averages over direct and recursive steps apart; nothing where all steps are direct."""
    found = stretches(metrics)
    if len(found) == 1:
        return []
    lines = [["target", "steps", *TITLES.values()]]
    for target in (*metrics.model, OVERALL):
        for stretch in ("direct", "recursive"):
            steps = found[stretch]
            means = averages(metrics.model, steps)
            span = f"{steps.start + 1} to {steps.stop}" if steps.stop > steps.start + 1 else f"{steps.stop}"
            lines.append([target, f"{span}, {stretch}", *cells(means[target])])
    return ["The model's direct steps, of the first pass, and its recursive ones apart:", "", *markdown(lines, 2), ""]


def _by_series(spec: Spec, series: Sequence[SeriesScores]) -> list[dict[str, object]]:
    """A line for each series and target."""
    none = dict.fromkeys(METRICS)
    levels = list(spec.intervals.coverage) if spec.intervals else []
    return [
        {
            "series": one.name,
            "rows": one.rows,
            "absent_rows": one.absent,
            "missing_cells": one.missing,
            "windows": one.windows,
            "target": target,
            **one.errors.get(target, none),
            **{f"coverage_{level}": one.coverage[target][level] if one.coverage else None for level in levels},
        }
        for one in series
        for target in spec.targets
    ]


def _inventory(series: Sequence[SeriesScores]) -> list[str]:
    """What there is of each series; of many, the first."""
    lines = [["series", "rows", "absent rows", "missing cells"]]
    lines += [[one.name, str(one.rows), str(one.absent), str(one.missing)] for one in series[:_SERIES]]
    more = [f"and {len(series) - _SERIES} more, in `series.csv`.", ""] if len(series) > _SERIES else []
    return [*markdown(lines, 1), "", *more]


def _best_and_worst(series: Sequence[SeriesScores]) -> list[str]:
    """The series that are forecast best and worst; nothing where there are not several."""
    order = ranked(series)
    if len(order) < 2:
        return []
    shown = {"": order} if len(order) <= _SERIES else {"best": order[: _SERIES // 2], "worst": order[-_SERIES // 2 :]}
    found = [
        "## Errors by series",
        "",
        "Means over all steps, and over the targets where there are several; MASE is relative to the seasonal-naive",
        f"error on the series' own training rows, which {len(order)} of {len(series)} have. `series.csv` has all.",
        "",
    ]
    covered = [f"{level} %: % inside" for level in order[0].covered]
    for which, some in shown.items():
        lines = [[f"{which} series".strip(), "windows", *(TITLES[metric] for metric in METRICS), *covered]]
        for one in some:
            errors = (number(one.overall[of]) for of in METRICS)
            lines.append([one.name, str(one.windows), *errors, *(f"{share:.1f}" for share in one.covered.values())])
        found += [*markdown(lines, 1), ""]
    return found
