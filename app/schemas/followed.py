"""What goes over the wire about windows and the rows that followed them, for the OpenAPI page and for its readers.

Shapes: B windows, n rows that followed, T targets.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.schemas import Answer, Choices, GappyRows, GivenTime, RowsBounds, WindowBody, WindowsBody, WindowsBounds

_DEADLINE = Field(None, description="Give up after this long.")
_BY_ROW = "[n][T], or [B][n][T] for several windows; null where the actual value is."


class ActualsOptions(BaseModel):
    """Query parameters beside actuals."""

    model_config = ConfigDict(extra="forbid")

    deadline_ms: Annotated[int, Field(ge=1)] | None = _DEADLINE


class AnomaliesOptions(Choices):
    """Which model, and what counts as an anomaly."""

    level: str = Field(
        "95",
        description="Percent: what is outside of the prediction interval of this level is an anomaly.",
        # Said, not held: what is no level is told better where levels are read.
        json_schema_extra={"pattern": r"^[1-9]\d?(\.\d{1,3})?$"},
    )
    deadline_ms: Annotated[int, Field(ge=1)] | None = _DEADLINE


class ActualBody(WindowBody):
    """A window as it was asked about, and what followed."""

    actual: GappyRows = Field(
        description="[n][T], the targets in the rows that followed the window, the next one first; null for a value "
        "that is not known."
    )


class ActualsBody(WindowsBody):
    """The same of several."""

    actuals: Annotated[list[GappyRows], Field(min_length=1)] = Field(
        description="[B][n][T], like `actual`; n may differ from window to window."
    )


Values = list[list[float | None]]
Flags = list[list[bool | None]]


class Learnt(BaseModel):
    """How much adaptive intervals have learnt from."""

    actuals: int = Field(description="Actual values of this version that have moved them so far.")


class Compared(Answer):
    """What every such answer has."""

    timestamps: list[GivenTime] | list[list[GivenTime]] | None = Field(
        None, description="[n], or [B][n]; absent where the request did not say when the window was."
    )


class Errors(Compared):
    errors: Values | list[Values] = Field(description=f"Forecast less actual: {_BY_ROW}")
    covered: dict[str, Flags | list[Flags]] | None = Field(
        None,
        description="By level in percent, whether the calibrated interval held the actual value: [n][T], or [B][n][T]; "
        "null where that is, and beyond the calibrated steps. Absent where the model has no intervals.",
    )
    adaptive: Learnt | None = Field(
        None,
        description="null where what they learnt cannot be read or written now; absent where the model has no "
        "intervals.",
    )
    counted: int = Field(description="Actual values that had not been posted before and count in metrics.")


class Anomalies(Compared):
    level: str
    expected: list[list[float]] | list[list[list[float]]] = Field(description="The forecast: [n][T], or [B][n][T].")
    intervals: dict[str, RowsBounds | WindowsBounds] = Field(description="Of that level.")
    p_values: Values | list[Values] = Field(
        description=f"How likely one is that fits the forecast no better, among errors as in calibration: {_BY_ROW}"
    )
    anomalous: Flags | list[Flags] = Field(description=f"Whether that is 1 - level / 100 or less: {_BY_ROW}")


def followed_body() -> dict[str, Any]:
    """The request body of such routes, for OpenAPI: they read it as bytes."""
    content = {
        "application/json": {
            "schema": {"anyOf": [body.model_json_schema() for body in (ActualBody, ActualsBody)]},
            "examples": {
                "window": {
                    "value": {
                        "window": [[812.5, 17.2], [790.1, 16.9]],
                        "start": "2013-06-01T00:00:00Z",
                        "actual": [[771.4], [None]],
                    }
                }
            },
        }
    }
    return {"requestBody": {"required": True, "content": content}}
