"""What goes over the wire, for the OpenAPI page and for those who read it. Numbers are not validated one by one here:
the codec reads and writes arrays; a test holds its answers against these models.

Shapes: B windows, L window, C columns (the features but the static ones), N steps, K known-future covariates,
S static features, T targets.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.codec.tables import ARROWS
from app.forecasts.bands import BandName
from app.forecasts.predictor import AttentionChoice
from app.handlers import dialect_of
from models.spec import Spec

Row = list[float]
GivenRow = Annotated[list[float], Field(min_length=1)]
GivenRows = Annotated[list[GivenRow], Field(min_length=1)]
GappyRow = Annotated[list[float | None], Field(min_length=1)]
GappyRows = Annotated[list[GappyRow], Field(min_length=1)]
GivenStatic = dict[str, float] | list[float]
GivenTime = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Choices(BaseModel):
    """Query parameters that choose a model; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _are_known(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(cls.model_fields)}"
                raise PydanticCustomError(
                    "unknown_option", "unknown option '{name}'; {hint}", {"name": name, "hint": hint}
                )
        return given

    model: str | None = Field(None, description="Name; may be left out where exactly one model is served.")
    version: str | None = Field(
        None, description="Integer, alias, or `latest`. Default: `production` where that alias is set, else `latest`."
    )


class Options(Choices):
    """Those of a prediction."""

    attention: AttentionChoice = Field("all", description="Which attention rows to return.")
    level: str | None = Field(
        None,
        description="Percents, such as `80,95`: prediction intervals that hold the truth so often.",
        # Said, not held: what is no level is told better where levels are read.
        json_schema_extra={"example": "80,95", "pattern": r"^[1-9]\d?(\.\d{1,3})?(,[1-9]\d?(\.\d{1,3})?)*$"},
    )
    band: BandName = Field(
        "step", description="Whether a level holds for each step by itself, or for the whole `path` of a target."
    )
    adaptive: bool = Field(
        default=False,
        description="Let the levels that the model was measured at be corrected by what came of earlier forecasts.",
    )
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(None, description="Give up after this long.")
    priority: Literal["interactive", "bulk"] = Field(
        "interactive", description="`bulk` gives way to all requests that are not."
    )

    @model_validator(mode="after")
    def _has_a_level(self) -> Self:
        if self.level is None and (self.band != "step" or self.adaptive):
            raise PydanticCustomError("no_level", "band and adaptive are of intervals; they go with level")
        return self


class ForecastOptions(Options):
    """The same and how far to go."""

    steps: Annotated[int, Field(ge=1)] = Field(description="Rows to forecast, up to the configured ceiling.")


class BatchOptions(ForecastOptions):
    """Those of many forecasts."""

    attention: AttentionChoice = Field("none", description="Which attention rows to return.")
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Give up after this long; where it is left out, never."
    )
    priority: Literal["bulk"] = Field("bulk", description="A batch gives way to everything else.")


class BacktestOptions(Choices):
    """Those of a backtest."""

    steps: Annotated[int, Field(ge=1)] = Field(description="Rows ahead to score, up to the configured ceiling.")
    stride: Annotated[int, Field(ge=1)] = Field(1, description="Rows from the start of a window to that of the next.")
    level: str | None = Field(
        None, description="Percents, such as `80,95`: score the prediction intervals of these levels, too."
    )
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Give up after this long; where it is left out, never."
    )


class Body(BaseModel):
    """One window, or several."""

    model_config = ConfigDict(extra="forbid")


# `future` and `start` may be left out but not null; a default that is made, not written down, says just that in the
# document.


class WindowBody(Body):
    window: GappyRows = Field(
        description="[L][C], oldest row first, columns in the order of the model's features without the static ones; "
        "null for a missing value where the model fills gaps; fewer rows where it takes them."
    )
    future: GivenRows = Field(
        default_factory=list, description="[N][K], where (and only where) the model has known-future covariates."
    )
    static: GivenStatic = Field(
        default_factory=list,
        description="[S] or by name, where (and only where) the model has static features.",
    )
    start: GivenTime = Field(
        default_factory=str,
        description="ISO 8601 time of the first row, in the model's time zone where it names no offset; needed where "
        "the model has a clock, and the answer then has timestamps.",
    )


class WindowsBody(Body):
    windows: Annotated[list[GappyRows], Field(min_length=1)] = Field(
        description="[B][L][C], like `window`; not all of one length where the model takes fewer rows."
    )
    future: Annotated[list[GivenRows], Field(min_length=1)] = Field(
        default_factory=list, description="[B][N][K], where (and only where) the model has known-future covariates."
    )
    static: Annotated[list[GivenStatic], Field(min_length=1)] = Field(
        default_factory=list,
        description="[B], each [S] or by name, where (and only where) the model has static features.",
    )
    start: Annotated[list[GivenTime], Field(min_length=1)] = Field(
        default_factory=list,
        description="[B], ISO 8601 times of the first rows, in the model's time zone where they name no offset; needed "
        "where the model has a clock, and the answer then has timestamps.",
    )


class Attention(BaseModel):
    """Weights over the window's rows; row i tells of the steps i * steps_per_row and following."""

    steps_per_row: int
    weights: list[Row] = Field(description="[rows][L]")


class Attentions(BaseModel):
    """The same for several windows."""

    steps_per_row: int
    weights: list[list[Row]] = Field(description="[B][rows][L]")


class Answer(BaseModel):
    """What every answer begins with."""

    model: str
    version: int
    digest: str = Field(description="The identity of the archive that answered.")
    targets: list[str]
    extrapolated_from: int | None = Field(
        None, description="From this step on intervals are beyond what was calibrated; absent where none are."
    )
    actuals: int | None = Field(
        None,
        description="How many actual values have corrected adaptive intervals; absent where these are not asked for.",
    )


class RowBounds(BaseModel):
    lower: Row = Field(description="[T]")
    upper: Row = Field(description="[T]")


class RowsBounds(BaseModel):
    lower: list[Row] = Field(description="[N][T], or [B][T]")
    upper: list[Row] = Field(description="[N][T], or [B][T]")


class WindowsBounds(BaseModel):
    lower: list[list[Row]] = Field(description="[B][N][T]")
    upper: list[list[Row]] = Field(description="[B][N][T]")


_SERIES = "[B], the names of the windows; absent where the body gave none."
_BOUNDS = "By level in percent; absent where none was asked for."
_TIMES = "in the model's time zone; absent where the request did not say when the window was."
_ATTENTION = "null where the model has none; absent where not asked for."


class Prediction(Answer):
    prediction: Row = Field(description="[T]")
    intervals: dict[str, RowBounds] | None = Field(None, description=_BOUNDS)
    attention: Attention | None = Field(None, description=_ATTENTION)
    timestamp: GivenTime | None = Field(None, description=f"ISO 8601, {_TIMES}")


class Predictions(Answer):
    series: list[str] | None = Field(None, description=_SERIES)
    predictions: list[Row] = Field(description="[B][T]")
    intervals: dict[str, RowsBounds] | None = Field(None, description=_BOUNDS)
    attention: Attentions | None = Field(None, description=_ATTENTION)
    timestamps: list[GivenTime] | None = Field(None, description=f"[B], ISO 8601, {_TIMES}")


class Forecast(Answer):
    steps: int
    forecast: list[Row] = Field(description="[N][T]")
    intervals: dict[str, RowsBounds] | None = Field(None, description=_BOUNDS)
    attention: Attention | None = Field(None, description=_ATTENTION)
    timestamps: list[GivenTime] | None = Field(None, description=f"[N], ISO 8601, {_TIMES}")


class Forecasts(Answer):
    series: list[str] | None = Field(None, description=_SERIES)
    steps: int
    forecasts: list[list[Row]] = Field(description="[B][N][T]")
    intervals: dict[str, WindowsBounds] | None = Field(None, description=_BOUNDS)
    attention: Attentions | None = Field(None, description=_ATTENTION)
    timestamps: list[list[GivenTime]] | None = Field(None, description=f"[B][N], ISO 8601, {_TIMES}")


class ListedVersion(BaseModel):
    version: int
    state: str
    digest: str


class ListedModel(BaseModel):
    name: str
    versions: list[ListedVersion]
    aliases: dict[str, int]


class ModelList(BaseModel):
    models: list[ListedModel]


class VersionDetail(BaseModel):
    name: str
    version: int
    digest: str
    state: str
    reason: str | None
    spec: Spec | None = Field(description="null until it is ready")


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class FaultyPlace(BaseModel):
    place: str
    message: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FaultyPlace] = Field(default=[], description="Where bad data is; absent where that is no question.")


_REASONS = {
    400: "Malformed: not JSON, not CSV, not .npy, not Arrow",
    401: "A key is needed, and there is none or an unknown one",
    403: "The key is not for this",
    404: "Unknown model or version",
    408: "The body did not arrive in time",
    409: "It cannot be done as things stand",
    413: "The body is too large",
    415: "Not a content type that is read here",
    422: "Well-formed but wrong; `errors` says where",
    429: "The key has used up its quota for now; see `Retry-After`",
    500: "A pass failed, or an unexpected error",
    503: "Overloaded, shutting down, or no ready model; see `Retry-After`",
    504: "The deadline passed",
}


def refusals(*statuses: int, path: str = "/") -> dict[int | str, dict[str, Any]]:
    """The responses that a route below a path may give besides its own, for OpenAPI."""
    content = dialect_of(path).content
    return {status: {"description": _REASONS[status], "content": content} for status in statuses}


_TABLE = """time,load,temperature
2013-06-01T00:00:00,812.5,17.2
2013-06-01T01:00:00,790.1,
2013-06-01T02:00:00,,16.4
"""


def arrow_of(media_types: Sequence[str], what: str) -> dict[str, Any]:
    """The content of bodies and answers that are Arrow, for OpenAPI."""
    described = {"type": "string", "format": "binary", "description": what}
    return {media_type: {"schema": described} for media_type in media_types}


ARROW_BODY = arrow_of(
    ARROWS,
    "Apache Arrow IPC, a stream or a file: columns as those of `text/csv`, of numbers, times and text; null or NaN is "
    "a missing value. Where the service has the extra `arrow`.",
)


CLIENT_ID: dict[str, Any] = {
    "name": "X-Client-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Who asks, where an alias is split between two versions: the same client gets the same version. "
    "Without it that is who the key belongs to, else the address.",
}
"""The header, for OpenAPI."""


def asking_of(*bodies: type[Body]) -> dict[str, Any]:
    """The header, and a body that is one of these, or a table, or an array, for OpenAPI: routes read it as bytes."""
    schemas = [body.model_json_schema() for body in bodies]
    content = {
        "application/json": {
            "schema": {"anyOf": schemas},
            "examples": {
                "window": {"value": {"window": [[812.5, 17.2], [790.1, None]], "start": "2013-06-01T00:00:00Z"}},
                "windows": {"value": {"windows": [[[812.5, 17.2], [790.1, 16.9]], [[301.7, 17.2], [297.3, 16.9]]]}},
            },
        },
        "text/csv": {
            "schema": {
                "type": "string",
                "description": "A header row that names the model's features in any order, an optional column of times "
                "and one of the series' names; oldest row first. An empty cell is a missing value.",
            },
            "example": _TABLE,
        },
        "application/x-npy": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "A NumPy array [L, C] or [B, L, C] of float32 or float64; NaN is a missing value.",
            },
        },
        **ARROW_BODY,
    }
    return {"parameters": [CLIENT_ID], "requestBody": {"required": True, "content": content}}


TABLE_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON, or CSV or Arrow where `Accept` would rather have it: the series, the time and the step "
        "where there are any, then the targets and the bounds of their intervals",
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": "time,step,load\n2013-06-01T03:00:00Z,1,771.4\n"},
            **arrow_of(ARROWS[:1], "The same columns, typed; the metadata says of which model, version and steps."),
        },
    }
}
"""What the forecasting routes may answer besides their model."""

_TOLD = """{"model":"load","version":2,"digest":"sha256:...","targets":["load"],"steps":2,"attention":null}
{"step":1,"timestamp":"2013-06-01T03:00:00Z","forecast":[771.4]}
{"step":2,"timestamp":"2013-06-01T04:00:00Z","forecast":[768.9]}
{"done":true,"steps":2,"queue_ms":0.1,"inference_ms":0.6}
"""
_FLOWING = TABLE_ANSWER[200]
FLOWING_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"{_FLOWING['description']}; or, as they are computed, a line or an event a step, between what "
        "the model is and what it cost, with an `error` where it could not go on",
        "content": {
            **_FLOWING["content"],
            "application/x-ndjson": {"schema": {"type": "string"}, "example": _TOLD},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
"""The same of those that can tell their steps one by one."""
