"""What every network promises. The networks are found by file name and their options read off their `Config`, so that
a new file in `models/networks/` is tested with no line changed here.

Shapes: B rows, L window, F features, H steps a pass, N steps, T targets, K known-future covariates, M modelled
features, R attention rows a pass.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

import pytest
import torch
from pydantic.fields import FieldInfo
from torch import Tensor
from torch.nn.functional import mse_loss

from models import artifact, networks
from models.artifact import Artifact
from models.core import Config, Shape
from models.forecaster import Forecaster
from models.spec import Derived, Spec
from tests import builders

ROWS = 5
STEPS = 5
"""Not a multiple of three: with horizon 3 the second pass is cut short."""

SHAPES = {
    "single": Shape(window=8, horizon=1, roles=("target",)),
    "past": Shape(window=8, horizon=1, roles=("target", "past", "target")),
    "known": Shape(window=8, horizon=1, roles=("future", "target", "past", "future")),
    "single-h3": Shape(window=8, horizon=3, roles=("target",)),
    "known-h3": Shape(window=8, horizon=3, roles=("past", "future", "target", "future", "target")),
}


SMALL = {"hidden": 8, "channels": 8, "feed_forward": 16, "attention_size": 8}
"""Sizes for those who have them: nothing that is promised here depends on them, and the tests are faster."""


class Case(NamedTuple):
    """One network: an architecture, the one option that is not its default, and what the data asks of it."""

    architecture: str
    option: tuple[str, Any] | None
    shape: Shape

    @property
    def config(self) -> dict[str, Any]:
        sizes = {name: size for name, size in SMALL.items() if name in _fields(self.architecture)}
        return sizes | dict([self.option] if self.option else [])

    def build(self) -> Forecaster:
        shape = self.shape
        return builders.network(
            self.architecture, self.config, roles=shape.roles, window=shape.window, horizon=shape.horizon
        )


def _fields(architecture: str) -> dict[str, FieldInfo]:
    return networks.config_of(architecture).model_fields


def _options(architecture: str) -> Iterator[tuple[str, Any]]:
    """Every switch flipped and every choice made, one at a time."""
    for name, field in _fields(architecture).items():
        if field.annotation is bool:
            yield name, not field.default
        elif get_origin(field.annotation) is Literal:
            yield from ((name, choice) for choice in get_args(field.annotation) if choice != field.default)


def _choices(architecture: str, shape: str) -> Iterator[tuple[str, Any] | None]:
    """The options to try in a shape: by their defaults in all of them, one by one in the plainest and the fullest.

    Those that all networks share come from one place: the fullest shape is enough.
    """
    yield None
    if shape in {"single", "known-h3"}:
        yield from (option for option in _options(architecture) if option[0] not in Config.model_fields)
    if shape == "known-h3":
        yield "cycle", 6
        yield from (option for option in _options(architecture) if option[0] in Config.model_fields)


def _cases(*shapes: str, shared: bool = True) -> list[object]:
    return [
        pytest.param(
            Case(architecture, option, SHAPES[shape]),
            id=f"{architecture}-{'{}={}'.format(*option) if option else 'default'}-{shape}",
        )
        for architecture in networks.names()
        for shape in shapes
        for option in _choices(architecture, shape)
        if shared or option is None or option[0] not in Config.model_fields
    ]


every_architecture = pytest.mark.parametrize("architecture", networks.names())
every_network = pytest.mark.parametrize("case", _cases(*SHAPES))
every_network_that_knows_the_future = pytest.mark.parametrize("case", _cases("known", "known-h3"))
every_network_once = pytest.mark.parametrize("case", _cases("known-h3"))
every_network_by_its_own_options = pytest.mark.parametrize("case", _cases("known-h3", shared=False))


@cache
def _spec(case: Case) -> Spec:
    network = case.build()
    return builders.spec_for(
        network, architecture=case.architecture, config=case.config, steps=STEPS, clock=network.core.clock
    )


@cache
def _loaded(case: Case) -> Artifact:
    """What was saved once for all tests of a case, and read back."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        return artifact.load(path, digest=artifact.save(case.build(), _spec(case), path))


@every_network
def test_shapes_and_dtypes_are_those_of_the_contract(case: Case) -> None:
    """All four methods give float32 of the promised shapes, and every tensor of the state is batch-first."""
    network, shape = case.build(), case.shape
    window, time, future = builders.inputs(network, ROWS, STEPS)
    first = builders.inputs(network, ROWS, shape.horizon)[2]
    targets, attention_rows = shape.roles.count("target"), network.attention_rows
    passes = math.ceil(STEPS / shape.horizon)

    state = network.encode(window, time)
    decoded, attention, following = network.decode(state, first)
    forwarded, attention_forwarded = network(window, time, first)
    rolled, attention_rolled = network.rollout(window, time, future, STEPS)

    assert [tensor.size(0) for tensor in state] == [ROWS] * len(state)
    assert [(tensor.shape, tensor.dtype) for tensor in following] == [(tensor.shape, tensor.dtype) for tensor in state]
    assert decoded.shape == forwarded.shape == (ROWS, shape.horizon, targets)
    assert attention.shape == attention_forwarded.shape == (ROWS, attention_rows, shape.window)
    assert rolled.shape == (ROWS, STEPS, targets)
    assert attention_rolled.shape == (ROWS, attention_rows * passes, shape.window)
    for tensor in (decoded, attention, forwarded, attention_forwarded, rolled, attention_rolled):
        assert tensor.dtype == torch.float32


@every_network
def test_an_archive_answers_what_the_network_does(case: Case) -> None:
    """Scripted, saved and read back it gives the same forecast, for other rows than it was exported with."""
    network, loaded = case.build(), _loaded(case)
    probe = builders.inputs(network, ROWS, STEPS, seed=1)

    assert loaded.spec == _spec(case)
    for one, other in zip(network.rollout(*probe, STEPS), loaded.module.rollout(*probe, STEPS), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@every_network
def test_a_row_of_a_batch_equals_the_row_alone(case: Case) -> None:
    """Neighbours in a batch do not change a row's forecast."""
    network = _loaded(case).module
    window, time, future = builders.inputs(case.build(), ROWS, STEPS)

    together = network.rollout(window, time, future, STEPS)

    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = network.rollout(window[one], time[one], future[one], STEPS)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[one], single, rtol=1e-5, atol=1e-5)


@every_network
def test_rows_join_and_leave_between_passes(case: Case) -> None:
    """Rows at different steps share passes, one joining and one leaving at a time, and every forecast stays its own."""
    module, shape = _loaded(case).module, case.shape
    passes = 3
    steps = passes * shape.horizon
    window, time, future = builders.inputs(case.build(), ROWS, steps)
    states: dict[int, list[Tensor]] = {}
    answers: dict[int, list[tuple[Tensor, Tensor]]] = {row: [] for row in range(ROWS)}

    with torch.inference_mode():
        for tick in range(ROWS + passes - 1):
            if tick < ROWS:
                states[tick] = module.encode(window[tick : tick + 1], time[tick : tick + 1])
            # The newest first, so that no row keeps its place in the batch.
            riding = sorted(states, reverse=True)
            known = [future[row, len(answers[row]) * shape.horizon :][: shape.horizon] for row in riding]
            merged = [torch.cat(parts) for parts in zip(*(states[row] for row in riding), strict=True)]
            forecast, attention, state = module.decode(merged, torch.stack(known))
            for place, row in enumerate(riding):
                answers[row].append((forecast[place], attention[place]))
                states[row] = [tensor[place : place + 1] for tensor in state]
                if len(answers[row]) == passes:
                    del states[row]

    forecasts, attentions = module.rollout(window, time, future, steps)
    for row, parts in answers.items():
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), forecasts[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), attentions[row], rtol=1e-5, atol=1e-5)


@every_network
def test_attention_weights_are_shares(case: Case) -> None:
    """Every attention row is a set of shares of the window: none negative, together one."""
    network = case.build()

    _, attention = network.rollout(*builders.inputs(network, ROWS, STEPS), STEPS)

    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]), rtol=1e-5, atol=1e-5)


@every_network
def test_forecasts_keep_to_the_unit_of_the_data(case: Case) -> None:
    """The same data in another unit, with its statistics, gives the same forecast in that unit."""
    network, shape, shift, factor = case.build(), case.shape, -40.0, 2.5
    columns = builders.features(shape.roles, shift=shift, factor=factor)
    other = networks.build(case.architecture, case.config, columns, shape).eval()
    other.core.load_state_dict(network.core.state_dict())
    window, time, future = builders.inputs(network, ROWS, STEPS)

    forecast, attention = network.rollout(window, time, future, STEPS)
    converted, same = other.rollout(window * factor + shift, time, future * factor + shift, STEPS)

    torch.testing.assert_close(converted, forecast * factor + shift, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(same, attention, rtol=1e-4, atol=1e-4)


@every_network
def test_a_forecast_holds_the_targets_in_their_order(case: Case) -> None:
    """Of the features that are forecast together the targets are given, each in its own unit."""
    network = case.build()
    probe = builders.inputs(network, ROWS, STEPS)
    modelled = [column for column in builders.features(case.shape.roles) if column.role != "future"]

    scaled, _ = network.unroll(*probe, STEPS)
    forecast, _ = network.rollout(*probe, STEPS)

    targets = [
        scaled[:, :, place] * column.statistics.std + column.statistics.mean
        for place, column in enumerate(modelled)
        if column.role == "target"
    ]
    torch.testing.assert_close(forecast, torch.stack(targets, 2))


@every_network_that_knows_the_future
def test_a_forecast_depends_on_every_known_future_covariate(case: Case) -> None:
    """A client that must send a covariate's future gets a forecast that uses it, in the very pass it belongs to."""
    network = case.build()
    window, time, future = builders.inputs(network, ROWS, case.shape.horizon)
    forecast, _ = network(window, time, future)

    for column in range(case.shape.known):
        changed = future.clone()
        changed[:, :, column] += network.scaler.future_scale[column]
        assert ((network(window, time, changed)[0] - forecast).abs() > 1e-4).any()


@every_network_once
def test_an_embedding_is_as_wide_as_it_says(case: Case) -> None:
    """The archive's `embed` gives a row of numbers a window, the same for equal windows and other ones for others."""
    network, module = case.build(), cast(Forecaster, _loaded(case).module)
    window, time, _ = builders.inputs(network, ROWS, 1)
    window = torch.cat([window, window[:1]])

    found = module.embed(window, torch.cat([time, time[:1]]))

    assert found.shape == (ROWS + 1, network.core.embedding)
    torch.testing.assert_close(found[0], found[-1])
    assert not network.core.embedding or not torch.allclose(found[0], found[1])


@every_network_once
def test_the_heads_of_an_archive_make_up_its_attention(case: Case) -> None:
    """The archive's `heads` gives each head's shares of the window: their mean is the first pass's attention row."""
    network, module = case.build(), cast(Forecaster, _loaded(case).module)
    window, time, future = builders.inputs(network, ROWS, case.shape.horizon)

    found = module.heads(window, time)

    assert found.shape == (ROWS, network.core.attention_heads, case.shape.window)
    if network.core.attention_heads:
        torch.testing.assert_close(found.sum(2), torch.ones(found.shape[:2]))
        torch.testing.assert_close(found.mean(1), module(window, time, future)[1][:, 0])
        assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)


@every_architecture
def test_derived_features_are_read_or_refused(architecture: str) -> None:
    """An option that would do nothing is an error: whoever takes derived features forecasts by them."""
    columns = builders.features(("target", "past"))
    derived = [Derived(of="past_1", kind="mean", rows=3)]
    config = Case(architecture, None, SHAPES["single"]).config
    torch.manual_seed(0)
    try:
        network = networks.build(
            architecture, config, columns, networks.shape_of(columns, window=8, horizon=1, derived=derived)
        ).eval()
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        probe = builders.inputs(network, ROWS, STEPS)
        forecast, _ = network.rollout(*probe, STEPS)
        network.core.get_submodule("derive").get_buffer("weights").mul_(2)
        assert not torch.allclose(network.rollout(*probe, STEPS)[0], forecast, atol=1e-5)
    assert not message or "derived" in message


@every_network
def test_a_corrected_state_goes_on_from_what_came(case: Case) -> None:
    """Corrected by its own forecast a state stays as it is; by other rows the next pass changes."""
    network, shape = case.build(), case.shape
    window, time, future = builders.inputs(network, ROWS, 2 * shape.horizon)
    first, second = network.scaler.scale_future(future).split(shape.horizon, 1)

    with torch.inference_mode():
        modelled, _, state = network.core.decode(network.encode(window, time), first)
        own = network.core.rows(modelled, first)
        following, *_ = network.core.decode(state, second)
        confirmed, *_ = network.core.decode(network.core.correct(state, own), second)
        corrected, *_ = network.core.decode(network.core.correct(state, own + 1), second)

    torch.testing.assert_close(confirmed, following, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(corrected, following, rtol=0, atol=1e-4)


@every_network
def test_gradients_reach_every_parameter(case: Case) -> None:
    """No parameter is left out of training."""
    network = case.build().train()
    probe = builders.inputs(network, ROWS, STEPS)

    forecast, _ = network.unroll(*probe, STEPS)
    mse_loss(forecast, torch.ones_like(forecast)).backward()

    idle = [name for name, tensor in network.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert idle == []


@every_network_by_its_own_options
def test_overfits_eight_windows(case: Case) -> None:
    """Eight windows of waves can be learnt by heart: the loss falls to a twentieth of what it was."""
    network, shape = case.build(), case.shape
    columns = torch.arange(shape.features)
    rows = torch.arange(8 + shape.window + STEPS).unsqueeze(1)
    waves = torch.sin(2 * math.pi * rows / 12 + columns) * network.scaler.scale + network.scaler.shift
    cuts = torch.stack([waves[start : start + shape.window + STEPS] for start in range(8)])
    window, later = cuts[:, : shape.window], cuts[:, shape.window :]
    future = later[:, :, [role == "future" for role in shape.roles]]
    wanted = network.core.modelled(network.scaler.scale_rows(later))
    time = torch.zeros(8, dtype=torch.int64)

    def loss() -> Tensor:
        return mse_loss(network.unroll(window, time, future, STEPS)[0], wanted)

    torch.manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    wanted_loss = loss().item() / 20
    for _ in range(20):
        network.train()
        for _ in range(20):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
        network.eval()
        if loss().item() < wanted_loss:
            return
    pytest.fail(f"the loss is still {loss().item():.3g}, not below {wanted_loss:.3g}")
