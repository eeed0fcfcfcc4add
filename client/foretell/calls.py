"""What can be asked: a function a call, which makes the request and reads the answer. Both clients have all of them."""

from __future__ import annotations  # for `help`, which shows them as they stand here

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from foretell import answers
from foretell.errors import DataError
from foretell.exchange import Flow, Reply, Request
from foretell.followed import followed_of, needs_spec
from foretell.given import JSON, LINES, Body, Data, Time, body_of, json_of
from foretell.lines import BacktestReader, Lined, ResultReader, StepReader
from foretell.many import many_of

Level: TypeAlias = str | float | Sequence[str | float]
"""Percents: 80, "80,95", [80, 97.5]."""
Attention: TypeAlias = Literal["all", "last", "none"]
Priority: TypeAlias = Literal["interactive", "bulk"]
Band: TypeAlias = Literal["step", "path"]
Named: TypeAlias = str | int
"""A version: its number, an alias, `latest`."""
SILENCE_S = 600.0


def forecast(
    data: Data,
    steps: int,
    *,
    model: str | None = None,
    version: Named | None = None,
    level: Level | None = None,
    band: Band | None = None,
    adaptive: bool = False,
    attention: Attention | None = None,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
    priority: Priority | None = None,
) -> Flow[answers.Forecast]:
    """N steps. What is left out is as the service has it: the one model, `production` or the latest version.

    `data` is rows (oldest first), an array, a table of pandas or polars, or the path of a file. Beside rows go `start`
    (time of the first one) where the model has a clock, `future` and `static` where it has such features.
    """
    body = body_of(data, start=start, future=future, static=static)
    options = _options(model, version, level, band, attention, deadline_ms, priority, adaptive=adaptive)
    reply = yield _post("/forecast", body, {"steps": str(steps), **options})
    return answers.forecast_of(_object(reply), reply.headers, reply.request_id)


def predict(
    data: Data,
    *,
    model: str | None = None,
    version: Named | None = None,
    level: Level | None = None,
    band: Band | None = None,
    adaptive: bool = False,
    attention: Attention | None = None,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
    priority: Priority | None = None,
) -> Flow[answers.Prediction]:
    """The next step; everything else as of `forecast`."""
    body = body_of(data, start=start, future=future, static=static)
    options = _options(model, version, level, band, attention, deadline_ms, priority, adaptive=adaptive)
    reply = yield _post("/predict", body, options)
    return answers.prediction_of(_object(reply), reply.headers, reply.request_id)


def anomalies(
    data: Data,
    actual: Data,
    *,
    level: str | float | None = None,
    model: str | None = None,
    version: Named | None = None,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
) -> Flow[answers.Anomalies]:
    """How unusual the rows are that followed a window: `actual`, [n][T] in the order of the model's targets.

    Tables will do for both; their columns are found by name, for which the model's spec is read first.
    """
    spec = None
    if needs_spec(data, actual):
        spec = (yield from _spec(model, version)).spec
    body = followed_of(data, actual, start=start, future=future, static=static, spec=spec)
    options = {"model": model, "version": version, "level": level, "deadline_ms": deadline_ms}
    reply = yield _post("/anomalies", body, _told(options))
    return answers.anomalies_of(_object(reply), reply.headers, reply.request_id)


def actuals(
    data: Data,
    actual: Data,
    *,
    model: str,
    version: Named,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
) -> Flow[answers.Actuals]:
    """Tell what came true of a forecast that was asked for before, with the same data. Each value counts once, however
    often it is told.
    """
    spec = None
    if needs_spec(data, actual):
        spec = (yield from _spec(model, version)).spec
    body = followed_of(data, actual, start=start, future=future, static=static, spec=spec)
    path = f"{_version_path(model, version)}/actuals"
    reply = yield _post(path, body, _told({"deadline_ms": deadline_ms}))
    return answers.actuals_of(_object(reply), reply.headers, reply.request_id)


def models() -> Flow[list[answers.Model]]:
    """Every model with the states of its versions, and its aliases."""
    reply = yield Request("GET", "/models")
    return [answers.model_of(one) for one in _object(reply)["models"]]


def model(name: str, version: Named | None = None) -> Flow[answers.Version]:
    """A version and its spec; by default the one that answers who names none."""
    return (yield from _spec(name, version))


def alias(name: str, alias: str = "production") -> Flow[answers.Alias]:
    """What an alias stands for."""
    reply = yield Request("GET", _alias_path(name, alias))
    return answers.alias_of(_object(reply))


def promote(
    name: str,
    version: Named,
    alias: str = "production",
    *,
    split: Mapping[int, float] | None = None,
    shadow: int | None = None,
    wait_s: float = 30.0,
) -> Flow[answers.Alias]:
    """Let an alias stand for a version as soon as it is ready. `split` gives other versions a percentage of the
    clients, `shadow` is asked the same and answers nobody. It is not repeated where nobody knows whether it was done.
    """
    body = json_of({"version": version, "split": split, "shadow": shadow})
    reply = yield Request(
        "PUT",
        _alias_path(name, alias),
        {"wait_s": f"{wait_s:g}"},
        body.content,
        body.content_type,
        repeatable=False,
        extra_s=wait_s,
    )
    return answers.alias_of(_object(reply))


def rollback(name: str, alias: str = "production") -> Flow[answers.Alias]:
    """Take the last step back: a split or a shadow ends, else the alias stands for the version before. It is not
    repeated where nobody knows whether it was done.
    """
    reply = yield Request("POST", f"{_alias_path(name, alias)}/rollback", repeatable=False)
    return answers.alias_of(_object(reply))


def drop_alias(name: str, alias: str) -> Flow[None]:
    """Forget an alias."""
    yield Request("DELETE", _alias_path(name, alias), repeatable=False)


def load(name: str, version: Named, *, wait_s: float = 30.0) -> Flow[answers.Version]:
    """Load a version, whatever the policy says; its state is `loading` where that takes longer than `wait_s`."""
    path = f"{_version_path(name, version)}/load"
    reply = yield Request("POST", path, {"wait_s": f"{wait_s:g}"}, extra_s=wait_s)
    return answers.version_of(_object(reply))


def unload(name: str, version: Named) -> Flow[answers.Version]:
    """Unload a version, until it is loaded again."""
    reply = yield Request("POST", f"{_version_path(name, version)}/unload")
    return answers.version_of(_object(reply))


def audit(last: int = 100) -> Flow[list[answers.Change]]:
    """The last changes of the store, the newest first."""
    reply = yield Request("GET", "/audit", {"last": str(last)})
    return [answers.change_of(one) for one in _object(reply)["changes"]]


def ready() -> Flow[bool]:
    """Whether the service may be asked; UnreachableError where it does not even say."""
    reply = yield Request("GET", "/health/ready", answers=(503,))
    if reply.status == 503 and reply.headers.get("content-type", "").partition(";")[0] != JSON:
        return False  # a proxy with nobody behind it
    return bool(_object(reply)["ready"])


# These are answered line by line.


def stream(
    data: Data,
    steps: int,
    *,
    model: str | None = None,
    version: Named | None = None,
    level: Level | None = None,
    band: Band | None = None,
    adaptive: bool = False,
    attention: Attention | None = None,
    start: Time | Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
    priority: Priority | None = None,
    silence_s: float | None = None,
) -> Lined[answers.Step, answers.Ended]:
    """N steps as they are computed: an iterator of Step; everything else as of `forecast`.

    Its `head` says who answers. It waits for `silence_s` between two lines, by default as long as for any answer.
    Close it to stop the work.
    """
    body = body_of(data, start=start, future=future, static=static)
    options = _options(model, version, level, band, attention, deadline_ms, priority, adaptive=adaptive)
    request = replace(_post("/forecast", body, {"steps": str(steps), **options}), accept=LINES)
    return Lined(request, StepReader(), silence_s)


def batch(
    data: Data,
    steps: int,
    *,
    model: str | None = None,
    version: Named | None = None,
    level: Level | None = None,
    band: Band | None = None,
    adaptive: bool = False,
    attention: Attention | None = None,
    start: Sequence[Time] | None = None,
    future: Any = None,
    static: Any = None,
    deadline_ms: int | None = None,
    silence_s: float = SILENCE_S,
) -> Lined[answers.Result, answers.Summary]:
    """Forecasts of many windows, behind all other requests: an iterator of Result, in the order of the windows. One
    that is wrong has an `error` and costs no other.

    `data` is windows [B][L][C], mappings with a `window` each, a table of many series, or the path of a CSV, of lines
    of JSON or of an array, which is sent as it is read. `start`, `future` and `static` have one entry a window. It
    waits for `silence_s` between two lines. Close it to stop the work.
    """
    many = many_of(data, start=start, future=future, static=static)
    options = _options(model, version, level, band, attention, deadline_ms, None, adaptive=adaptive)
    params = {"steps": str(steps), **options}
    request = Request("POST", "/batch", params, many.content, many.content_type, LINES)
    return Lined(request, ResultReader(), silence_s)


def backtest(
    data: Data,
    steps: int,
    *,
    stride: int = 1,
    level: Level | None = None,
    model: str | None = None,
    version: Named | None = None,
    deadline_ms: int | None = None,
    silence_s: float = SILENCE_S,
) -> Lined[answers.Progress | answers.Backtest, answers.Backtest]:
    """Score a model on a long series: Progress, a hundred times at most, then the Backtest.

    Close the iterator to stop the work. It waits for `silence_s` between two lines.
    """
    body = body_of(data)
    if body.content_type == JSON:
        raise DataError("a backtest takes a table or an array")
    options = {"steps": steps, "stride": stride, "model": model, "version": version, "deadline_ms": deadline_ms}
    told = _told({**options, "level": None if level is None else level_of(level)})
    return Lined(replace(_post("/backtest", body, told), accept=LINES), BacktestReader(), silence_s)


def level_of(level: Level) -> str:
    """As the service takes it."""
    if isinstance(level, str):
        return level
    levels = [level] if isinstance(level, int | float) else level
    return ",".join(one if isinstance(one, str) else f"{one:g}" for one in levels)


def _options(
    model: str | None,
    version: Named | None,
    level: Level | None,
    band: Band | None,
    attention: Attention | None,
    deadline_ms: int | None,
    priority: Priority | None,
    *,
    adaptive: bool,
) -> dict[str, str]:
    return _told(
        {
            "model": model,
            "version": version,
            "level": None if level is None else level_of(level),
            "band": band,
            "adaptive": "true" if adaptive else None,
            "attention": attention,
            "deadline_ms": deadline_ms,
            "priority": priority,
        }
    )


def _told(options: Mapping[str, object]) -> dict[str, str]:
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in options.items()
        if value is not None
    }


def _post(path: str, body: Body, options: Mapping[str, str]) -> Request:
    return Request("POST", path, options, body.content, body.content_type)


def _spec(name: str | None, version: Named | None) -> Flow[answers.Version]:
    """The version that is meant, as the service finds it."""
    if name is None or version is None:
        reply = yield Request("GET", "/models")
        listed = [answers.model_of(one) for one in _object(reply)["models"]]
        if name is None:
            if len(listed) != 1:
                raise DataError(f"model: name one of {', '.join(one.name for one in listed) or 'none'}")
            name = listed[0].name
        aliases = next((one.aliases for one in listed if one.name == name), {})
        version = version or ("production" if "production" in aliases else "latest")
    reply = yield Request("GET", _version_path(name, version))
    return answers.version_of(_object(reply))


def _version_path(name: str, version: Named) -> str:
    return f"/models/{_part(name)}/versions/{_part(str(version))}"


def _alias_path(name: str, alias: str) -> str:
    return f"/models/{_part(name)}/aliases/{_part(alias)}"


def _part(name: str) -> str:
    """Of a path: whatever it is, it is one part, and no way to another."""
    if name in ("", ".", ".."):
        raise DataError(f"{name!r} is no name")
    return quote(name, safe="")


def _object(reply: Reply) -> dict[str, Any]:
    said = json.loads(reply.content)
    if not isinstance(said, dict):
        raise TypeError(f"an object is needed, not {type(said).__name__}")
    return said
