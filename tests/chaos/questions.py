"""Requests whose right answers are known from the archives themselves, and what is wrong with an answer.

    oracle = Oracle(store_root)
    asked = forecasts(oracle, "tiny", count=64)

Nothing here asks the service: an answer is compared with what the archive says when it is read and rolled out offline.
Shapes: B windows, L window, F features, N steps, T targets.
"""

import contextlib
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from models import artifact
from models.store import Store, StoreError

Floats = NDArray[np.float32]

_TOLERANCE = 1e-4
"""Relative and absolute: sums are in another order in a batch of another size."""
_BOUNDED_ROWS = 8
"""Windows in the largest request of the pool."""


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and what is wrong with an answer to it."""

    label: str
    target: str
    """Path and query."""
    body: bytes
    headers: Mapping[str, str]
    fault: Callable[[Reply], str]
    """What is wrong with an answer of the expected status; "" for a right one."""
    expects: int = 200
    method: str = "POST"

    def wire(self, identity: str, host: str = "chaos") -> bytes:
        """The bytes of the request with this id."""
        lines = [
            f"{self.method} {self.target} HTTP/1.1",
            f"Host: {host}",
            f"X-Request-ID: {identity}",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Oracle:
    """What the published archives say, read and run offline."""

    def __init__(self, root: Path, versions: frozenset[int] | None = None) -> None:
        """Only answers of these versions are right; of whatever the index lists where None."""
        self._store = Store(root)
        self._versions = versions
        self._listed: dict[str, dict[int, str]] = {}
        self._loaded: dict[tuple[str, int], artifact.Artifact] = {}
        self._said: dict[tuple[str, int, int], Floats] = {}
        self._asked: list[tuple[Floats, int]] = []

    @property
    def registered(self) -> int:
        """How many windows are."""
        return len(self._asked)

    def register(self, windows: Floats, steps: int) -> int:
        """A number for windows [B, L, F] that will be asked about."""
        self._asked.append((windows, steps))
        return len(self._asked) - 1

    def digest(self, model: str, version: int) -> str | None:
        """What the index lists, or has listed; None of a version that may not answer."""
        if version not in self._listed.get(model, {}):
            # It may have come since. An index that cannot be read just now lists what it did.
            with contextlib.suppress(StoreError, KeyError):
                self._listed[model] = {**self._listed.get(model, {}), **self._store.index().models[model].versions}
        return self._listed.get(model, {}).get(version) if self._may_answer(version) else None

    def versions(self, model: str) -> list[int]:
        """Those that may answer, as far as they are known."""
        self.digest(model, 0)
        return sorted(filter(self._may_answer, self._listed[model]))

    def _may_answer(self, version: int) -> bool:
        return self._versions is None or version in self._versions

    def right(self, model: str, version: int, number: int) -> Floats:
        """The forecast [B, N, T] of registered windows."""
        key = (model, version, number)
        if key not in self._said:
            windows, steps = self._asked[number]
            module = self._read(model, version).module
            with torch.inference_mode():
                times = torch.zeros(len(windows), dtype=torch.int64)
                forecast, _ = module.rollout(
                    torch.from_numpy(windows), times, torch.zeros(len(windows), steps, 0), steps
                )
            self._said[key] = forecast.numpy()
        return self._said[key]

    def spec(self, model: str, version: int) -> artifact.Spec:
        """What the archive says of itself."""
        return self._read(model, version).spec

    def _read(self, model: str, version: int) -> artifact.Artifact:
        if (model, version) not in self._loaded:
            if version not in self._listed.get(model, {}):
                self._listed[model] = dict(self._store.index().models[model].versions)
            digest = self._listed[model][version]
            self._loaded[model, version] = artifact.load(self._store.archive(model, version), digest=digest)
        return self._loaded[model, version]


def forecasts(
    oracle: Oracle, model: str = "tiny", *, count: int = 64, deadline_ms: int | None = None, options: str = ""
) -> list[Question]:
    """A pool of different questions: /predict and /forecast, one window and several, JSON, CSV and npy.

    For models without clock, known-future and static features. What they say is computed before this returns.
    """
    versions = oracle.versions(model)
    spec = oracle.spec(model, versions[0])
    names = [feature.name for feature in spec.features]
    statistics = [feature.statistics for feature in spec.features]
    mean = np.array([one.mean for one in statistics], np.float32)
    spread = np.array([one.std for one in statistics], np.float32)
    dice = np.random.default_rng(20261121)
    patience = f"&deadline_ms={deadline_ms}" if deadline_ms else ""
    found = []
    first = oracle.registered
    for number in range(count):
        make = _KINDS[number % len(_KINDS)]
        windows = dice.normal(mean, spread, (_BOUNDED_ROWS, spec.window, len(names))).astype(np.float32)
        query = f"?model={model}{patience}{options}"
        found.append(make(oracle, model, windows, names, query))
    for version in versions:
        for number in range(first, first + count):
            oracle.right(model, version, number)
    return found


def _predict(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:1], 1)
    return _json("predict", f"/predict{query}", {"window": windows[0].tolist()}, oracle, model, number, "prediction")


def _predict_many(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:3], 1)
    body = {"windows": windows[:3].tolist()}
    return _json("predict 3", f"/predict{query}", body, oracle, model, number, "predictions")


def _forecast(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:1], 24)
    body = {"window": windows[0].tolist()}
    return _json("forecast 24", f"/forecast{query}&steps=24", body, oracle, model, number, "forecast")


def _forecast_many(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:5], 3)
    body = {"windows": windows[:5].tolist()}
    return _json("forecast 3 of 5", f"/forecast{query}&steps=3", body, oracle, model, number, "forecasts")


def _forecast_table(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:1], 12)
    rows = [",".join(names), *(",".join(map(repr, row)) for row in windows[0].astype(float).tolist())]
    headers = {"Content-Type": "text/csv", "Accept": "text/csv"}
    body = "\n".join(rows).encode()
    return Question("CSV", f"/forecast{query}&steps=12", body, headers, _TableFault(oracle, model, number))


def _forecast_array(oracle: Oracle, model: str, windows: Floats, names: Sequence[str], query: str) -> Question:
    number = oracle.register(windows[:4], 6)
    file = io.BytesIO()
    np.save(file, windows[:4])
    fault = _JsonFault(oracle, model, number, "forecasts")
    headers = {"Content-Type": "application/x-npy"}
    return Question("npy", f"/forecast{query}&steps=6", file.getvalue(), headers, fault)


_KINDS = (_predict, _forecast, _predict_many, _forecast_table, _predict, _forecast_many, _forecast_array, _forecast)


def _json(label: str, target: str, body: object, oracle: Oracle, model: str, number: int, field: str) -> Question:
    headers = {"Content-Type": "application/json"}
    return Question(label, target, orjson.dumps(body), headers, _JsonFault(oracle, model, number, field))


@dataclass(frozen=True, slots=True)
class _JsonFault:
    """Whether a JSON answer is of a version that may answer, and says what that version says."""

    oracle: Oracle
    model: str
    number: int
    field: str

    def __call__(self, reply: Reply) -> str:
        if reply.headers.get("content-type") != "application/json":
            return f"content type {reply.headers.get('content-type')}"
        try:
            said = orjson.loads(reply.body)
            version, digest, numbers = said["version"], said["digest"], np.array(said[self.field], np.float32)
        except (ValueError, KeyError, TypeError) as error:
            return f"malformed: {type(error).__name__} {error}"
        if said["model"] != self.model or digest != self.oracle.digest(self.model, version) or digest is None:
            return f"of {said['model']} version {version}, digest {digest}"
        right = self.oracle.right(self.model, version, self.number)
        wanted = right if self.field.endswith("s") else right[0]
        return difference(numbers, wanted[..., 0, :] if self.field.startswith("prediction") else wanted)


@dataclass(frozen=True, slots=True)
class _TableFault:
    """A table names no version: it must be what some version that may answer says."""

    oracle: Oracle
    model: str
    number: int

    def __call__(self, reply: Reply) -> str:
        if reply.headers.get("content-type") != "text/csv; charset=utf-8":
            return f"content type {reply.headers.get('content-type')}"
        rows = list(csv.reader(io.StringIO(reply.body.decode())))
        targets = self.oracle.spec(self.model, self.oracle.versions(self.model)[0]).targets
        if rows[0] != ["step", *targets]:
            return f"header {rows[0]}"
        try:
            numbers = np.array([row[1:] for row in rows[1:]], np.float32)
        except ValueError as error:
            return f"malformed: {error}"
        versions = self.oracle.versions(self.model)
        faults = [difference(numbers, self.oracle.right(self.model, one, self.number)[0]) for one in versions]
        return "" if "" in faults else faults[0]


def difference(numbers: Floats, right: Floats) -> str:
    """How numbers differ from the right ones; "" where they do not."""
    if numbers.shape != right.shape:
        return f"shape {numbers.shape}, not {right.shape}"
    if np.allclose(numbers, right, rtol=_TOLERANCE, atol=_TOLERANCE):
        return ""
    return f"numbers off by {np.abs(numbers - right).max():.3g}"
