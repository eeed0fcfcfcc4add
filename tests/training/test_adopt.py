"""A module trained elsewhere becomes a version like any other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import artifact
from models.store import Store
from tests.training import world
from training.errors import RecipeError
from training.publishing.adopt import adopt

HORIZON = 2


class Mean(nn.Module):
    """Forecasts the mean of the window's scaled rows, of every feature that is forecast."""

    def __init__(self, features: int, horizon: int = HORIZON) -> None:
        super().__init__()
        self.features, self.horizon = features, horizon
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, window: Tensor) -> Tensor:
        return self.factor * window.mean(1, keepdim=True)[:, :, : self.features].repeat(1, self.horizon, 1)


class MeanAndFuture(Mean):
    """The same plus the known covariate."""

    def forward(self, window: Tensor, future: Tensor) -> Tensor:
        return self.factor * window.mean(1, keepdim=True)[:, :, : self.features] + future


class Unscriptable(Mean):
    """Does what TorchScript does not know."""

    def forward(self, window: Tensor) -> Tensor:
        return super().forward(window) + eval("0.0")


def recipe(tmp_path: Path, **data: object) -> object:
    file = world.write(tmp_path / "rows.csv", world.rows(160))
    return world.recipe(file, data=data, window={"horizon": HORIZON, "steps": 4})


def test_a_module_is_scored_and_published(tmp_path: Path) -> None:
    """The archive answers in raw units with what the module makes of scaled windows, several passes ahead."""
    store = Store(tmp_path / "store")

    published = adopt(Mean(3), recipe(tmp_path), store)

    loaded = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1])
    spec = loaded.spec
    assert (spec.architecture, spec.recursion, spec.attention_rows) == ("Mean", "sliding", 0)
    mean, std = (
        torch.tensor([getattr(feature.statistics, name) for feature in spec.features]) for name in ("mean", "std")
    )
    window = torch.tensor([spec.example.window])
    scaled = (window - mean) / std
    forecast, _ = loaded.module.rollout(window, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4, 0), 4)
    torch.testing.assert_close(forecast[0, 0], (2 * scaled.mean(1) * std + mean)[0, :2])
    assert "loss.png" not in {path.name for path in (published.archive.parent / "report").iterdir()}


def test_known_future_covariates_are_given_to_the_module(tmp_path: Path) -> None:
    """Scaled as the window's rows are."""
    features = [{"name": "load", "role": "target"}, {"name": "wind", "role": "future"}]
    store = Store(tmp_path / "store")

    published = adopt(MeanAndFuture(1), recipe(tmp_path, features=features), store)

    spec = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1]).spec
    assert spec.known == ["wind"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Mean(2), r"Mean gives \[2, 2, 2\] for two windows of 12 rows; the recipe needs \[2, 2, 3\]"),
        (Mean(3, horizon=1), r"needs \[2, 2, 3\]: horizon by targets and past covariates"),
        (Unscriptable(3), "Unscriptable cannot be written as TorchScript"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(tmp_path: Path, module: nn.Module, message: str) -> None:
    """Nothing is published."""
    store = Store(tmp_path / "store")

    with pytest.raises(RecipeError, match=message):
        adopt(module, recipe(tmp_path), store)
    assert not store.index().models


class Spread(nn.Module):
    """The mean of the targets and past covariates, and the targets a deviation below and above it."""

    def forward(self, window: Tensor, future: Tensor) -> Tensor:
        rows = window[:, :, :3].mean(1, keepdim=True) + 0.0 * future[:, :, :1]
        return torch.cat([rows, rows[:, :, :2] - 1.0, rows[:, :, :2] + 1.0], 2)


class Narrow(nn.Module):
    """Knows of no quantiles."""

    def forward(self, window: Tensor, future: Tensor) -> Tensor:
        return window[:, -2:, :3] + 0.0 * future[:, :, :1]


def test_a_module_gets_what_surrounds_a_network(tmp_path: Path) -> None:
    """Gaps are filled and the hour is told before it; its quantiles are calibrated."""
    file = world.write(tmp_path / "rows.csv", world.with_gap(world.rows(600), "load", 550, 2))
    asked = world.recipe(
        file,
        data={"gaps": {"method": "interpolate", "limit": 2}, "calendar": {"features": ["hour"]}},
        split={"train": 0.5, "validation": 0.1, "calibration": 0.2},
        intervals={"method": "cqr"},
        window={"horizon": HORIZON, "steps": 4},
    )
    store = Store(tmp_path / "store")

    published = adopt(Spread(), asked, store)

    spec = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1]).spec
    assert (spec.clock, spec.quantiles, spec.outputs) == (True, (0.05, 0.95), 6)
    assert spec.intervals is not None
    assert spec.intervals.coverage["90"][0] == pytest.approx(0.9, abs=0.1)
    with pytest.raises(RecipeError, match=r"the recipe needs \[2, 2, 7\]: .*, then 2 quantiles of each target"):
        adopt(Narrow(), asked, store)
