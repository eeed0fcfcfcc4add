"""Published versions beside each other: one table, one picture, and whether their errors may be compared at all.

Nothing is computed anew: the figures are those that each archive holds.
"""

from collections.abc import Sequence
from pathlib import Path

from models.artifact import Artifact
from models.spec import Span, Spec
from training.reporting import pictures
from training.reporting.tables import Table, comma_separated, markdown, number
from training.scoring.metrics import OVERALL, TITLES, averages

BEST = "*"
"""Marks the best of the versions in a table."""

_HIGHER_IS_BETTER = frozenset({"r2"})


def differences(versions: Sequence[Artifact]) -> list[str]:
    """What keeps the errors from being compared, one sentence each; empty where all were tested on the same."""
    first, *others = [version.spec for version in versions]
    found = []
    for spec in others:
        for what, one, other in (
            ("data", _data(first), _data(spec)),
            ("targets", first.targets, spec.targets),
            ("frequency", first.frequency, spec.frequency),
            ("test span", _span(first.training.test), _span(spec.training.test)),
            ("steps", first.metrics.steps, spec.metrics.steps),
            ("test windows", first.metrics.windows, spec.metrics.windows),
            ("season, which MASE is relative to", first.metrics.season, spec.metrics.season),
            (
                "training span, by which MASE and (std) are scaled",
                _span(first.training.train),
                _span(spec.training.train),
            ),
        ):
            if one != other:
                found.append(f"{label(spec)} and {label(first)} differ in their {what}: {other} against {one}")
    return found


def label(spec: Spec) -> str:
    """NAME:VERSION"""
    return f"{spec.name}:{spec.version}"


def table(versions: Sequence[Artifact]) -> Table:
    """Means over all steps by target; where the versions may be compared, the best of each metric is marked."""
    comparable = len(versions) > 1 and not differences(versions)
    lines: Table = [["target", "version", *TITLES.values()]]
    for target, means in _by_target(versions).items():
        best = {
            metric: _best(metric, [of[metric] for of in means.values()]) if comparable else None for metric in TITLES
        }
        for name, of in means.items():
            lines.append([target, name, *(_marked(of[metric], best[metric]) for metric in TITLES)])
    return lines


def write(folder: Path, versions: Sequence[Artifact]) -> None:
    """Fill the folder: `compare.csv`, `report.md` and `errors.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = [version.spec for version in versions]
    rows = [
        {"target": target, "version": name, **of}
        for target, means in _by_target(versions).items()
        for name, of in means.items()
    ]
    (folder / "compare.csv").write_text(comma_separated(rows), "utf-8")
    curves = {
        target: {label(spec): spec.metrics.model[target].mae for spec in specs if target in spec.targets}
        for target in _targets(specs)
    }
    units = {feature.name: feature.unit for spec in specs for feature in spec.features}
    figure = pictures.errors(curves, units=units, across=pictures.steps_label(specs[0].frequency))
    pictures.save(figure, folder / "errors.png")
    (folder / "report.md").write_text(_page(versions), "utf-8")


def verdict(versions: Sequence[Artifact]) -> list[str]:
    """Whether the figures may be compared, in words."""
    if len(versions) == 1:
        return []
    found = differences(versions)
    if not found:
        return [f"All were tested on the same windows; {BEST} marks the best of each target and metric."]
    return ["Not comparable, so no best is marked:", *(f"- {line}" for line in found)]


def _by_target(versions: Sequence[Artifact]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By target (or OVERALL), by version and by metric: the means over all steps."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    specs = [version.spec for version in versions]
    means = {label(spec): averages(spec.metrics.model, slice(None)) for spec in specs}
    for target in (*_targets(specs), OVERALL):
        found[target] = {name: of[target] for name, of in means.items() if target in of}
    return found


def _targets(specs: Sequence[Spec]) -> list[str]:
    """Of all versions, each once."""
    return list(dict.fromkeys(target for spec in specs for target in spec.targets))


def _best(metric: str, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return (max if metric in _HIGHER_IS_BETTER else min)(known, default=None)


def _marked(value: float | None, best: float | None) -> str:
    return number(value) + (BEST if value is not None and value == best else "")


def _data(spec: Spec) -> str:
    """The files' digests, short; their names may differ."""
    return ", ".join(data.sha256[:12] for data in spec.training.data)


def _span(span: Span) -> str:
    return f"{span.start:%Y-%m-%d %H:%M} to {span.end:%Y-%m-%d %H:%M}"


def _page(versions: Sequence[Artifact]) -> str:
    lines: Table = [["version", "network", "window", "horizon", "steps", "digest"]]
    for version in versions:
        spec = version.spec
        sizes = (spec.window, spec.horizon, spec.metrics.steps)
        lines.append([label(spec), spec.architecture, *map(str, sizes), f"`{version.digest[:19]}`"])
    return "\n".join(
        [
            "# Published versions compared",
            "",
            *verdict(versions),
            "",
            *markdown(lines, 2),
            "",
            "Errors on the test windows as each archive holds them, means over all steps: MAE and RMSE in the units of",
            "the data, (std) of standardised values; `-` where the archive is older than the metric.",
            "",
            *markdown(table(versions), 2),
            "",
            "![errors by step](errors.png)",
            "",
        ]
    )
