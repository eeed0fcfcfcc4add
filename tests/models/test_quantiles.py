"""Quantiles that a network forecasts besides: they come after the forecast, and nothing is fed back of them."""

import pytest
import torch

from models import artifact, networks
from models.forecaster import Forecaster
from tests import builders

ROLES = ("target", "past", "future", "target")
TARGETS = 2


def built(architecture: str, quantiles: int, **config: object) -> Forecaster:
    """A network of 10 rows that forecasts 2 a pass."""
    return builders.network(architecture, config, roles=ROLES, window=10, horizon=2, quantiles=quantiles)


@pytest.mark.parametrize("architecture", networks.names())
def test_every_network_has_as_many_outputs_as_asked_for(architecture: str) -> None:
    """T of the forecast, then T of each quantile, alike eager, scripted and stepped."""
    network = built(architecture, 3)
    window, time, future = builders.inputs(network, 4, 5)
    module = artifact.export(network, window, time, future, 5)
    forecast, attention = module.rollout(window, time, future, 5)
    assert forecast.shape == (4, 5, TARGETS * (1 + 3))
    assert attention.shape[2] == 10


@pytest.mark.parametrize("architecture", networks.names())
def test_what_is_fed_back_is_the_forecast_alone(architecture: str) -> None:
    """With the weights of a network without quantiles, the forecast is the same at every pass, whatever they are."""
    plain, wide = built(architecture, 0), built(architecture, 2)
    weights = dict(plain.state_dict())
    for name, tensor in wide.state_dict().items():
        if name in weights and weights[name].shape != tensor.shape:
            # Of the outputs of each step, the first are the features.
            steps, outputs = plain.horizon, tensor.shape[0] // plain.horizon
            modelled = weights[name].view(steps, -1, *tensor.shape[1:])
            mixed = torch.randn(steps, outputs, *tensor.shape[1:])
            mixed[:, : modelled.shape[1]] = modelled
            weights[name] = mixed.view(tensor.shape)
    wide.load_state_dict({**wide.state_dict(), **weights}, strict=False)
    wide.scaler = builders.network(architecture, {}, roles=ROLES, window=10, horizon=2, quantiles=2).scaler
    window, time, future = builders.inputs(plain, 3, 7)

    expected, _ = plain.rollout(window, time, future, 7)
    found, _ = wide.rollout(window, time, future, 7)

    torch.testing.assert_close(found[:, :, :TARGETS], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalisation", ["standard", "last"])
@pytest.mark.parametrize("architecture", networks.names())
def test_quantiles_are_in_the_unit_of_their_target(architecture: str, normalisation: str) -> None:
    """With a window's own level undone: lift the window, and forecast and quantiles are lifted by as much."""
    network = built(architecture, 2, normalisation=normalisation)
    window, time, future = builders.inputs(network, 3, 4)
    lift = torch.tensor([40.0, 0.0, 0.0, 70.0])
    here, _ = network.rollout(window, time, future, 4)
    there, _ = network.rollout(window + lift, time, future, 4)
    expected = here + torch.tensor([40.0, 70.0]).repeat(3)
    torch.testing.assert_close(there, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("architecture", networks.names())
def test_forecasts_keep_within_what_a_target_can_be(architecture: str) -> None:
    """A target with a minimum never goes below it, nor its quantiles; what is fed back stays what the network said."""
    plain = built(architecture, 2)
    features = builders.features(ROLES)
    features[0] = features[0].model_copy(update={"minimum": 10.0})
    limited = networks.build(architecture, {}, features, plain.core.shape).eval()
    limited.core.load_state_dict(plain.core.state_dict())
    window, time, future = builders.inputs(plain, 5, 5)

    expected, _ = plain.rollout(window, time, future, 5)
    found, _ = artifact.export(limited, window, time, future, 5).rollout(window, time, future, 5)

    expected[:, :, [0, 2, 4]] = expected[:, :, [0, 2, 4]].clamp(min=10.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[:, :, 0] == 10.0).any()
