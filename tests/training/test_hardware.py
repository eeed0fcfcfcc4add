"""Where a model is trained: precision, and several processes that train as one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.store import Store
from tests.patience import PATIENCE_S
from tests.training import world
from training.data.dataset import prepare
from training.errors import DataError, RecipeError
from training.fitting.fit import fit
from training.recipe import Recipe

with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return world.write(tmp_path / "rows.csv", world.rows(160))


def recipe(file: Path, **hardware: object) -> Recipe:
    return world.recipe(file, training={"epochs": 8, "hardware": hardware})


def test_bfloat16_learns_almost_the_same(file: Path) -> None:
    """Arithmetic is rougher, weights are not; what comes out is float32."""
    exact, rough = (
        fit(one, prepare(one), tell=lambda _: None) for one in (recipe(file), recipe(file, precision="bfloat16"))
    )

    assert rough.epochs[-1].validation != exact.epochs[-1].validation
    assert rough.epochs[-1].validation == pytest.approx(exact.epochs[-1].validation, rel=0.1)
    assert {weight.dtype for weight in rough.network.parameters()} == {torch.float32}


@pytest.mark.gpu
@with_gpu
def test_float16_learns_almost_the_same(file: Path) -> None:
    """On a GPU, with the loss scaled so that small gradients stay."""
    exact, rough = (
        fit(one, prepare(one), tell=lambda _: None) for one in (recipe(file), recipe(file, precision="float16"))
    )

    assert rough.epochs[-1].validation == pytest.approx(exact.epochs[-1].validation, rel=0.1)


def test_float16_needs_a_gpu(file: Path) -> None:
    """Refused before training, with what a processor can do."""
    one = recipe(file, precision="float16", accelerator="cpu")

    with pytest.raises(RecipeError, match=r"float16 needs a GPU; a CPU has bfloat16 and float32"):
        fit(one, prepare(one), tell=lambda _: None)


@without_gpu
def test_a_gpu_that_is_not_there_is_refused(file: Path) -> None:
    """As an error of the recipe."""
    one = recipe(file, accelerator="gpu")

    with pytest.raises(RecipeError, match=r"training.hardware: .*gpu"):
        fit(one, prepare(one), tell=lambda _: None)


def test_too_few_windows_for_all_devices_are_refused(file: Path) -> None:
    """A process without a window would have nothing to say."""
    one = recipe(file, accelerator="cpu", devices=200)

    with pytest.raises(DataError, match=r"train has \d+ windows, too few for 200 devices"):
        fit(one, prepare(one), tell=lambda _: None)


def test_a_batch_too_small_for_all_devices_is_refused(file: Path) -> None:
    """A process without a window in a batch would have no loss."""
    one = world.recipe(file, training={"batch": 2, "hardware": {"accelerator": "cpu", "devices": 3}})

    with pytest.raises(RecipeError, match=r"training.batch \(2\) must not be less than the devices \(3\)"):
        fit(one, prepare(one), tell=lambda _: None)


def test_two_processes_train_as_one(file: Path, tmp_path: Path) -> None:
    """They share every epoch's windows, learn what one learns, end with the same weights and publish one version."""
    options = {"epochs": 3, "batch": 28, "learning_rate": 0.01}
    one = world.recipe(file, training=options)
    alone = fit(one, prepare(one), tell=lambda _: None)

    both = {**options, "hardware": {"accelerator": "cpu", "devices": 2}}
    (tmp_path / "recipe.toml").write_text(world.toml(world.given(file, training=both)))
    (tmp_path / "train.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = re.findall(r"loss (\S+)  validation (\S+?)[* ] ", done.stdout)
    assert len(told) == 3
    for (loss, validation), epoch in zip(told, alone.epochs, strict=True):
        assert (float(loss), float(validation)) == pytest.approx((epoch.loss, epoch.validation), abs=1e-3)
    assert done.stdout.count("trained in") == 1
    assert list(Store(tmp_path / "store").index().models["tiny"].versions) == [1]
    seen = torch.cat([torch.load(tmp_path / f"times-{rank}.pt") for rank in (0, 1)])
    windows = prepare(one).windows["train"]
    assert seen.sort().values.tolist() == windows.gather(torch.arange(len(windows))).times.repeat_interleave(3).tolist()
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(first[name], weight, atol=1e-3) for name, weight in alone.network.state_dict().items())


TRAIN = """
import torch
from lightning.pytorch.callbacks import Callback
from training.fitting import fit as module
from training.__main__ import main

fit = module.fit
times = []


class Watch(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):
        times.append(batch.times)


def fit_and_save(*given, **options):
    fitted = fit(*given, **options, callbacks=[Watch()])
    torch.save(fitted.network.state_dict(), f"weights-{fitted.rank}.pt")
    torch.save(torch.cat(times), f"times-{fitted.rank}.pt")
    return fitted


module.fit = fit_and_save
raise SystemExit(main(["train", "recipe.toml", "--artifacts", "store"]))
"""
"""`train` as each process runs it, but that the weights of all and the times of their windows are kept."""
