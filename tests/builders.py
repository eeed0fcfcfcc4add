"""Small models for tests, made on the spot: random weights from a fixed seed, a complete spec, an example that holds.

    store = Store(tmp_path)
    publish_tiny(store, "load", roles=("target", "past", "future"), horizon=3)

Shapes: B rows, L window, F features, H steps a pass, N steps, K features known ahead.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import artifact, networks
from models.core import Shape, Surroundings
from models.forecaster import Forecaster
from models.spec import Data, Example, Feature, Metrics, Role, Scores, Span, Spec, Statistics, Training
from models.store import ARCHIVE, Store

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def features(roles: Sequence[Role], *, shift: float = 0.0, factor: float = 1.0) -> list[Feature]:
    """One feature a role, named `<role>_<column>`, each with a level and a spread of its own.

    `shift` and `factor` give the same features in another unit: every value x becomes x * factor + shift.
    """
    found = []
    for column, role in enumerate(roles):
        mean, std = (10.0 + 5 * column) * factor + shift, (1.0 + column) * factor
        statistics = Statistics(mean=mean, std=std, min=mean - 3 * std, max=mean + 3 * std)
        found.append(Feature(name=f"{role}_{column}", role=role, unit="", statistics=statistics))
    return found


def network(
    architecture: str = "linear",
    config: Mapping[str, Any] | None = None,
    *,
    roles: Sequence[Role] = ("target",),
    window: int = 8,
    horizon: int = 1,
    quantiles: int = 0,
    surroundings: Surroundings = networks.PLAIN,
    seed: int = 0,
) -> Forecaster:
    """A network in its shell, untrained and ready to answer (in evaluation mode)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        columns = features(roles)
        shape = networks.shape_of(columns, window=window, horizon=horizon, quantiles=quantiles)
        built = networks.build(architecture, config or {}, columns, shape, surroundings)
    return built.eval()


def inputs(network: Forecaster, rows: int, steps: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Plausible raw values for a network: window [B, L, F], time [B], future [B, N, K]."""
    random = torch.Generator().manual_seed(seed)
    scaler, shape = network.scaler, network.core.shape
    window = torch.randn(rows, shape.window, shape.features, generator=random) * scaler.scale + scaler.shift
    time = int(START.timestamp()) + 3600 * torch.arange(rows)
    future = torch.randn(rows, steps, shape.known, generator=random) * scaler.future_scale + scaler.future_shift
    # A static feature has one value, then and now; the known ones ahead are in the order of the columns.
    known = [column for column, role in enumerate(shape.roles) if role == "future"]
    for column in shape.static:
        window[:, :, column] = window[:, :1, column]
        future[:, :, known.index(column)] = window[:, :1, column]
    return window, time, future


def example_of(network: Forecaster, *, steps: int | None = None, clock: bool = False) -> Example:
    """A request and what the network answers; by default two passes and a part of a third."""
    steps = steps or 2 * network.horizon + 1
    window, time, future = inputs(network, 1, steps)
    with torch.inference_mode():
        forecast, attention = network.rollout(window, time, future, steps)
    shape = network.core.shape
    given = [column for column in range(shape.features) if column not in shape.static]
    known = [column for column, role in enumerate(shape.roles) if role == "future"]
    ahead = [place for place, column in enumerate(known) if column not in shape.static]
    return Example(
        window=window[0][:, given].tolist(),
        # `inputs` gives the time of the last row.
        start=START - (network.core.shape.window - 1) * HOUR if clock else None,
        future=future[0][:, ahead].tolist() if ahead else None,
        static=window[0, 0, list(shape.static)].tolist() if shape.static else None,
        steps=steps,
        forecast=forecast[0].tolist(),
        attention=attention[0].tolist(),
    )


def roles_of(shape: Shape) -> list[Role]:
    """The roles of the features that a shape was asked for."""
    return ["static" if column in shape.static else role for column, role in enumerate(shape.roles)]


def spec_for(
    network: Forecaster,
    *,
    name: str = "tiny",
    version: int = 1,
    architecture: str = "linear",
    config: Mapping[str, Any] | None = None,
    steps: int | None = None,
    clock: bool = False,
    **fields: object,
) -> Spec:
    """A complete spec of a network made by `network`; `fields` replace whatever they name (`intervals=...`)."""
    shape = network.core.shape
    columns = features(roles_of(shape))
    complete: dict[str, Any] = {
        "name": name,
        "version": version,
        "architecture": architecture,
        "config": networks.config_of(architecture)(**(config or {})).model_dump(),
        "recursion": network.core.recursion,
        "features": columns,
        "targets": [feature.name for feature in columns if feature.role == "target"],
        "window": shape.window,
        "horizon": shape.horizon,
        "attention_rows": network.attention_rows,
        "frequency": HOUR,
        "clock": clock,
        "gaps": "refuse",
        "training": _training(),
        "metrics": _metrics([feature.name for feature in columns if feature.role == "target"]),
        "example": example_of(network, steps=steps, clock=clock),
    }
    return Spec(**(complete | fields))


def publish_tiny(
    store: Store,
    name: str = "tiny",
    *,
    architecture: str = "linear",
    config: Mapping[str, Any] | None = None,
    roles: Sequence[Role] = ("target",),
    window: int = 8,
    horizon: int = 1,
    quantiles: int = 0,
    surroundings: Surroundings = networks.PLAIN,
    table: bytes | None = None,
    seed: int = 0,
    **fields: object,
) -> int:
    """Publish a tiny model and give its version; the digest is in `store.index()`.

    Another `seed` gives other weights, and `fields` go to `spec_for`: `clock=True`, `steps=24`, `intervals=...`.
    """
    built = network(
        architecture,
        config,
        roles=roles,
        window=window,
        horizon=horizon,
        quantiles=quantiles,
        surroundings=surroundings,
        seed=seed,
    )
    said = {
        "gaps": surroundings.gaps or "refuse",
        "shortest": window - 3 if surroundings.short else None,
        "calendar": surroundings.calendar,
        "timezone": surroundings.timezone,
        "clock": built.core.clock,
        "quantiles": tuple((index + 1) / (quantiles + 1) for index in range(quantiles)),
    }

    def write(version: int, folder: Path) -> str:
        spec = spec_for(
            built, name=name, version=version, architecture=architecture, config=config, **{**said, **fields}
        )
        return artifact.save(built, spec, folder / ARCHIVE, table)

    return store.publish(name, write)


def _training() -> Training:
    parts = [START + timedelta(days=days) for days in (0, 70, 80, 100)]
    spans = [Span(start=start, end=end, windows=100) for start, end in pairwise(parts)]
    return Training(
        data=[Data(file="tiny.csv", sha256="0" * 64, rows=2400)],
        train=spans[0],
        validation=spans[1],
        test=spans[2],
        recipe={"epochs": 1},
        seed=0,
        libraries={"torch": torch.__version__},
        created=START,
    )


def _metrics(targets: Sequence[str]) -> Metrics:
    scores = {target: Scores(mae=[1.0], rmse=[1.5], r2=[0.5], mase=[0.9]) for target in targets}
    baselines = dict.fromkeys(("last_value", "seasonal_naive", "linear"), scores)
    return Metrics(steps=1, windows=100, season=24, model=scores, baselines=baselines)
