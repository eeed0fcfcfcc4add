"""What the service answers.

Shapes: B windows, L window, N steps, T targets, n rows that followed. Where a request had several windows each array
has one more dimension in front, `single` is false, and `answer[i]`, `len(answer)` and a loop give the windows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from foretell.arrays import Values, frame_of, values_of
from foretell.errors import ProblemError


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Where the truth lies as often as its level says: [N][T] as the forecast, [T] as a prediction."""

    lower: Values
    upper: Values


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Weights [rows][L] over the window's rows; row i tells of the steps i * steps_per_row and following."""

    steps_per_row: int
    weights: Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What every answer says of itself."""

    model: str
    version: int
    digest: str
    """The identity of the archive that answered."""
    targets: list[str]
    request_id: str = ""
    cache: str | None = None
    """`hit` or `miss`; None where there is no cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Windows(Answer):
    """What has something for each window."""

    values: Values
    intervals: dict[str, Interval]
    """By level in percent, "80"; empty where none was asked for."""
    attention: Attention | None
    """None where the model has none, and where it was not asked for."""
    series: list[str] | None = None
    """[B], the names of the windows, where they have some."""
    single: bool = True
    """Whether one window was asked about."""
    extrapolated_from: int | None = None
    """From this step on intervals are beyond what was calibrated."""
    actuals: int | None = None
    """How many actual values have corrected adaptive intervals."""

    def __len__(self) -> int:
        return 1 if self.single else len(self.values)

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Self:
        """One window."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        if self.single:
            return self
        return replace(
            self,
            single=True,
            values=self.values[index],
            intervals={
                level: Interval(interval.lower[index], interval.upper[index])
                for level, interval in self.intervals.items()
            },
            attention=self.attention and Attention(self.attention.steps_per_row, self.attention.weights[index]),
            series=None if self.series is None else [self.series[index]],
            **self._times_of(index),
        )

    def _times_of(self, _index: int) -> dict[str, Any]:
        return {}

    def steps_of(self) -> list[tuple[datetime | None, Values, Mapping[str, tuple[Values, Values]]]]:
        """Of each step of the one window its time, [T] values, and by level [T] bounds."""
        raise NotImplementedError

    def columns(self) -> dict[str, list[Any]]:
        """A row a step, of one window after the other, by name as in the CSV of the service."""
        found: dict[str, list[Any]] = {}
        for number, window in enumerate(self):
            for step, (time, values, bounds) in enumerate(window.steps_of(), 1):
                row: dict[str, Any] = {}
                if not self.single:
                    row["series" if self.series else "window"] = self.series[number] if self.series else number
                row |= _row(self.targets, time, step, values, bounds)
                for name, cell in row.items():
                    found.setdefault(name, []).append(cell)
        return found

    def to_pandas(self, timezone: str = "UTC") -> Any:
        """A pandas DataFrame with a row a step; its index is `time`, in that zone, where times are known."""
        columns = self.columns()
        return frame_of("pandas", columns, "time" if "time" in columns else None, timezone)

    def to_polars(self, timezone: str = "UTC") -> Any:
        """A polars DataFrame with a row a step; its column `time` is in that zone."""
        columns = self.columns()
        return frame_of("polars", columns, "time" if "time" in columns else None, timezone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast(_Windows):
    """`values` are [N][T]."""

    steps: int
    timestamps: Any = None
    """[N] of datetime, or [B][N]; None where the request did not say when the window was."""

    def _times_of(self, index: int) -> dict[str, Any]:
        return {"timestamps": None if self.timestamps is None else self.timestamps[index]}

    def steps_of(self) -> list[tuple[datetime | None, Values, Mapping[str, tuple[Values, Values]]]]:
        """Of each step of the one window."""
        times = self.timestamps or [None] * self.steps
        return [
            (
                times[step],
                self.values[step],
                {level: (found.lower[step], found.upper[step]) for level, found in self.intervals.items()},
            )
            for step in range(self.steps)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(_Windows):
    """`values` are [T]."""

    timestamp: Any = None
    """datetime, or [B] of them; None where the request did not say when the window was."""

    def _times_of(self, index: int) -> dict[str, Any]:
        return {"timestamp": None if self.timestamp is None else self.timestamp[index]}

    def steps_of(self) -> list[tuple[datetime | None, Values, Mapping[str, tuple[Values, Values]]]]:
        """Of each step of the one window."""
        bounds = {level: (found.lower, found.upper) for level, found in self.intervals.items()}
        return [(self.timestamp, self.values, bounds)]


def _row(
    targets: Sequence[str],
    time: datetime | None,
    step: int,
    values: Values,
    bounds: Mapping[str, tuple[Values, Values]],
) -> dict[str, Any]:
    """Of a step's [T] values and by level [T] bounds, by name as in the CSV of the service."""
    row: dict[str, Any] = {} if time is None else {"time": time}
    row["step"] = step
    row |= dict(zip(targets, map(float, values), strict=True))
    for level, sides in bounds.items():
        for side, ends in zip(("lower", "upper"), sides, strict=True):
            names = [f"{target}_{side}_{level}" for target in targets]
            row |= dict(zip(names, map(float, ends), strict=True))
    return row


@dataclass(frozen=True, kw_only=True, eq=False)
class Head(Answer):
    """What an answer in lines says first."""

    steps: int
    series: list[str] | None = None
    """[B], the names of a stream's windows, where they have some."""
    windows: int | None = None
    """B of a batch; None of a stream."""
    steps_per_row: int | None = None
    """How many steps a row of attention is of; None where the model has none, and where it was not asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One of a forecast as it is computed; several windows add a dimension in front."""

    step: int
    """1 to N."""
    values: Values
    """[T]."""
    timestamp: Any
    """datetime, or [B] of them; None where the request did not say when the window was."""
    intervals: dict[str, Interval]
    """[T] by level; empty where none was asked for."""
    attention: Values | None
    """[L], with the first step that it is of; else None."""
    single: bool = True

    def rows(self, head: Head) -> list[dict[str, Any]]:
        """One for each window, by name as in the CSV of the service."""
        if self.single:
            bounds = {level: (found.lower, found.upper) for level, found in self.intervals.items()}
            return [_row(head.targets, self.timestamp, self.step, self.values, bounds)]
        rows = []
        for index, values in enumerate(self.values):
            named = {"series": head.series[index]} if head.series else {"window": index}
            time = None if self.timestamp is None else self.timestamp[index]
            bounds = {level: (found.lower[index], found.upper[index]) for level, found in self.intervals.items()}
            rows.append({**named, **_row(head.targets, time, self.step, values, bounds)})
        return rows


@dataclass(frozen=True, slots=True)
class Ended:
    """The last line of a stream."""

    steps: int
    queue_ms: float | None
    """None where the cache had it."""
    inference_ms: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of a window of a batch: a forecast, or why there is none."""

    window: int
    """From 0, as it stood in the request."""
    series: str | None
    forecast: Forecast | None
    error: ProblemError | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The last line of a batch."""

    windows: int
    failed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Anomalies(Answer):
    """How unusual the rows were that followed: [n][T] each."""

    level: str
    expected: Values
    intervals: dict[str, Interval]
    p_values: Values
    """How likely one is that fits no better; missing where the actual value is."""
    anomalous: list[Any]
    """True, False, or None where the actual value is missing."""
    timestamps: Any = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Actuals(Answer):
    """What the service has made of what came true."""

    errors: Values
    """Forecast less actual, [n][T]."""
    covered: dict[str, list[Any]]
    """By level, whether the interval held it: True, False, or None; empty where the model has no intervals."""
    counted: int
    """Values that had not been told before."""
    learnt: int | None = None
    """How many values adaptive intervals of this version have learnt from."""
    timestamps: Any = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backtest is."""

    done: int
    windows: int
    mae: dict[str, float | None]
    """So far, by target."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Backtest(Answer):
    """What came of one. Scores have a number a step, None where there is none."""

    steps: int
    stride: int
    windows: int
    skipped: int
    not_finite: int
    scores: dict[str, dict[str, Values]]
    """By target: n, mae, rmse, bias, r2, mase."""
    baselines: dict[str, dict[str, dict[str, Values]]]
    """By baseline and target."""
    intervals: dict[str, dict[str, dict[str, Values]]]
    """By level and target: coverage, width, winkler."""
    series: dict[str, Any]
    """The same by series, where they have names."""


@dataclass(frozen=True, slots=True)
class ListedVersion:
    version: int
    state: str
    """loading, ready, failed or unloaded."""
    digest: str


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    versions: list[ListedVersion]
    aliases: dict[str, int]


@dataclass(frozen=True, slots=True)
class Version:
    """A version and what it says of itself."""

    name: str
    version: int
    digest: str
    state: str
    reason: str | None
    """Why it is out, where it is."""
    spec: dict[str, Any] | None
    """None until it is ready."""

    @property
    def columns(self) -> list[str]:
        """Those of a window, in order."""
        return [one["name"] for one in (self.spec or {}).get("features", []) if one["role"] != "static"]

    @property
    def targets(self) -> list[str]:
        """Those of a forecast, in order."""
        return list((self.spec or {}).get("targets", []))

    @property
    def window(self) -> int | None:
        """How many rows it takes."""
        return None if self.spec is None else int(self.spec["window"])


@dataclass(frozen=True, slots=True)
class Alias:
    """What an alias stands for."""

    model: str
    alias: str
    version: int
    serves: int | None
    """What answers: another version where that one is not ready."""
    split: dict[int, float]
    """Percent of the clients, by version."""
    shadow: int | None
    previous: list[int]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the store."""

    time: datetime
    by: str
    action: str
    details: dict[str, Any]


# Reading them. KeyError, TypeError or ValueError where a field is missing or of another kind.


def head_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> dict[str, Any]:
    """The fields of `Answer`."""
    return {
        "model": str(said["model"]),
        "version": int(said["version"]),
        "digest": str(said["digest"]),
        "targets": [str(name) for name in _list(said["targets"])],
        "request_id": headers.get("x-request-id", request_id),
        "cache": headers.get("x-cache"),
    }


def forecast_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> Forecast:
    """Of POST /forecast."""
    single = "forecast" in said
    return Forecast(
        **_common(said, headers, request_id, single=single),
        values=values_of(_list(said["forecast" if single else "forecasts"])),
        steps=int(said["steps"]),
        timestamps=times_of(said.get("timestamps")),
    )


def first_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> Head:
    """Of the first line of a stream or a batch."""
    attention, windows = said.get("attention"), said.get("windows")
    return Head(
        **head_of(said, headers, request_id),
        steps=int(said["steps"]),
        series=said.get("series"),
        windows=None if windows is None else int(windows),
        steps_per_row=None if attention is None else int(attention["steps_per_row"]),
    )


def step_of(said: Mapping[str, Any]) -> Step:
    """Of a line of a stream."""
    single = "forecast" in said
    attention = said.get("attention")
    return Step(
        step=int(said["step"]),
        values=values_of(_list(said["forecast" if single else "forecasts"])),
        timestamp=times_of(said.get("timestamp" if single else "timestamps")),
        intervals=intervals_of(said.get("intervals") or {}),
        attention=None if attention is None else values_of(_list(attention)),
        single=single,
    )


def ended_of(said: Mapping[str, Any]) -> Ended:
    """Of the last line of a stream."""
    return Ended(int(said["steps"]), said.get("queue_ms"), said.get("inference_ms"))


def result_of(head: Head, said: Mapping[str, Any], error: ProblemError | None) -> Result:
    """Of a line of a batch."""
    series = said.get("series")
    forecast = None
    if error is None:
        weights = said.get("attention")
        forecast = Forecast(
            model=head.model,
            version=head.version,
            digest=head.digest,
            targets=head.targets,
            request_id=head.request_id,
            cache=head.cache,
            values=values_of(_list(said["forecast"])),
            intervals=intervals_of(said.get("intervals") or {}),
            attention=None if weights is None else Attention(int(head.steps_per_row or 0), values_of(_list(weights))),
            series=None if series is None else [str(series)],
            steps=head.steps,
            timestamps=times_of(said.get("timestamps")),
        )
    return Result(int(said["window"]), None if series is None else str(series), forecast, error)


def prediction_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> Prediction:
    """Of POST /predict."""
    single = "prediction" in said
    return Prediction(
        **_common(said, headers, request_id, single=single),
        values=values_of(_list(said["prediction" if single else "predictions"])),
        timestamp=times_of(said.get("timestamp" if single else "timestamps")),
    )


def _common(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str, *, single: bool) -> dict[str, Any]:
    attention = said.get("attention")
    return {
        **head_of(said, headers, request_id),
        "intervals": intervals_of(said.get("intervals") or {}),
        "attention": attention and Attention(int(attention["steps_per_row"]), values_of(_list(attention["weights"]))),
        "series": said.get("series"),
        "single": single,
        "extrapolated_from": said.get("extrapolated_from"),
        "actuals": said.get("actuals"),
    }


def intervals_of(said: Mapping[str, Any]) -> dict[str, Interval]:
    """By level."""
    return {
        level: Interval(values_of(_list(ends["lower"])), values_of(_list(ends["upper"])))
        for level, ends in said.items()
    }


def times_of(said: Any) -> Any:
    """Times in whatever lists they are in."""
    if said is None:
        return None
    return [times_of(one) for one in said] if isinstance(said, list) else datetime.fromisoformat(said)


def anomalies_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> Anomalies:
    """Of POST /anomalies."""
    return Anomalies(
        **head_of(said, headers, request_id),
        level=str(said["level"]),
        expected=values_of(_list(said["expected"])),
        intervals=intervals_of(said["intervals"]),
        p_values=values_of(_list(said["p_values"])),
        anomalous=_list(said["anomalous"]),
        timestamps=times_of(said.get("timestamps")),
    )


def actuals_of(said: Mapping[str, Any], headers: Mapping[str, str], request_id: str) -> Actuals:
    """Of POST …/actuals."""
    learnt = said.get("adaptive")
    return Actuals(
        **head_of(said, headers, request_id),
        errors=values_of(_list(said["errors"])),
        covered=dict(said.get("covered") or {}),
        counted=int(said["counted"]),
        learnt=None if learnt is None else int(learnt["actuals"]),
        timestamps=times_of(said.get("timestamps")),
    )


def backtest_of(
    head: Mapping[str, Any], result: Mapping[str, Any], headers: Mapping[str, str], request_id: str
) -> Backtest:
    """Of the first and the last line of POST /backtest."""
    return Backtest(
        **head_of(head, headers, request_id),
        steps=int(head["steps"]),
        stride=int(head["stride"]),
        windows=int(result["windows"]),
        skipped=int(head["skipped"]),
        not_finite=int(result["not_finite"]),
        scores=_scores(result["model"]),
        baselines={name: _scores(scores) for name, scores in result.get("baselines", {}).items()},
        intervals={level: _scores(scores) for level, scores in result.get("intervals", {}).items()},
        series=dict(result.get("series", {})),
    )


def _scores(said: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, dict[str, Values]]:
    return {
        target: {name: values_of(_list(steps)) for name, steps in scores.items()} for target, scores in said.items()
    }


def progress_of(said: Mapping[str, Any]) -> Progress:
    """Of a line of POST /backtest."""
    return Progress(int(said["done"]), int(said["windows"]), dict(said["mae"]))


def model_of(said: Mapping[str, Any]) -> Model:
    """One of GET /models."""
    versions = [
        ListedVersion(int(one["version"]), str(one["state"]), str(one["digest"])) for one in _list(said["versions"])
    ]
    return Model(str(said["name"]), versions, {name: int(number) for name, number in said["aliases"].items()})


def version_of(said: Mapping[str, Any]) -> Version:
    """Of GET /models/{name}/versions/{version}."""
    return Version(
        str(said["name"]),
        int(said["version"]),
        str(said["digest"]),
        str(said["state"]),
        said["reason"],
        said["spec"],
    )


def alias_of(said: Mapping[str, Any]) -> Alias:
    """Of …/aliases/{alias}."""
    return Alias(
        str(said["model"]),
        str(said["alias"]),
        int(said["version"]),
        said["serves"],
        {int(version): float(percent) for version, percent in said["split"].items()},
        said["shadow"],
        [int(version) for version in said["previous"]],
    )


def change_of(said: Mapping[str, Any]) -> Change:
    """One of GET /audit."""
    known = ("time", "by", "action")
    details = {name: value for name, value in said.items() if name not in known}
    return Change(datetime.fromisoformat(said["time"]), str(said["by"]), str(said["action"]), details)


def _list(said: Any) -> list[Any]:
    if not isinstance(said, list):
        raise TypeError(f"a list is needed, not {type(said).__name__}")
    return said
