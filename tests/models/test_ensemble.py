"""Several networks as one artifact: the mean of what each would say alone, whatever kinds they are."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models import artifact, networks
from models.core import Core
from models.ensemble import Ensemble
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from tests import builders

ROLES = ("past", "target", "future", "target")
STEPS = 5
MEMBERS: list[tuple[str, dict[str, Any], int]] = [
    ("lstm", {"hidden": 4, "layers": 1}, 8),
    ("attention_lstm", {"hidden": 4, "layers": 1, "cycle": 6}, 12),
    ("linear", {"normalisation": "last"}, 9),
    ("attention_lstm", {"hidden": 4, "layers": 2, "normalisation": "robust"}, 5),
]


def members(*, horizon: int = 2) -> list[Forecaster]:
    return [
        builders.network(architecture, config, roles=ROLES, window=window, horizon=horizon, seed=seed)
        for seed, (architecture, config, window) in enumerate(MEMBERS)
    ]


def together(parts: list[Forecaster]) -> Forecaster:
    return Forecaster(Ensemble([part.core for part in parts], 14), Scaler(builders.features(ROLES))).eval()


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    """Each member reads its own part of the window and goes on from its own forecasts."""
    parts = members()
    network = together(parts)
    window, time, future = builders.inputs(network, 3, STEPS)

    with torch.inference_mode():
        forecast, attention = network.rollout(window, time, future, STEPS)
        alone = [part.rollout(window[:, -part.core.shape.window :], time, future, STEPS) for part in parts]

    assert network.core.shape.window == 14
    torch.testing.assert_close(forecast, torch.stack([found for found, _ in alone]).mean(0))
    shared = (alone[1][1] + torch.nn.functional.pad(alone[3][1], (7, 0))) / 2
    shared = torch.nn.functional.pad(shared, (2, 0))
    torch.testing.assert_close(attention, shared)
    assert network.core.clock
    assert network.core.recursion == "sliding"


def test_an_ensemble_is_an_artifact_like_any_other(tmp_path: Path) -> None:
    """It scripts, merges and splits by row, goes on from what came, and is read back as it was."""
    network = together(members())
    window, time, future = builders.inputs(network, 3, 4)
    module = artifact.export(network, window, time, future, STEPS)

    rolled, _ = module.rollout(window, time, future, 4)
    states = [module.encode(window[row : row + 1], time[row : row + 1]) for row in range(3)]
    merged = [torch.cat(list(parts)) for parts in zip(*reversed(states), strict=True)]
    stepped, _, following = module.decode(merged, future.flip(0)[:, :2])

    torch.testing.assert_close(stepped.flip(0), rolled[:, :2], rtol=1e-4, atol=1e-4)
    assert all(len(tensor) == 3 for tensor in following)
    spec = builders.spec_for(network, architecture="linear", steps=STEPS)
    digest = artifact.save(network, spec, tmp_path / "model.pt")
    assert artifact.load(tmp_path / "model.pt", digest=digest).spec.attention_rows == 1


def test_a_corrected_ensemble_corrects_every_member() -> None:
    """What really came is given to each."""
    parts = members()
    core = together(parts).core
    window = torch.randn(3, 14, 4)
    time = torch.arange(3)
    came, future = torch.randn(3, 2, 4), torch.zeros(3, 2, 1)

    with torch.inference_mode():
        state = core.correct(core.decode(core.encode(window, time), future)[2], came)
        found, *_ = core.decode(state, future)
        alone = [after(part.core, window, time, came, future) for part in parts]

    torch.testing.assert_close(found, torch.stack(alone).mean(0))


def after(core: Core, window: Tensor, time: Tensor, came: Tensor, future: Tensor) -> Tensor:
    """What a network forecasts after `came`."""
    _, _, state = core.decode(core.encode(window[:, -core.shape.window :], time), future)
    return core.decode(core.correct(state, came), future)[0]


def test_members_that_do_not_fit_are_refused() -> None:
    """Another horizon, or another number of attention rows, cannot be averaged."""
    with pytest.raises(ValueError, match="agree in all but their windows"):
        Ensemble([members()[0].core, members(horizon=3)[0].core], 8)
    columns = builders.features(ROLES)
    one, other = (
        networks.build(
            "segment_lstm", {"segment": rows}, columns, networks.shape_of(columns, window=24, horizon=6)
        ).core
        for rows in (3, 6)
    )
    with pytest.raises(ValueError, match=r"as many attention rows a pass; got \[1, 2\]"):
        Ensemble([one, other], 24)


def test_the_heads_of_an_ensemble_are_those_of_its_members() -> None:
    """One member's behind the other's, each over the newest rows that it reads; those without several have none."""
    config = {"hidden": 4, "heads": 2}
    parts = [
        builders.network(architecture, options, roles=ROLES, window=window, seed=window)
        for architecture, options, window in (
            ("transformer", config, 9),
            ("lstm", {"hidden": 4}, 8),
            ("transformer_lstm", config | {"heads": 4, "cycle": 6}, 6),
        )
    ]
    network = together(parts)
    window, time, future = builders.inputs(network, 3, STEPS)

    module = cast(Forecaster, artifact.export(network, window, time, future, STEPS))
    found = module.heads(window, time)

    assert network.core.attention_heads == 6
    seen = [parts[index].heads(window[:, -rows:], time) for index, rows in ((0, 9), (2, 6))]
    expected = [torch.nn.functional.pad(one, (14 - one.size(2), 0)) for one in seen]
    torch.testing.assert_close(found, torch.cat(expected, 1))
