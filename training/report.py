"""What a person looks at before trusting a version: figures in `report.md` and `metrics.json`, and four pictures.

Shapes: N steps, T targets.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.spec import Metrics, Scores, Spec
from training.progress import Epoch

_INCHES = (8.0, 3.0)
_DPI = 80
_HISTORY = 3
"""A forecast is drawn behind so many times its own length of what came before."""


def write(folder: Path, spec: Spec, truth: Sequence[Sequence[float]], epochs: Sequence[Epoch]) -> None:
    """Fill the folder; `truth` [N, T] is what really came after the example's window."""
    folder.mkdir()
    (folder / "metrics.json").write_text(spec.metrics.model_dump_json(indent=2) + "\n", "utf-8")
    pictures = {"loss.png": _loss(epochs), "errors.png": _errors(spec), "forecast.png": _forecast(spec, truth)}
    if spec.attention_rows:
        pictures["attention.png"] = _attention(spec)
    for name, figure in pictures.items():
        # Without the library's version in the file, so that equal pictures are equal bytes.
        figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
    (folder / "report.md").write_text(_page(spec, epochs, list(pictures)), "utf-8")


def table(metrics: Metrics) -> list[list[str]]:
    """A head and a row for every target and forecast: the metrics' averages over the steps."""
    lines = [["target", "forecast", "MAE", "RMSE", "R²", "MASE"]]
    for target in metrics.model:
        forecasts = {"model": metrics.model, **metrics.baselines}
        lines += [[target, name, *_averages(scores[target])] for name, scores in forecasts.items()]
    return lines


def _averages(scores: Scores) -> list[str]:
    return [_average(values) for values in (scores.mae, scores.rmse, scores.r2, scores.mase)]


def _average(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if len(known) == len(values) else "-"


def _page(spec: Spec, epochs: Sequence[Epoch], pictures: Sequence[str]) -> str:
    metrics = spec.metrics
    best = [epoch for epoch in epochs if epoch.best][-1]
    head, *body = ["| " + " | ".join(line) + " |" for line in table(metrics)]
    data = [f"- `{data.file}`: {data.rows} rows, sha256 `{data.sha256}`" for data in spec.training.data]
    parts = [
        f"- {name}: {span.start:%Y-%m-%d %H:%M} to {span.end:%Y-%m-%d %H:%M} UTC, {span.windows} windows"
        for name, span in (
            ("train", spec.training.train),
            ("validation", spec.training.validation),
            ("test", spec.training.test),
        )
    ]
    return "\n".join(
        [
            f"# {spec.name}, version {spec.version}",
            "",
            f"`{spec.architecture}`: {spec.window} rows in, {spec.horizon} a pass, {spec.recursion} recursion.",
            f"Best of {len(epochs)} epochs: {best.number} (validation {best.validation:.4f}).",
            "",
            *data,
            *parts,
            "",
            f"Errors in original units on all {metrics.windows} test windows, mean of steps 1 to {metrics.steps};",
            f"MASE is relative to the seasonal-naive error (season {metrics.season}) on the training rows.",
            "`metrics.json` has every step.",
            "",
            head,
            "| --- | --- |" + " ---: |" * 4,
            *body,
            "",
            *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
            "",
        ]
    )


def _figure(rows: int, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_INCHES[0], _INCHES[1] * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _loss(epochs: Sequence[Epoch]) -> Figure:
    figure, (axes,) = _figure(1)
    numbers = [epoch.number for epoch in epochs]
    axes.plot(numbers, [epoch.loss for epoch in epochs], label="training loss")
    axes.plot(numbers, [epoch.validation for epoch in epochs], label="validation error of the targets")
    best = [epoch for epoch in epochs if epoch.best][-1]
    axes.plot(best.number, best.validation, "o", color="black", label="kept")
    axes.set(xlabel="epoch", title="Loss, in standard deviations")
    axes.legend()
    return figure


def _errors(spec: Spec) -> Figure:
    figure, places = _figure(1, len(spec.targets))
    steps = range(1, spec.metrics.steps + 1)
    for target, axes in zip(spec.targets, places, strict=True):
        for name, scores in spec.metrics.baselines.items():
            axes.plot(steps, scores[target].mae, "--", linewidth=1, label=name)
        axes.plot(steps, spec.metrics.model[target].mae, color="black", label=spec.name)
        axes.set(xlabel="steps ahead", title=f"{target}: MAE{_unit(spec, target)}")
    places[0].legend(fontsize="small")
    return figure


def _forecast(spec: Spec, truth: Sequence[Sequence[float]]) -> Figure:
    figure, places = _figure(len(spec.targets))
    example = spec.example
    shown = min(_HISTORY * example.steps, spec.window)
    for index, (target, axes) in enumerate(zip(spec.targets, places, strict=True)):
        column = spec.columns.index(target)
        past = [row[column] for row in example.window[-shown:]]
        ahead = range(1, example.steps + 1)
        axes.plot(range(1 - shown, 1), past, color="grey", label="given")
        axes.plot(ahead, [row[index] for row in truth], color="tab:green", label="what came")
        axes.plot(ahead, [row[index] for row in example.forecast], color="black", label="forecast")
        axes.set(title=f"{target}{_unit(spec, target)}")
    places[0].legend(fontsize="small")
    places[-1].set_xlabel("rows from the last one given")
    return figure


def _attention(spec: Spec) -> Figure:
    figure, (axes,) = _figure(1)
    rows = spec.example.attention
    extent = (0.5 - spec.window, 0.5, len(rows) + 0.5, 0.5)
    image = axes.imshow(rows, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=axes)
    axes.set(xlabel="row of the window, 0 the last", ylabel="attention row", title="Attention for the forecast above")
    return figure


def _unit(spec: Spec, target: str) -> str:
    unit = spec.features[spec.columns.index(target)].unit
    return f" in {unit}" if unit else ""
