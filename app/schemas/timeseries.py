"""What goes over the wire in KServe's time series API, for the OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.schemas import CLIENT_ID

Kind = Literal["univariate_time_series", "multivariate_time_series"]
Values = list[float] | list[list[float]]
GivenValues = list[float | None] | list[list[float | None]]


class TimeSeriesInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Kind
    name: str
    series: GivenValues = Field(
        description="Values of a model that takes one column, else rows of its columns; oldest first. The last that "
        "the model takes count; null is a gap where the model fills gaps.",
        min_length=1,
    )
    frequency: str = Field(description="That of the model: `H` or `hour`, and so on.", examples=["H"])
    start_timestamp: str | None = Field(
        None, description="ISO 8601 time of the first value; needed where the model has a clock."
    )


class TimeSeriesOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    horizon: Annotated[int, Field(ge=1)]
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None, description="Bounds of prediction intervals: 0.1 is the lower of 80 percent. 0.5 is the forecast itself."
    )


class TimeSeriesRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    inputs: Annotated[list[TimeSeriesInput], Field(min_length=1)]
    options: TimeSeriesOptions
    metadata: dict[str, Any] | None = Field(None, description="Not looked at.")


class TimeSeriesContent(BaseModel):
    type: Kind
    name: str
    mean_forecast: Values
    frequency: str
    start_timestamp: str | None = Field(None, description="Of the first forecast; absent where no time was given.")
    quantiles: dict[str, Values] | None = None


class TimeSeriesOutput(BaseModel):
    type: Literal["time_series_forecast"]
    id: str
    status: Literal["completed"]
    content: list[TimeSeriesContent]
    error: None = None


class TimeSeriesResponse(BaseModel):
    id: str
    created_at: int
    status: Literal["completed"]
    error: None = None
    model: str
    outputs: list[TimeSeriesOutput] = Field(description="One for every input, in order.")


class TimeSeriesFault(BaseModel):
    code: str
    message: str
    param: str | None
    type: str


class TimeSeriesError(BaseModel):
    """What every refusal below /v1/timeseries is."""

    error: TimeSeriesFault


TIMESERIES_BODY: dict[str, Any] = {
    "parameters": [CLIENT_ID],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TimeSeriesRequest"}}},
    },
}
