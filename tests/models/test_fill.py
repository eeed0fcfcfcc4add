"""Missing values inside a window: each filled by its neighbours, and the network told which they were."""

import math

import pytest
import torch
from torch import Tensor

from models import artifact, networks
from models.core import Surroundings
from models.layers.fill import Fill
from models.spec import Calendar, Gaps
from tests import builders

NAN = math.nan
METHODS = ("carry_forward", "interpolate")


def column(*values: float) -> Tensor:
    """One window of one feature, [1, L, 1]."""
    return torch.tensor(values).view(1, -1, 1)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("carry_forward", (2.0, 2.0, 2.0, 2.0, 8.0, 8.0, 8.0)),
        ("interpolate", (2.0, 2.0, 4.0, 6.0, 8.0, 8.0, 8.0)),
    ],
)
def test_each_gap_is_filled_by_its_neighbours(method: str, expected: tuple[float, ...]) -> None:
    """Between values by the method; before the first and after the last by the nearest."""
    fill = Fill(method)  # type: ignore[arg-type]
    found = fill(column(NAN, 2.0, NAN, NAN, 8.0, NAN, NAN))
    assert found.flatten().tolist() == list(expected)


@pytest.mark.parametrize("method", METHODS)
def test_fill_is_what_it_is_row_by_row(method: str) -> None:
    """Every window and feature is filled for itself, and values that are there stay to the bit."""
    random = torch.Generator().manual_seed(3)
    window = torch.randn(5, 11, 3, generator=random)
    gaps = torch.rand(5, 11, 3, generator=random) < 0.4
    gaps[:, 4] = False
    holed = window.masked_fill(gaps, NAN)
    fill = Fill(method)  # type: ignore[arg-type]
    found = fill(holed)

    assert torch.equal(found[~gaps], window[~gaps])
    for row in range(5):
        for feature in range(3):
            expected = _by_hand(holed[row, :, feature].tolist(), straight=method == "interpolate")
            torch.testing.assert_close(found[row, :, feature], torch.tensor(expected))


def _by_hand(values: list[float], *, straight: bool) -> list[float]:
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    filled = []
    for place, value in enumerate(values):
        before = [other for other in known if other <= place]
        after = [other for other in known if other >= place]
        if not math.isnan(value):
            filled.append(value)
        elif not before:
            filled.append(values[after[0]])
        elif not after or not straight:
            filled.append(values[before[-1]])
        else:
            low, high = before[-1], after[0]
            filled.append(values[low] + (values[high] - values[low]) * (place - low) / (high - low))
    return filled


def test_feature_without_a_value_stays_missing() -> None:
    """Nobody makes one up: the caller refuses such a window."""
    assert Fill()(column(NAN, NAN)).isnan().all()


ROLES = ("target", "future", "past")


@pytest.mark.parametrize("architecture", networks.names())
def test_every_network_forecasts_from_windows_with_gaps_as_from_filled_ones(architecture: str) -> None:
    """Filling outside and then asking gives the same as asking with the gaps, scripted too."""
    gaps = Gaps(method="interpolate", limit=3)
    network = builders.network(
        architecture, {}, roles=ROLES, window=12, horizon=2, surroundings=Surroundings(gaps=gaps)
    )
    window, time, future = builders.inputs(network, 4, 5)
    holed = window.clone()
    holed[0, 3:5, 0] = NAN
    holed[1, :2, 2] = NAN
    holed[2, -1, :] = NAN
    filled = Fill("interpolate")(holed)

    module = artifact.export(network, holed, time, future, 5)
    forecast, attention = module.rollout(holed, time, future, 5)
    expected, weights = network.rollout(filled, time, future, 5)

    torch.testing.assert_close(forecast, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(attention, weights, rtol=1e-4, atol=1e-5)
    assert forecast.isfinite().all()


@pytest.mark.parametrize("architecture", networks.names())
def test_masks_tell_the_network_which_values_were_missing(architecture: str) -> None:
    """The same filled window with and without its marks is another window to the network, if it reads other columns."""
    gaps = Gaps(method="carry_forward", limit=3, mask=True)
    config = {"segment_lstm": {"mixing": True}}.get(architecture, {})
    surroundings = Surroundings(gaps=gaps)
    network = builders.network(architecture, config, roles=ROLES, window=12, horizon=2, surroundings=surroundings)
    window, time, future = builders.inputs(network, 2, 5)
    window[:, 6] = window[:, 5]
    holed = window.clone()
    holed[:, 6, 0] = NAN

    forecast, _ = artifact.export(network, holed, time, future, 5).rollout(holed, time, future, 5)
    other, _ = network.rollout(window, time, future, 5)

    assert forecast.isfinite().all()
    # The linear one reads its own feature and what is known ahead, of which nothing is missing.
    assert torch.allclose(forecast, other) == (architecture == "linear")


def test_absent_rows_are_told_from_missing_ones() -> None:
    """Leading rows without a value that changes were never given: the mark is 1 for them, and for no later gap."""
    roles = ("target", "past", "static")
    network = builders.network("lstm", roles=roles, window=6, surroundings=Surroundings(short=True))
    window, _, _ = builders.inputs(network, 1, 1)
    window[0, :2, :2] = NAN
    window[0, 4, :2] = NAN
    observed = network.core.observed(network.scaler.scale_rows(window))  # type: ignore[operator]

    assert observed[0, :, -1].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert observed.isfinite().all()


def test_short_windows_are_another_matter_than_repeated_rows() -> None:
    """A network that is told which rows are absent can tell a short window from one whose first rows were alike."""
    network = builders.network("lstm", roles=ROLES, window=8, surroundings=Surroundings(short=True))
    window, time, future = builders.inputs(network, 1, 3)
    window[:, :3] = window[:, 3:4]
    short = window.clone()
    short[:, :3] = NAN
    assert not torch.allclose(network.rollout(short, time, future, 3)[0], network.rollout(window, time, future, 3)[0])


def test_everything_around_a_network_at_once() -> None:
    """Gaps with masks, short windows, a calendar, static features, a cycle and quantiles, scripted and stepped."""
    surroundings = Surroundings(
        gaps=Gaps(method="interpolate", limit=2, mask=True),
        short=True,
        calendar=Calendar(features=("hour", "day_of_week", "day_of_month", "day_of_year", "holiday"), holidays="US"),
        timezone="America/New_York",
        holidays=(20_454,),
    )
    for architecture in networks.names():
        config = {"cycle": 4, "normalisation": "standard"}
        network = builders.network(
            architecture,
            config,
            roles=("target", "static", "past", "future", "target"),
            window=10,
            horizon=3,
            quantiles=2,
            surroundings=surroundings,
        )
        window, time, future = builders.inputs(network, 3, 7)
        window[0, :4, [0, 2, 3, 4]] = NAN
        window[1, 5, 0] = NAN
        module = artifact.export(network, window, time, future, 7)
        forecast, _ = module.rollout(window, time, future, 7)

        assert forecast.shape == (3, 7, 2 * (1 + 2))
        assert forecast.isfinite().all()
        assert network.core.clock
