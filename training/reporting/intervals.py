"""What the report says of prediction intervals: what they covered, how wide they are, and whether a season drifted."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from models.spec import Intervals, IntervalScores, Spec
from training.reporting.tables import Table, markdown, number
from training.scoring.series import SeriesScores

TOLERANCE = 2.0
"""Percentage points, averaged over the steps: from here on the page says that coverage is not what it should be."""

SERIES_TOLERANCE = 10.0
"""The same of a single series, where it has been tested on"""
SERIES_WINDOWS = 100
"""as many windows."""

_METHODS = {
    "conformal": "Split conformal, by step and target",
    "scaled": "Split conformal in units of each window's volatility, by step and target",
    "cqr": "Conformalised quantile regression, by step and target",
}


def section(spec: Spec, series: Sequence[SeriesScores]) -> list[str]:
    """Lines of Markdown; none for a model without intervals."""
    found = spec.intervals
    if found is None:
        return []
    ends = "symmetric" if found.symmetric else "each end for itself"
    span = found.calibration
    return [
        "## Intervals",
        "",
        f"{_METHODS[found.method]}, {ends}.",
        f"Calibrated on {found.windows} windows of {span.start:%Y-%m-%d} to {span.end:%Y-%m-%d} that training has",
        f"not seen; they overlap, and about {found.effective} of them are independent.",
        "",
        *_verdict(found),
        "",
        *_uneven(found, series),
        f"On the {spec.metrics.windows} test windows, mean of steps 1 to {found.calibrated_steps}.",
        "The Winkler score is the width and a penalty for every truth outside: less is better. `gaussian` takes the",
        "calibration errors for normal; `seasonal_naive` has such intervals around the seasonal-naive forecast.",
        "",
        *markdown(table(spec), 3),
        "",
        *_paths(found),
    ]


def table(spec: Spec) -> Table:
    """A head and a row for every target, level and kind of interval: coverage in percent, width and Winkler score."""
    head = ["target", "level", "interval", "coverage %", "width", "Winkler"]
    return [head, *_rows(spec.targets, spec.intervals)] if spec.intervals else [head]


def _rows(targets: Sequence[str], found: Intervals) -> Iterator[list[str]]:
    for target in targets:
        for level, scores in found.scores.items():
            yield [target, level, "model", *_cells(scores, target)]
            for name, of in found.baselines.items():
                yield [target, level, name, *_cells(of[level], target)]


def _cells(scores: IntervalScores, target: str) -> list[str]:
    coverage = f"{100 * fmean(scores.coverage[target]):.1f}"
    return [coverage, number(fmean(scores.width[target])), number(fmean(scores.winkler[target]))]


def off(found: Intervals) -> dict[str, float]:
    """By level, the coverage in percent that is not within the tolerance of it, mean of steps and targets."""
    means = {level: 100 * fmean(by_step) for level, by_step in found.coverage.items()}
    return {level: mean for level, mean in means.items() if abs(mean - float(level)) > TOLERANCE}


def _verdict(found: Intervals) -> list[str]:
    strays = off(found)
    if not strays:
        return [f"Coverage of the test windows is within {TOLERANCE:g} points of every level."]
    lines = [
        f"- {level} %: {mean:.1f} % were inside; {100 * fmean(found.adaptive[level]):.1f} % with adaptive levels"
        for level, mean in strays.items()
    ]
    told = "**The test windows are not like those that calibrated.** Levels that what came corrects make up for it:"
    return [told, "", *lines]


def _uneven(found: Intervals, series: Sequence[SeriesScores]) -> list[str]:
    """Whether single series, of several, are covered otherwise than a level says, and what to do about it."""
    tested = [one for one in series if one.covered and one.windows >= SERIES_WINDOWS] if len(series) > 1 else []
    strays = sorted(((*_worst(one), one.name) for one in tested), reverse=True)
    strays = [stray for stray in strays if stray[0] > SERIES_TOLERANCE]
    if not strays:
        return []
    worst = ", ".join(f"`{name}` {share:.1f} % at {level} %" for _, level, share, name in strays[:2])
    methods = " or ".join(f'"{method}"' for method in ("scaled", "cqr") if method != found.method)
    many = f"{len(strays)} of {len(tested)} with {SERIES_WINDOWS} test windows or more"
    return [
        f"**Levels do not hold for each series: {worst}.**",
        f"{many} are more than {SERIES_TOLERANCE:g} points off at a level:",
        f"the errors of all calibrate together. What helps: `intervals.method = {methods}`, whose intervals go by the",
        "window, and `network.config.normalisation`, by which the network does. `series.csv` has every series.",
        "",
    ]


def _worst(one: SeriesScores) -> tuple[float, str, float]:
    """Of the level that is furthest off: by how many points, the level, and the percent inside."""
    return max((abs(share - float(level)), level, share) for level, share in one.covered.items())


def _paths(found: Intervals) -> list[str]:
    if not found.simultaneous:
        return []
    shares = "; ".join(
        f"{level} %: " + ", ".join(f"{target} {100 * share:.1f}" for target, share in by_target.items())
        for level, by_target in found.simultaneous.items()
    )
    return [f"Of whole paths, percent inside the simultaneous band: {shares}.", ""]
