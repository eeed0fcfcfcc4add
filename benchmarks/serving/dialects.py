"""How each server is asked and where its answers lie. Needs no torch: the load generator imports it.

Shapes: B windows, L window, F features, N steps.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_JSON = {"Content-Type": "application/json"}


class WrongAnswerError(Exception):
    """A server did not answer what the model says: none of its numbers count."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to send."""

    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Field:
    """Numbers in an answer: the way to them in the parsed JSON (`=name` picks the tensor of that name)."""

    path: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """The same as a Lua pattern that ends where the numbers begin."""
        parts = [f'"{part}"%s*:%s*' for part in self.path if part[0] != "=" and part != "outputs"]
        tensors = [f'"name"%s*:%s*"{part[1:]}".-' for part in self.path if part[0] == "="]
        return "".join(tensors) + ".-".join(parts)


Fields = tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Requests to post in turn, and for each the numbers that must come back, field by field."""

    requests: list[Request]
    fields: Fields
    expected: list[list[list[float]]]
    tolerances: list[list[float]]
    """By field; how far a number may be off, repeated along the field."""

    def check(self, index: int, answer: bytes) -> None:
        """WrongAnswerError where the answer to that request is not what the model says."""
        try:
            found = json.loads(answer)
            numbers = [list(flatten(dig(found, field.path))) for field in self.fields]
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise WrongAnswerError(f"cannot read {answer[:200]!r}: {error!r}") from error
        for field, got, wanted, tolerances in zip(
            self.fields, numbers, self.expected[index], self.tolerances, strict=True
        ):
            place = "/".join(field.path)
            if len(got) != len(wanted):
                raise WrongAnswerError(f"{place}: {len(got)} numbers, expected {len(wanted)}")
            for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
                # `not <=`: a NaN must not pass.
                if not abs(one - other) <= tolerances[number % len(tolerances)]:
                    raise WrongAnswerError(f"{place}[{number}]: {one}, expected {other}")

    def to_json(self) -> dict[str, Any]:
        """For the load generator, which is a process of its own."""
        return {
            "requests": [[request.path, request.body.hex(), request.headers] for request in self.requests],
            "fields": [field.path for field in self.fields],
            "expected": self.expected,
            "tolerances": self.tolerances,
        }

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Task":
        """The inverse."""
        requests = [Request(path, bytes.fromhex(body), headers) for path, body, headers in given["requests"]]
        fields = tuple(Field(tuple(path)) for path in given["fields"])
        return cls(requests, fields, given["expected"], given["tolerances"])


def dig(answer: Any, path: Sequence[str]) -> Any:  # noqa: ANN401  JSON
    """What lies at a path."""
    for part in path:
        named = part.startswith("=")
        answer = next(item for item in answer if item["name"] == part[1:]) if named else answer[part]
    return answer


def flatten(value: Any) -> Iterator[float]:  # noqa: ANN401  JSON
    """Nested lists, number by number."""
    if isinstance(value, list):
        for item in value:
            yield from flatten(item)
    else:
        yield float(value)


class Dialect(Protocol):
    """How to ask for what, and where the answer is. `texts` are windows written as JSON."""

    def predict(self, text: str) -> Request: ...
    def predict_many(self, texts: Sequence[str]) -> Request: ...
    def forecast(self, text: str, steps: int) -> Request: ...
    def predict_binary(self, window: Floats) -> Request | None: ...

    prediction: ClassVar[Fields]
    """The next step and its attention."""
    predictions: ClassVar[Fields]
    forecasted: ClassVar[Fields]


class Plain:
    """The peers that leave the interface to the user: a window or windows in, what was computed out."""

    prediction: ClassVar[Fields] = (Field(("prediction",)), Field(("attention",)))
    predictions: ClassVar[Fields] = (Field(("predictions",)), Field(("attentions",)))
    forecasted: ClassVar[Fields] = (Field(("forecast",)),)

    def predict(self, text: str) -> Request:
        return Request("/predict", f'{{"window":{text}}}'.encode(), _JSON)

    def predict_many(self, texts: Sequence[str]) -> Request:
        return Request("/predict", f'{{"windows":[{",".join(texts)}]}}'.encode(), _JSON)

    def forecast(self, text: str, steps: int) -> Request:
        return Request("/forecast", f'{{"window":{text},"steps":{steps}}}'.encode(), _JSON)

    def predict_binary(self, window: Floats) -> Request | None:  # noqa: ARG002  for dialects that have one
        return None


class Foretell:
    """Foretell, with the model named as one of several."""

    prediction: ClassVar[Fields] = (Field(("prediction",)), Field(("attention", "weights")))
    predictions: ClassVar[Fields] = (Field(("predictions",)), Field(("attention", "weights")))
    forecasted: ClassVar[Fields] = (Field(("forecast",)),)

    def __init__(self, model: str) -> None:
        self._model = model

    def predict(self, text: str) -> Request:
        return Request(f"/predict?model={self._model}", f'{{"window":{text}}}'.encode(), _JSON)

    def predict_many(self, texts: Sequence[str]) -> Request:
        return Request(f"/predict?model={self._model}", f'{{"windows":[{",".join(texts)}]}}'.encode(), _JSON)

    def forecast(self, text: str, steps: int) -> Request:
        # The peers answer a forecast without attention, too.
        path = f"/forecast?model={self._model}&steps={steps}&attention=none"
        return Request(path, f'{{"window":{text}}}'.encode(), _JSON)

    def predict_binary(self, window: Floats) -> Request | None:
        """A body in numpy's own format; a build that does not read it says 415, and the section leaves it out."""
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {window.shape}, }}".encode()
        header += b" " * (-(len(header) + 11) % 64) + b"\n"
        body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + window.astype("<f4").tobytes()
        return Request(f"/predict?model={self._model}", body, {"Content-Type": "application/x-npy"})


class V2:
    """The Open Inference Protocol; a tensor's numbers in one flat list, as its reference clients send them."""

    prediction: ClassVar[Fields] = (Field(("outputs", "=prediction", "data")), Field(("outputs", "=attention", "data")))
    predictions: ClassVar[Fields] = prediction
    forecasted: ClassVar[Fields] = (Field(("outputs", "=forecast", "data")),)

    def __init__(self, *, binary: bool, window: int, features: int) -> None:
        self._binary = binary
        self._row = f"{window},{features}"

    def predict(self, text: str) -> Request:
        return self.predict_many([text])

    def predict_many(self, texts: Sequence[str]) -> Request:
        return Request("/v2/models/predict/infer", f'{{"inputs":[{self._windows(texts)}]}}'.encode(), _JSON)

    def forecast(self, text: str, steps: int) -> Request:
        count = f'{{"name":"steps","shape":[1,1],"datatype":"INT32","data":[{steps}]}}'
        body = f'{{"inputs":[{self._windows([text])},{count}]}}'
        return Request("/v2/models/forecast/infer", body.encode(), _JSON)

    def predict_binary(self, window: Floats) -> Request | None:
        """The binary tensor data extension: a JSON header, then the numbers; the answer stays JSON."""
        if not self._binary:
            return None
        raw = window.astype("<f4").tobytes()
        about = {"name": "window", "shape": [1, *window.shape], "datatype": "FP32"}
        head = json.dumps({"inputs": [about | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return Request("/v2/models/predict/infer", head + raw, headers)

    def _windows(self, texts: Sequence[str]) -> str:
        flat = ",".join(re.sub(r"[\[\]]", "", text) for text in texts)
        return f'{{"name":"window","shape":[{len(texts)},{self._row}],"datatype":"FP32","data":[{flat}]}}'
