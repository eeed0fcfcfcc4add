"""What goes over the wire in the Open Inference Protocol (V2), for the OpenAPI page; and the parameters of a request.

Tensors are read and written by the codec.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from pydantic_core import PydanticCustomError

from app.asked.layout import near
from app.errors import InvalidError, Place
from app.forecasts.bands import BandName
from app.forecasts.predictor import AttentionChoice
from app.schemas import CLIENT_ID

Parameter = str | float | bool
Datatype = Literal["FP32", "FP64", "INT64"]

_SHOWN = 80
_PREFIX = "triton_"
"""What Triton's clients keep for themselves."""
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


def _level(value: object) -> object:
    return f"{value:.7g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_bulk(value: object) -> bool:
    if value in ("interactive", "bulk"):
        return value == "bulk"
    if type(value) is not int or value < 0:
        raise PydanticCustomError("priority", "a whole number from 0 on, `interactive` or `bulk` is needed")
    return value > 1


class InferParameters(BaseModel):
    """Those of a request, but the ones that say how tensors are written; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[StrictInt, Field(ge=1)] | None = None
    level: Annotated[str, BeforeValidator(_level)] | None = None
    band: BandName = "step"
    adaptive: StrictBool = False
    attention: AttentionChoice | None = None
    priority: Annotated[bool, BeforeValidator(_is_bulk)] = False
    """Whether it is bulk work: 2 or more."""
    timeout: Annotated[StrictInt, Field(ge=0)] = 0
    """In microseconds; 0 is none."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "InferParameters":
        """InvalidError naming the parameter."""
        known = {}
        for name, value in given.items():
            if name in _SEQUENCE:
                if value not in (0, "", False):
                    problem = "the service keeps nothing from one request to the next"
                    raise InvalidError(Place(f"parameters.{name}", problem))
            elif name in cls.model_fields:
                known[name] = value
            elif not name.startswith(_PREFIX):
                hint = near(name[:_SHOWN], cls.model_fields) or f"; there are {', '.join(cls.model_fields)}"
                raise InvalidError(Place(f"parameters.{name[:_SHOWN]}", f"unknown parameter{hint}"))
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            places = [Place(f"parameters.{fault['loc'][0]}", fault["msg"]) for fault in error.errors()]
            raise InvalidError(*places) from None

    @property
    def deadline_ms(self) -> int | None:
        """None where there is none."""
        return math.ceil(self.timeout / 1000) or None


# The rest is for the document alone.


class InferParametersDocument(BaseModel):
    """How to answer; see docs/inference-protocol.md."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, description="Rows to forecast; by default those of one pass.")] | None = None
    level: str | float | None = Field(None, description="Percents, such as `80,95`: prediction intervals.")
    band: BandName = Field("step", description="Whether a level holds for each step or for the whole `path`.")
    adaptive: bool = Field(default=False, description="Intervals that have learnt from actuals.")
    attention: AttentionChoice | None = Field(None, description="Which attention rows to return.")
    priority: Annotated[int, Field(ge=0)] | Literal["interactive", "bulk"] = Field(
        0, description="0 and 1 are `interactive`; all above is `bulk`, which gives way."
    )
    timeout: Annotated[int, Field(ge=0)] = Field(0, description="Give up after so many microseconds; 0 is never.")
    binary_data_output: bool = Field(default=False, description="Answer in bytes behind the JSON.")


class InputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    binary_data_size: Annotated[int, Field(ge=0)] | None = Field(
        None, description="So many bytes behind the JSON, instead of `data`."
    )


class InferInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="`WINDOW`, `TIME`, `FUTURE` or `STATIC`.", examples=["WINDOW"])
    datatype: Datatype
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(None, description="Numbers, nested or row by row; null for a gap.")


class OutputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    binary_data: bool = False


class WantedOutput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(examples=["FORECAST"])
    parameters: OutputParameters | None = None


class InferRequest(BaseModel):
    """Tensors."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    parameters: InferParametersDocument | None = None
    inputs: Annotated[list[InferInput], Field(min_length=1)]
    outputs: list[WantedOutput] | None = Field(None, description="Where left out, all that there are.")


class InferOutput(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Parameter] | None = None
    data: list[float] | None = Field(None, description="Row by row; absent where it is in bytes behind the JSON.")


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Parameter]
    outputs: list[InferOutput]


class InferenceError(BaseModel):
    """What every refusal below /v2 is."""

    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerReady(BaseModel):
    live: bool
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1 is a size that the request chooses.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="Those that are ready.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class TensorConfig(BaseModel):
    name: str
    data_type: str
    dims: list[int] = Field(description="Without the number of windows.")


class Batching(BaseModel):
    max_queue_delay_microseconds: int


class ResponseCache(BaseModel):
    enable: bool


class StringValue(BaseModel):
    string_value: str


class ModelConfig(BaseModel):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: Batching
    response_cache: ResponseCache
    parameters: dict[str, StringValue]


class Duration(BaseModel):
    count: int
    ns: int = Field(description="Of all together, in nanoseconds.")


class InferenceStatistics(BaseModel):
    success: Duration
    fail: Duration
    queue: Duration = Field(description="Until the first pass.")
    compute_input: Duration = Field(description="From bytes to an order.")
    compute_infer: Duration = Field(description="On the device.")
    compute_output: Duration = Field(description="From numbers to bytes.")
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int = Field(description="Epoch milliseconds; 0 where there was none.")
    inference_count: int = Field(description="Windows that the model forecast from.")
    execution_count: int = Field(description="Passes on devices, for whatever they were.")
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any] = {}
    batch_stats: list[Any] = []
    memory_usage: list[Any] = []


class Statistics(BaseModel):
    model_stats: list[ModelStatistics]


class IndexRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ready: bool = Field(default=False, description="Only those that are ready.")


class IndexEntry(BaseModel):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING"]
    reason: str = ""


class ChangeParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(None, description="A number, an alias or `latest`.")
    unload_dependents: bool = Field(default=False, description="Nothing depends on a model, so it says nothing here.")


class ChangeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parameters: ChangeParameters = ChangeParameters()


INFER_BODY: dict[str, Any] = {
    "parameters": [
        CLIENT_ID,
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "How much of the body is JSON, where the bytes of tensors follow; 0 is a body that is one "
            "FP32 tensor.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/InferRequest"},
                "example": {
                    "inputs": [{"name": "WINDOW", "datatype": "FP32", "shape": [1, 4, 2], "data": [0.0] * 8}],
                    "parameters": {"steps": 3},
                },
            },
            "application/octet-stream": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "The JSON, and behind it the bytes of tensors: little-endian, row by row.",
                }
            },
        },
    },
}
BINARY_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Tensors; where some are bytes, these come behind the JSON, whose length the header "
        "`Inference-Header-Content-Length` says",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
