"""What may not be written, what may not be loaded, and what an archive holds."""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models import artifact, networks
from models.archive import digest_of
from models.artifact import DigestError, FormatError, MismatchError, load, save
from models.core import Shape, SlidingWindow
from models.forecaster import Forecaster
from models.layers.scaler import Scaler
from models.networks.linear import Config
from models.spec import Spec
from tests import builders

STEPS = 3

_CAPABILITIES = torch.cpu.get_capabilities()
_HAS_BFLOAT16 = bool(_CAPABILITIES.get("avx512_bf16") or _CAPABILITIES.get("amx_bf16"))


class Constant(SlidingWindow):
    """Forecasts `python`, but `scripted` once it is scripted: what no export may let pass."""

    def __init__(self, shape: Shape, *, python: float, scripted: float) -> None:
        super().__init__(Config(), shape)
        self.python = python
        self.scripted = scripted

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        level = self.scripted if torch.jit.is_scripting() else self.python
        attention = inputs.new_empty(inputs.size(0), 0, inputs.size(1))
        return torch.full([inputs.size(0), 1, 1], level), attention


class Fragile(SlidingWindow):
    """Takes the difference of two large products: all that it forecasts lies in the bits that bfloat16 lacks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(Config(), shape)
        self.one = torch.nn.Linear(shape.window, shape.horizon, bias=False)
        self.other = torch.nn.Linear(shape.window, shape.horizon, bias=False)
        with torch.no_grad():
            self.one.weight.fill_(100.1)
            self.other.weight.fill_(100.0)

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        columns = inputs.transpose(1, 2)
        modelled = (self.one(columns) - self.other(columns)).transpose(1, 2)
        return modelled, inputs.new_empty(inputs.size(0), 0, inputs.size(1))


class Stranger(torch.nn.Module):
    """A network that knows nothing of the contract."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _constant(*, python: float, scripted: float) -> Forecaster:
    shape = Shape(window=8, horizon=1, roles=("target",))
    return Forecaster(Constant(shape, python=python, scripted=scripted), Scaler(builders.features(shape.roles))).eval()


def _fragile() -> Forecaster:
    shape = Shape(window=8, horizon=1, roles=("target",))
    return Forecaster(Fragile(shape), Scaler(builders.features(shape.roles))).eval()


def _saved(path: Path, **fields: object) -> str:
    network = builders.network(roles=("target", "future"))
    return save(network, builders.spec_for(network, **fields), path)


def _rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> str:
    """Write the archive again with every record as `change(name, content)` wants it (None: left out); its digest."""
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as records:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                records.writestr(name, content)
    return _replace(path, target.getvalue())


def _rewrite_spec(path: Path, **fields: object) -> str:
    def change(name: str, content: bytes) -> bytes:
        return json.dumps(json.loads(content) | fields).encode() if name.endswith("spec.json") else content

    return _rewrite(path, change)


def _replace(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return digest_of(content)


def test_loads_what_was_saved(tmp_path: Path) -> None:
    """A saved archive loads on the CPU under its digest, with its spec, and answers its own example."""
    network = builders.network(roles=("target", "future"))
    spec = builders.spec_for(network)

    digest = save(network, spec, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", digest=digest, device="cpu")

    inputs = artifact.example_inputs(loaded.spec, "cpu")
    forecast, _ = artifact.answer(loaded.module, *inputs, spec.example.steps, spec.horizon)
    assert (loaded.spec, loaded.digest) == (spec, digest)
    torch.testing.assert_close(forecast[0], torch.tensor(spec.example.forecast))


@pytest.mark.parametrize("scripted", [1.5, float("nan"), float("inf")])
def test_export_refuses_a_network_that_answers_otherwise_when_scripted(scripted: float) -> None:
    """A difference between Python and TorchScript is found before anything is measured or written, NaN included."""
    network = _constant(python=1.0, scripted=scripted)

    with pytest.raises(MismatchError, match="eager and scripted"):
        artifact.export(network, *builders.inputs(network, 2, STEPS), STEPS)


def test_save_refuses_a_network_that_answers_otherwise_when_scripted(tmp_path: Path) -> None:
    """Nothing is written of a network whose scripted answers differ from those it was measured by."""
    network = _constant(python=1.0, scripted=1.5)

    with pytest.raises(MismatchError, match="eager and scripted"):
        save(network, builders.spec_for(network), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_a_network_that_is_not_finite(tmp_path: Path) -> None:
    """A network that answers NaN is not published, whatever its spec says."""
    network = _constant(python=float("nan"), scripted=float("nan"))
    spec = builders.spec_for(_constant(python=1.0, scripted=1.0))

    with pytest.raises(MismatchError, match="not finite"):
        save(network, spec, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_an_example_that_is_not_the_networks_own(tmp_path: Path) -> None:
    """The example of another network's spec is found out before anything is written."""
    spec = builders.spec_for(builders.network(seed=1))

    with pytest.raises(MismatchError, match=r"example\.forecast: differs"):
        save(builders.network(seed=0), spec, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_other_attention_weights(tmp_path: Path) -> None:
    """The example's attention weights count as much as its forecast."""
    network = builders.network("attention_lstm")
    spec = builders.spec_for(network, architecture="attention_lstm")
    first = [[1.0] + [0.0] * (spec.window - 1)] * len(spec.example.attention)
    spec = spec.model_copy(update={"example": spec.example.model_copy(update={"attention": first})})

    with pytest.raises(MismatchError, match=r"example\.attention: differs"):
        save(network, spec, tmp_path / "model.pt")


def test_load_refuses_a_wrong_digest(tmp_path: Path) -> None:
    """Bytes that the index does not vouch for are not opened, and both digests are named."""
    path = tmp_path / "model.pt"
    digest = _saved(path)
    wanted = digest_of(b"something else")

    with pytest.raises(DigestError, match=rf"{digest}, expected {wanted}"):
        load(path, digest=wanted)


def test_load_refuses_a_changed_file(tmp_path: Path) -> None:
    """A single flipped bit is found."""
    path = tmp_path / "model.pt"
    digest = _saved(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DigestError):
        load(path, digest=digest)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_load_refuses_a_truncated_archive(tmp_path: Path, kept: int) -> None:
    """An archive cut short is refused even where its digest was taken after the cut."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _replace(path, path.read_bytes()[:kept])

    with pytest.raises(FormatError, match="damaged or cut short"):
        load(path, digest=digest)


def test_load_refuses_random_bytes(tmp_path: Path) -> None:
    """What is no archive at all is refused."""
    path = tmp_path / "model.pt"
    digest = _replace(path, os.urandom(10_000))

    with pytest.raises(FormatError, match="not an archive"):
        load(path, digest=digest)


def test_load_refuses_an_archive_without_a_spec(tmp_path: Path) -> None:
    """Weights that do not say what they mean are refused."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _rewrite(path, lambda name, content: None if name.endswith("spec.json") else content)

    with pytest.raises(FormatError, match=r"holds no spec\.json"):
        load(path, digest=digest)


def test_load_refuses_an_archive_without_a_network(tmp_path: Path) -> None:
    """A spec without TorchScript beside it is refused."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _rewrite(path, lambda name, content: content if name.endswith("spec.json") else None)

    with pytest.raises(FormatError, match="not a TorchScript archive"):
        load(path, digest=digest)


def test_load_names_a_format_that_it_does_not_read(tmp_path: Path) -> None:
    """An archive of a later format is told apart from a damaged one, even where its fields are others too."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _rewrite_spec(path, format="torchscript/2", something_new=1)

    with pytest.raises(FormatError, match=r"'torchscript/2'; this release reads 'torchscript/1'"):
        load(path, digest=digest)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"window": 0}, "window: "),
        ({"frequency": "an hour"}, "frequency: "),
        ({"features": [{"name": "load", "role": "goal"}]}, r"features\.0\.role: "),
        ({"colour": "red"}, "colour: "),
        ({"targets": ["nothing"]}, "targets: "),
    ],
)
def test_load_names_the_wrong_field_of_a_spec(tmp_path: Path, fields: dict[str, Any], place: str) -> None:
    """Of a spec that is wrong, the reason says where."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _rewrite_spec(path, **fields)

    with pytest.raises(FormatError, match=rf"^spec\.json: .*{place}"):
        load(path, digest=digest)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"null"])
def test_load_refuses_a_spec_that_is_no_document(tmp_path: Path, text: bytes) -> None:
    """A spec that is no JSON object is refused as any other damage is."""
    path = tmp_path / "model.pt"
    _saved(path)
    digest = _rewrite(path, lambda name, content: text if name.endswith("spec.json") else content)

    with pytest.raises(FormatError):
        load(path, digest=digest)


def test_load_refuses_a_network_without_the_contract(tmp_path: Path) -> None:
    """A valid spec around some other TorchScript module is refused, naming the methods that are missing."""
    path = tmp_path / "model.pt"
    spec = builders.spec_for(builders.network()).model_dump_json()
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Stranger()), content, _extra_files={"spec.json": spec})
    digest = _replace(path, content.getvalue())

    with pytest.raises(FormatError, match="lacks encode, decode, rollout"):
        load(path, digest=digest)


def test_load_refuses_weights_that_do_not_give_the_example(tmp_path: Path) -> None:
    """Weights that were exchanged together with the digest are found out by the example."""
    path = tmp_path / "model.pt"
    _saved(path)
    weights: list[str] = []

    def change(name: str, content: bytes) -> bytes:
        if "/data/" in name and len(content) >= 4 * 8:
            weights.append(name)
            return torch.full([len(content) // 4], 0.5).numpy().tobytes()
        return content

    digest = _rewrite(path, change)

    assert weights != []
    with pytest.raises(MismatchError, match=r"example\.forecast: differs"):
        load(path, digest=digest)


def test_load_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    """NaN compares with nothing, and still does not pass for the example's answer."""
    path = tmp_path / "model.pt"
    _saved(path)

    def change(name: str, content: bytes) -> bytes:
        if "/data/" in name and len(content) >= 4 * 8:
            return torch.full([len(content) // 4], float("nan")).numpy().tobytes()
        return content

    digest = _rewrite(path, change)

    with pytest.raises(MismatchError, match=r"example\.forecast: differs by nan"):
        load(path, digest=digest)


def test_load_refuses_a_spec_that_the_network_does_not_fit(tmp_path: Path) -> None:
    """A spec of other shapes, consistent in itself, is found out by the example."""
    path = tmp_path / "model.pt"
    _saved(path)
    other = builders.spec_for(builders.network(roles=("target", "past", "past")))
    digest = _rewrite_spec(path, **json.loads(other.model_dump_json()))

    with pytest.raises(MismatchError, match="the example fails"):
        load(path, digest=digest)


def test_load_says_when_there_is_no_file(tmp_path: Path) -> None:
    """A missing archive is an OSError, told apart from one that is wrong."""
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "model.pt", digest=digest_of(b""))


@pytest.mark.parametrize("architecture", ["linear", "attention_lstm"])
def test_an_archive_tells_nothing_of_the_machine_that_made_it(tmp_path: Path, architecture: str) -> None:
    """No debug record and no path of the source tree, the environment or the home folder travels with a model."""
    path = tmp_path / "model.pt"
    network = builders.network(architecture)
    save(network, builders.spec_for(network, architecture=architecture), path)
    places = [tmp_path, Path(__file__).parents[2], Path(torch.__file__).parent, Path.home()]

    with zipfile.ZipFile(path) as records:
        names = records.namelist()
        content = b"".join(records.read(name) for name in names)

    assert [name for name in names if "debug" in name] == []
    assert [place for place in places if str(place).encode() in content] == []
    assert b".py" not in content


@pytest.mark.parametrize("architecture", networks.names())
def test_the_same_network_gives_the_same_digest(tmp_path: Path, architecture: str) -> None:
    """One process writes the same archive twice; another may order TorchScript's constants differently."""
    network = builders.network(architecture)
    spec = builders.spec_for(network, architecture=architecture)

    first = save(network, spec, tmp_path / "first.pt")
    second = save(network, spec, tmp_path / "second.pt")
    other = builders.network(architecture, seed=1)
    third = save(other, builders.spec_for(other, architecture=architecture), tmp_path / "third.pt")

    assert first == second == digest_of((tmp_path / "first.pt").read_bytes())
    assert third != first


def test_a_loaded_artifact_is_frozen(tmp_path: Path) -> None:
    """Spec, digest and network of a loaded model stay together."""
    loaded = load(tmp_path / "model.pt", digest=_saved(tmp_path / "model.pt"))

    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.digest = "other"
    assert isinstance(loaded.spec, Spec)


def test_a_load_leaves_nothing_to_specialise(tmp_path: Path) -> None:
    """TorchScript is told to compile once and for all shapes, so that no later pass compiles anything."""
    before = torch.jit.set_fusion_strategy([("STATIC", 1)])
    try:
        load(tmp_path / "model.pt", digest=_saved(tmp_path / "model.pt"))
        assert torch.jit.set_fusion_strategy([]) == []
    finally:
        torch.jit.set_fusion_strategy(before)


def test_weights_may_be_moved_into_one_piece_after_a_load(tmp_path: Path) -> None:
    """What `flatten_parameters` does to a scripted layer's weights on a GPU is what its passes compute with."""
    network = builders.network("lstm")
    digest = save(network, builders.spec_for(network, architecture="lstm"), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", digest=digest)
    (cells,) = [part for part in cast(Any, loaded.module).modules() if hasattr(part, "_flat_weights")]
    piece = torch.cat([weight.detach().flatten() for weight in cells._flat_weights])
    start = 0
    with torch.no_grad():
        for weight in cells._flat_weights:
            weight.set_(piece[start : start + weight.numel()].view_as(weight))
            start += weight.numel()
    window, time, future = builders.inputs(network, 2, 1)

    same = artifact.answer(loaded.module, window, time, future, 1, 1)[0]
    piece.zero_()
    other = artifact.answer(loaded.module, window, time, future, 1, 1)[0]

    torch.testing.assert_close(same, network.rollout(window, time, future, 1)[0])
    assert not torch.allclose(same, other)


@pytest.mark.skipif(not _HAS_BFLOAT16, reason="this CPU has no bfloat16")
@pytest.mark.parametrize("architecture", networks.names())
def test_bfloat16_reads_the_windows_of_larger_batches(tmp_path: Path, architecture: str) -> None:
    """Eight rows are within a hundredth of a standard deviation and not exact, seven are; all goes out as float32."""
    network = builders.network(architecture, roles=("target", "past", "future"), horizon=2)
    spec = builders.spec_for(network, architecture=architecture)
    digest = save(network, spec, tmp_path / "model.pt")
    reduced = load(tmp_path / "model.pt", digest=digest, precision="bfloat16").module
    exact = load(tmp_path / "model.pt", digest=digest).module
    steps = spec.example.steps

    for rows in (7, 8):
        given = [torch.cat([tensor] * rows) for tensor in artifact.example_inputs(spec, "cpu")]
        forecast, attention = artifact.answer(reduced, *given, steps, 2)
        wanted, looks = artifact.answer(exact, *given, steps, 2)
        assert forecast.dtype == attention.dtype == torch.float32
        torch.testing.assert_close(forecast, wanted, rtol=0, atol=1e-2 * spec.features[0].statistics.scale)
        torch.testing.assert_close(attention, looks, rtol=0, atol=1e-2)
        assert torch.equal(forecast, wanted) == (rows == 7)


@pytest.mark.skipif(not _HAS_BFLOAT16, reason="this CPU has no bfloat16")
def test_a_network_that_bfloat16_would_spoil_stays_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is served as exactly as it was published, and the log says why it is not faster."""
    network = _fragile()
    spec = builders.spec_for(network)
    digest = save(network, spec, tmp_path / "model.pt")

    loaded = load(tmp_path / "model.pt", digest=digest, precision="bfloat16")

    given = builders.inputs(network, 8, 1)
    torch.testing.assert_close(artifact.answer(loaded.module, *given, 1, 1)[0], network.rollout(*given, 1)[0])
    (message,) = caplog.messages
    assert message.startswith("tiny version 1 is served in float32: example.forecast: differs by")
