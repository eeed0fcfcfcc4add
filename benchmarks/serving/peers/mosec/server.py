"""Mosec: a parsing stage and a model stage, dynamic batching up to 64.

- Two stages, as its documentation recommends for CPU work beside inference: parsing runs while the model computes.
  Two parsing processes, one a core, were a little better here than one at 128 connections and no worse below.
- `max_wait_time`: its README says less than the time of a batch, which is some tens of milliseconds here; 1 ms is the
  least that there is, and a lone client waits for all of it. While a batch runs, the next one fills by itself.
- orjson for both ends: serialisation is left to the user there.
- Each endpoint has stages of its own, so a long forecast does not stand before a one-step request.
Its arguments (--port, --address, --timeout, --log-level) are read by Mosec itself.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from mosec import Runtime, Server, Worker
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BATCH = 64
MAX_WAIT_MS = 1
PARSERS = 2


class Parse(Worker):
    """Bytes -> float32 [n, L, F], and whether it was a single window, and the steps asked for."""

    def deserialize(self, data: bytes) -> Any:  # noqa: ANN401  as Mosec has it
        return orjson.loads(data)

    def forward(self, data: dict[str, Any]) -> tuple[Floats, bool, int]:
        single = "window" in data
        windows = np.array([data["window"]] if single else data["windows"], np.float32)
        return windows, single, data.get("steps", 1)


class Model(Worker):
    """A stage with the model; orjson writes numpy arrays as they are."""

    def __init__(self) -> None:
        super().__init__()
        # Here and not above, so that the parsing processes do without torch.
        from network import Network

        self.network = Network(Path(os.environ["BENCHMARK_ARCHIVE"]))

    def serialize(self, data: Any) -> bytes:  # noqa: ANN401  as Mosec has it
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


class Predict(Model):
    """One step; the windows of several requests become one batch."""

    def forward(self, data: list[tuple[Floats, bool, int]]) -> list[dict[str, Any]]:
        forecast, attention = self.network.predict(np.concatenate([windows for windows, _, _ in data]))
        forecast, attention = np.ascontiguousarray(forecast), np.ascontiguousarray(attention)
        answers: list[dict[str, Any]] = []
        start = 0
        for windows, single, _ in data:
            end = start + len(windows)
            if single:
                answers.append({"prediction": forecast[start], "attention": attention[start]})
            else:
                answers.append({"predictions": forecast[start:end], "attentions": attention[start:end]})
            start = end
        return answers


class Forecast(Model):
    """Many steps, by predicting one after the other."""

    def forward(self, data: list[tuple[Floats, bool, int]]) -> list[dict[str, Any]]:
        windows = np.concatenate([windows for windows, _, _ in data])
        return [{"forecast": found} for found in self.network.forecast(windows, [steps for _, _, steps in data])]


def main() -> None:
    server = Server()
    models = {"predict": Predict, "forecast": Forecast}
    server.register_runtime(
        {
            f"/{name}": [
                Runtime(Parse, num=PARSERS),
                Runtime(models[name], num=1, max_batch_size=BATCH, max_wait_time=MAX_WAIT_MS, timeout=60),
            ]
            for name in os.environ.get("BENCHMARK_ENDPOINTS", "predict,forecast").split(",")
        }
    )
    server.run()


if __name__ == "__main__":
    main()
