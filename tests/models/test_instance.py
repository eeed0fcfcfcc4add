"""Instance normalisation and the seasonal cycle: what they take off comes back, at every step."""

import pytest
import torch

from models import networks
from models.layers.instance import InstanceNorm, Normalisation
from models.seasonal import Seasonal
from tests import builders

ROLES = ("target", "future", "past")
ARCHITECTURES = networks.names()


@pytest.mark.parametrize("kind", ["last", "mean", "standard", "robust"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forecast_moves_with_the_level_of_its_window(architecture: str, kind: Normalisation) -> None:
    """A window lifted as a whole gives the same forecast lifted by as much, several passes ahead."""
    network = builders.network(architecture, {"normalisation": kind}, roles=ROLES, horizon=2)
    window, time, future = builders.inputs(network, 3, 5)
    lift = 10 * network.scaler.scale * torch.tensor([1.0, 0.0, 1.0])

    with torch.inference_mode():
        forecast, _ = network.rollout(window, time, future, 5)
        lifted, _ = network.rollout(window + lift, time, future, 5)

    torch.testing.assert_close(lifted, forecast + lift[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_a_spread_is_that_of_the_window(kind: Normalisation) -> None:
    """Of normal noise both give its mean and its standard deviation, the robust one in spite of outliers."""
    noise = 3 + 2 * torch.randn(1, 4000, 1, generator=torch.Generator().manual_seed(0))
    if kind == "robust":
        noise[:, :100] = 1e6

    shift, scale = InstanceNorm(kind)(noise)

    assert shift.item() == pytest.approx(3, abs=0.15)
    assert scale.item() == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_a_window_without_spread_stays_as_it_is(kind: Normalisation) -> None:
    """Where nothing happens, noise is not blown up: the scale has a floor."""
    _, scale = InstanceNorm(kind)(torch.full((1, 5, 1), 7.0))

    assert scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cycle_is_put_back_where_it_belongs(architecture: str) -> None:
    """A series that is nothing but its cycle goes on as its cycle, whenever the window ends."""
    network = builders.network(architecture, {"cycle": 6, "normalisation": "last"}, roles=ROLES, horizon=2)
    core = network.core
    assert isinstance(core, Seasonal)
    assert core.clock
    cycle = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        core.cycle.copy_(cycle)
        without = builders.network(architecture, {"normalisation": "last"}, roles=ROLES, horizon=2)
        core.inner.load_state_dict(without.core.state_dict())
    time = builders.START.timestamp() + 3600 * torch.arange(9)
    time = time.to(torch.int64)
    phase = (time // 3600) % 6

    def season(rows: torch.Tensor) -> torch.Tensor:
        """[n] rows from the last one given -> what the cycle adds to every feature, [B, n, F]."""
        added = torch.zeros(9, len(rows), 3)
        added[:, :, [0, 2]] = cycle[(phase.unsqueeze(1) + rows) % 6]
        return added * network.scaler.scale

    window, _, future = builders.inputs(network, 9, 5)

    with torch.inference_mode():
        plain, _ = without.rollout(window, time, future, 5)
        found, _ = network.rollout(window + season(torch.arange(-7, 1)), time, future, 5)

    torch.testing.assert_close(found, plain + season(torch.arange(1, 6))[:, :, :1], rtol=1e-4, atol=1e-3)
