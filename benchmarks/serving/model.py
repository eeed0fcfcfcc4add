"""The model that every server serves, written with its answers: python -m benchmarks.serving.model STORE ANSWERS.npz

Shapes: B windows, L window, F features (all of them targets), N steps, T targets, H steps a pass, K known-future
covariates, M modelled features.
"""

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.serving.workload import (
    CARRIED,
    DEVIATIONS,
    MEANS,
    SEED,
    SLIDING,
    WINDOW,
    Floats,
    asked_forecasts,
    make_windows,
)
from models import artifact
from models.artifact import ForecastModule
from models.core import Shape, SlidingWindow
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from models.networks.attention_lstm import AttentionLSTM, Config
from models.spec import Data, Example, Feature, Metrics, Scores, Span, Spec, Statistics, Training
from models.store import ARCHIVE, Store

START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = Config(hidden=64, layers=2, dropout=0.0, score="additive", attention_size=64)


class SlidingAttentionLSTM(SlidingWindow):
    """The same layers as the carried model, but every step reads the whole window again, as the peers do."""

    attention_rows = 1

    def __init__(self, inner: AttentionLSTM, shape: Shape) -> None:
        super().__init__(CONFIG, shape)
        self.inner = inner

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled, attention, _ = self.inner.step(self.inner.start(inputs), inputs[:, -1:], future)
        return modelled, attention


def publish(root: Path) -> dict[str, Path]:
    """Write both models, of the same weights, into a store; gives their archives."""
    store = Store(root)
    columns = _features()
    shape = Shape(window=WINDOW, horizon=1, roles=tuple(column.role for column in columns))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        carried = CONFIG.build(shape)
    networks = {CARRIED: carried, SLIDING: SlidingAttentionLSTM(carried, shape)}
    versions = {name: _publish(store, name, Forecaster(core, Scaler(columns))) for name, core in networks.items()}
    return {name: store.archive(name, version) for name, version in versions.items()}


def answers(archives: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    """What the archives answer to every window, by the names that `workload.publish` reads."""
    windows = make_windows()
    found: dict[str, NDArray[Any]] = {f"{name}/archive": np.array(str(path)) for name, path in archives.items()}
    prediction, attention = artifact.answer(_load(archives[CARRIED]), *_inputs(windows), 1, 1)
    found |= {"prediction": prediction[:, 0].numpy(), "attention": attention[:, 0].numpy()}
    for name, steps in asked_forecasts():
        forecast, _ = artifact.answer(_load(archives[name]), *_inputs(windows), steps, 1)
        found[f"{name}/{steps}"] = forecast.numpy()
    return found


def _load(archive: Path) -> ForecastModule:
    module: ForecastModule = torch.jit.load(str(archive))
    return module


def _inputs(windows: Floats) -> tuple[Tensor, Tensor, Tensor]:
    count = len(windows)
    return torch.from_numpy(windows), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, 0)


def _features() -> list[Feature]:
    found = []
    for column, (mean, std) in enumerate(zip(MEANS, DEVIATIONS, strict=True)):
        statistics = Statistics(mean=mean, std=std, min=mean - 4 * std, max=mean + 4 * std)
        found.append(Feature(name=f"feature_{column}", role="target", statistics=statistics))
    return found


def _publish(store: Store, name: str, network: Forecaster) -> int:
    network.eval()

    def write(version: int, folder: Path) -> str:
        return artifact.save(network, _spec(network, name, version), folder / ARCHIVE)

    return store.publish(name, write)


def _spec(network: Forecaster, name: str, version: int) -> Spec:
    columns = _features()
    targets = [column.name for column in columns]
    return Spec(
        name=name,
        version=version,
        architecture="attention_lstm",
        config=CONFIG.model_dump(),
        recursion=network.core.recursion,
        features=columns,
        targets=targets,
        window=WINDOW,
        horizon=1,
        attention_rows=1,
        frequency=timedelta(hours=1),
        clock=False,
        gaps="refuse",
        training=_training(),
        metrics=_metrics(targets),
        example=_example(network),
    )


def _example(network: Forecaster, steps: int = 3) -> Example:
    window, time, future = _inputs(make_windows(1))
    with torch.inference_mode():
        forecast, attention = network.rollout(window, time, future, steps)
    return Example(
        window=window[0].tolist(),
        start=None,
        future=None,
        steps=steps,
        forecast=forecast[0].tolist(),
        attention=attention[0].tolist(),
    )


def _training() -> Training:
    """Nothing was trained; a spec has to say something."""
    parts = [START + timedelta(days=days) for days in (0, 70, 80, 100)]
    train, validation, test = (Span(start=start, end=end, windows=100) for start, end in pairwise(parts))
    return Training(
        data=[Data(file="untrained", sha256="0" * 64, rows=1)],
        train=train,
        validation=validation,
        test=test,
        recipe={},
        seed=SEED,
        libraries={"torch": torch.__version__},
        created=START,
    )


def _metrics(targets: Sequence[str]) -> Metrics:
    scores = {target: Scores(mae=[1.0], rmse=[1.0], r2=[0.0], mase=[1.0]) for target in targets}
    baselines = dict.fromkeys(("last_value", "seasonal_naive", "linear"), scores)
    return Metrics(steps=1, windows=1, season=1, model=scores, baselines=baselines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("answers", type=Path)
    options = parser.parse_args()
    np.savez(options.answers, allow_pickle=False, **answers(publish(options.store)))


if __name__ == "__main__":
    main()
