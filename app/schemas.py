"""What goes over the wire, for the OpenAPI page and for those who read it. Numbers are not validated one by one here:
the codec reads and writes arrays; a test holds its answers against these models.

Shapes: B windows, L window, F features, N steps, K known-future covariates, T targets.
"""

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.predictor import AttentionChoice
from models.spec import Spec

Row = list[float]
GivenRow = Annotated[list[float], Field(min_length=1)]
GivenRows = Annotated[list[GivenRow], Field(min_length=1)]
GivenTime = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Options(BaseModel):
    """Query parameters of a prediction; an unknown one is refused."""

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
    attention: AttentionChoice = Field("all", description="Which attention rows to return.")
    deadline_ms: Annotated[int, Field(ge=1)] | None = Field(None, description="Give up after this long.")


class ForecastOptions(Options):
    """The same and how far to go."""

    steps: Annotated[int, Field(ge=1)] = Field(description="Rows to forecast, up to the configured ceiling.")


class Body(BaseModel):
    """One window, or several."""

    model_config = ConfigDict(extra="forbid")


# `future` and `start` may be left out but not null; a default that is made, not written down, says just that in the
# document.


class WindowBody(Body):
    window: GivenRows = Field(description="[L][F], oldest row first, columns in the order of the model's features.")
    future: GivenRows = Field(
        default_factory=list, description="[N][K], where (and only where) the model has known-future covariates."
    )
    start: GivenTime = Field(
        default_factory=str,
        description="ISO 8601 time of the first row, UTC where it names no offset; where (and only where) the model "
        "has a clock.",
    )


class WindowsBody(Body):
    windows: Annotated[list[GivenRows], Field(min_length=1)] = Field(description="[B][L][F]")
    future: Annotated[list[GivenRows], Field(min_length=1)] = Field(
        default_factory=list, description="[B][N][K], where (and only where) the model has known-future covariates."
    )
    start: Annotated[list[GivenTime], Field(min_length=1)] = Field(
        default_factory=list,
        description="[B], ISO 8601 times of the first rows, UTC where they name no offset; where (and only where) the "
        "model has a clock.",
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


class Prediction(Answer):
    prediction: Row = Field(description="[T]")
    attention: Attention | None = Field(None, description="null where the model has none; absent where not asked for.")


class Predictions(Answer):
    predictions: list[Row] = Field(description="[B][T]")
    attention: Attentions | None = None


class Forecast(Answer):
    steps: int
    forecast: list[Row] = Field(description="[N][T]")
    attention: Attention | None = Field(None, description="null where the model has none; absent where not asked for.")


class Forecasts(Answer):
    steps: int
    forecasts: list[list[Row]] = Field(description="[B][N][T]")
    attention: Attentions | None = None


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
    400: "Malformed: not JSON",
    404: "Unknown model or version",
    413: "The body is too large",
    415: "Not a content type that is read here",
    422: "Well-formed but wrong; `errors` says where",
    500: "A pass failed, or an unexpected error",
    503: "Overloaded, shutting down, or no ready model; see `Retry-After`",
    504: "The deadline passed",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses that a route may give besides its own, for OpenAPI."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": _REASONS[status], "content": {"application/problem+json": schema}}
        for status in statuses
    }


def body_of(*bodies: type[Body]) -> dict[str, Any]:
    """A request body that is one of these, for OpenAPI: routes read it as bytes."""
    schemas = [body.model_json_schema() for body in bodies]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": schemas}}}}}
