"""`python -m training adopt`: from a file, Triton's repository or MLflow's registry to a version that serves."""

import logging
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import artifact
from models.spec import Spec
from models.store import Store
from tests.app.serving import serving
from tests.training import world
from tests.training.test_adopt import HORIZON, Mean
from training.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow's own, which are many


class Raw(nn.Module):
    """Knows the units of its rows; of one target, so that its answers are flat, [B, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, window: Tensor) -> Tensor:
        return window[:, :, 0].mean(1, keepdim=True) + self.ahead


class Strange(nn.Module):
    """Gives two things."""

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        return window, window


def scripted(path: Path, module: nn.Module | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(module or Mean(3)).save(path)
    return path


CONFIG = """
name: "mean"
backend: "pytorch"
max_batch_size: 64
input [ { name: "INPUT__0", data_type: TYPE_FP32, dims: [ 12, 3 ] } ]
output [ { name: "OUTPUT__0", data_type: TYPE_FP32, dims: [ 2, 3 ] } ]
dynamic_batching { max_queue_delay_microseconds: 100 }  # what else there is says nothing here
instance_group [ { kind: KIND_CPU, count: 2 } ]
parameters: { key: "INFERENCE_MODE" value: { string_value: "true" } }
"""


def repository(folder: Path, config: str | None = CONFIG, versions: tuple[str, ...] = ("2", "10", "09")) -> Path:
    """A model of Triton's, whose newest version is the right one."""
    for version in versions:
        scripted(folder / version / "model.pt", Mean(3) if version == max(versions, key=int) else Mean(2))
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


class World:
    """Rows, a recipe, a store and a way to run the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self._capsys = capsys
        self.recipe()

    def recipe(self, **sections: dict[str, Any]) -> None:
        file = world.write(self.folder / "rows.csv", world.rows(160))
        given = world.given(file, **{"window": {"horizon": HORIZON, "steps": 4}, **sections})
        (self.folder / "recipe.toml").write_text(world.toml(given))

    def run(self, source: object) -> int:
        recipe, store = self.folder / "recipe.toml", self.folder / "store"
        return main(["adopt", str(recipe), str(source), "--artifacts", str(store)])

    def adopted(self, source: object) -> Spec:
        """What the store then holds, checked as it is when it is loaded."""
        assert self.run(source) == 0
        shown = self._capsys.readouterr().out
        assert f"of {source}" in shown
        assert "seasonal_naive" in shown
        (digest,) = self.store.index().models["tiny"].versions.values()
        return artifact.load(self.store.archive("tiny", 1), digest=digest).spec

    def refusal(self, source: object) -> str:
        """The one line on stderr; and nothing was published."""
        self._capsys.readouterr()
        assert self.run(source) == 2
        assert not self.store.index().models
        line = self._capsys.readouterr().err.splitlines()[-1]
        return line.removeprefix("error: ").replace(f"{self.folder}/", "")


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(tmp_path, capsys)


async def served(store: Store, spec: Spec, window: list[list[float]]) -> np.ndarray:
    """What the service says of raw rows, [H, T]."""
    async with serving(store.root) as client:
        answer = await client.post(f"/forecast?steps={spec.horizon}", json={"window": window})
        assert answer.status_code == 200, answer.text
        return np.array(answer.json()["forecast"])


def expected(spec: Spec, window: list[list[float]], module: nn.Module) -> np.ndarray:
    """What the module itself says, scaled and scaled back by hand."""
    mean, std = (
        torch.tensor([getattr(feature.statistics, name) for feature in spec.features]) for name in ("mean", "std")
    )
    with torch.inference_mode():
        found = module(((torch.tensor([window]) - mean) / std).float())[0] * std + mean
    return found[:, :2].numpy()


# What serves then


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["file", "model", "version", "dims with the batch", "nothing declared"])
async def test_torchscript_is_served(here: World, kind: str) -> None:
    """The forecasts over HTTP are the module's own."""
    if kind == "file":
        source = scripted(here.folder / "mean.pt")
    elif kind == "version":
        source = repository(here.folder / "repo/mean", versions=("3", "1")) / "3"
    else:
        whole = CONFIG.replace("max_batch_size: 64", "").replace("[ 12", "[ -1, -1").replace("[ 2,", "[ -1, 2,")
        config = {"model": CONFIG, "dims with the batch": whole, "nothing declared": None}[kind]
        source = repository(here.folder / "repo/mean", config)
    spec = here.adopted(source)

    window = np.random.default_rng(1).normal(5, 2, (12, 3)).astype(np.float32).tolist()
    assert spec.architecture == "Mean"
    np.testing.assert_allclose(await served(here.store, spec, window), expected(spec, window, Mean(3)), rtol=1e-5)


@pytest.mark.anyio
async def test_a_module_with_units_of_its_own(here: World) -> None:
    """With `scaling = "none"` it gets raw rows; the answers of one target may be flat, and a traced one will do."""
    here.recipe(data={"features": [{"name": "load", "role": "target", "scaling": "none"}]})
    path = here.folder / "raw.pt"
    torch.jit.trace(Raw(), torch.zeros(1, 12, 1)).save(path)
    spec = here.adopted(path)

    window = [[float(hour)] for hour in range(12)]
    np.testing.assert_allclose(await served(here.store, spec, window), [[6.5], [7.5]], rtol=1e-6)


# What is refused, and where that stands


def test_pickles_are_not_opened(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any kind: nothing in them runs."""
    ran: list[object] = []
    monkeypatch.setattr(Mean, "__setstate__", lambda self, state: ran.append(state), raising=False)
    for name, options in (("new", {}), ("old", {"_use_new_zipfile_serialization": False})):
        torch.save(Mean(3), here.folder / name, **options)
        said = here.refusal(here.folder / name)
        assert said.startswith(f"{name}: a pickle of Python objects (torch.save), which is a program")
        assert "torch.jit.script(module).save(path)" in said
    assert not ran


def test_what_is_no_module(here: World) -> None:
    """Each tells what it is instead."""
    (here.folder / "text").write_text("weights")
    (here.folder / "empty").mkdir()
    broken = scripted(here.folder / "broken.pt")
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("broken/constants.pkl", b"")

    assert here.refusal(here.folder / "text").startswith("text: no TorchScript archive")
    assert here.refusal(here.folder / "empty").startswith(
        "empty: neither a model of Triton's (config.pbtxt, 1/model.pt)"
    )
    assert here.refusal(here.folder / "none").startswith("none: no such file or folder")
    assert here.refusal(broken).startswith("broken.pt: not a TorchScript archive: ")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Mean(2), "Mean gives [2, 2, 2] for two windows of 12 rows; the recipe needs [2, 2, 3]"),
        (Mean(3).double(), "Mean: factor is of float64; float32 is needed: write module.float()"),
        (nn.Linear(4, 3), "Linear cannot be called with window [2, 12, 3]: "),
        (Strange(), "Strange gives no tensor for two windows of 12 rows"),
    ],
)
def test_modules_that_do_not_fit(here: World, module: nn.Module, said: str) -> None:
    """As in the function that the command calls."""
    assert here.refusal(scripted(here.folder / "m.pt", module)).startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"pytorch"', '"onnxruntime"', "backend 'onnxruntime'; TorchScript is read, of backend 'pytorch'"),
        ("backend:", "platform:", "platform 'pytorch'; TorchScript is read, of platform 'pytorch_libtorch'"),
        ("[ 12, 3 ]", "[ 24, 3 ]", "input 'INPUT__0' has the shape [B, 24, 3]; the recipe has a window of [B, 12, 3]"),
        ("[ 12, 3 ]", "[ 12 ]", "input 'INPUT__0' has the shape [B, 12]; the recipe has a window of [B, 12, 3]"),
        (
            "[ 2, 3 ]",
            "[ 6 ]",
            "output 'OUTPUT__0' has the shape [B, 6]; the recipe has [B, 2, 3], horizon by targets and past covariates",
        ),
        ("TYPE_FP32, dims: [ 12", "TYPE_FP64, dims: [ 12", "input 'INPUT__0' is of float64; float32 is needed"),
        ("TYPE_FP32, dims: [ 2", "TYPE_INT64, dims: [ 2", "output 'OUTPUT__0' is of TYPE_INT64; float32 is needed"),
        ("input [ {", 'input { name: "b" } input [ {', "2 inputs ('b', 'INPUT__0'), but the recipe needs 1"),
        ("output [ {", 'output { name: "b" } output [ {', "2 outputs ('b', 'OUTPUT__0'), but the recipe needs 1"),
        ("max_batch_size: 64", "max_batch_size: many", "4:17 : "),
        ("TYPE_FP32", "TYPE_FP33", "5:40 : "),
    ],
)
def test_what_tritons_configuration_says(here: World, old: str, new: str, said: str) -> None:
    """What does not fit is told with its place."""
    source = repository(here.folder / "mean", CONFIG.replace(old, new, 1), versions=("1",))
    found = here.refusal(source)
    assert found.startswith(f"mean/config.pbtxt: {said}"), found


def test_repositories_that_are_not_whole(here: World) -> None:
    """Without a version, without the file, with a name that leads elsewhere."""
    model = here.folder / "mean"
    model.mkdir()
    (model / "config.pbtxt").write_text(CONFIG)
    assert here.refusal(model).startswith("mean: no version: a folder whose name is a number")
    (model / "7").mkdir()
    assert here.refusal(model) == "mean/7: no file 'model.pt'"
    scripted(here.folder / "elsewhere.pt")
    (model / "config.pbtxt").write_text(CONFIG + 'default_model_filename: "../../elsewhere.pt"')
    assert here.refusal(model) == "mean/7: no file '../../elsewhere.pt'"
    (model / "config.pbtxt").write_text(CONFIG + 'default_model_filename: "net.pt"')
    scripted(model / "7" / "net.pt")
    assert here.adopted(model).architecture == "Mean"


# MLflow


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A registry in a database and a folder, with a model as TorchScript, one as a pickle and one of another kind."""
    import mlflow
    import mlflow.pytorch
    from mlflow.artifacts import download_artifacts
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    root = tmp_path_factory.mktemp("mlflow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
        kind = np.dtype(np.float32)
        rows = Schema([TensorSpec(kind, (-1, 2, 3))])
        signature, other = (ModelSignature(Schema([TensorSpec(kind, (-1, length, 3))]), rows) for length in (12, 24))
        options = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
        with mlflow.start_run() as run:
            module = torch.jit.script(Mean(3))
            mlflow.pytorch.log_model(module, name="a", registered_model_name="net", signature=signature, **options)
            mlflow.pytorch.log_model(Mean(3), name="b", registered_model_name="net", **options)
            mlflow.pytorch.log_model(module, name="c", registered_model_name="net", signature=other, **options)
        mlflow.MlflowClient().set_registered_model_alias("net", "champion", 1)
        yield {"run": f"runs:/{run.info.run_id}/a", "folder": download_artifacts("models:/net/1", dst_path=f"{root}/a")}
        mlflow.set_tracking_uri(before)


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["models:/net/1", "models:/net@champion", "run", "folder"])
async def test_mlflow_is_served(here: World, registry: dict[str, str], address: str) -> None:
    """By version, by alias, of a run, and from the folder itself: the forecasts are the module's own."""
    spec = here.adopted(registry.get(address, address))

    window = np.random.default_rng(2).normal(5, 2, (12, 3)).astype(np.float32).tolist()
    np.testing.assert_allclose(await served(here.store, spec, window), expected(spec, window, Mean(3)), rtol=1e-5)


def test_what_mlflow_has_that_is_not_read(here: World, registry: dict[str, str]) -> None:
    """A pickle, a signature of other windows, another flavour, no file, a name that is not there."""
    assert "a pickle of Python objects (torch.save)" in here.refusal("models:/net/2")
    said = here.refusal("models:/net/3")
    assert said == (
        "models:/net/3, signature: input '0' has the shape [B, 24, 3]; the recipe has a window of [B, 12, 3]"
    )
    (here.folder / "MLmodel").write_text("flavors:\n  python_function:\n    data: data\n")
    said = here.refusal(here.folder)
    assert "flavours python_function; 'pytorch' is read. mlflow.pytorch.log_model(" in said
    (here.folder / "MLmodel").write_text("flavors:\n  pytorch:\n    model_data: .\n")
    assert "no model.pth among MLmodel, recipe.toml, rows.csv" in here.refusal(here.folder)
    assert here.refusal("models:/nothing/1").startswith("models:/nothing/1: ")
    assert here.refusal("models:/net@nobody").startswith("models:/net@nobody: ")


def test_without_tritons_schema(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what to install; a repository without a configuration needs none of it."""
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    source = repository(here.folder / "mean", versions=("1",))
    assert here.refusal(source).endswith(
        "config.pbtxt: Triton's configuration needs the extra 'triton': pip install 'foretell[triton]'"
    )
    (source / "config.pbtxt").unlink()
    assert here.adopted(source).name == "tiny"


def test_without_mlflow(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what to install."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "mlflow.artifacts", raising=False)
    monkeypatch.delitem(sys.modules, "mlflow.exceptions", raising=False)
    monkeypatch.delitem(sys.modules, "mlflow.models", raising=False)
    assert here.refusal("models:/net/1") == (
        "models:/net/1: MLflow's models need the extra 'mlflow': pip install 'foretell[mlflow]'"
    )
