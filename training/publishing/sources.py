"""Where a network that was trained elsewhere lies: a TorchScript archive, and what is declared of it."""

import zipfile
from pathlib import Path

from torch import nn

from models import artifact
from training.errors import TrainingError
from training.publishing import mlflow_models, triton
from training.publishing.declared import Declared

_PICKLES = ("data.pkl",)
_CODE = "constants.pkl"
"""Beside that, TorchScript alone has this."""


def read(source: str, folder: Path) -> tuple[nn.Module, Declared | None]:
    """The module of a source, and what is declared of it; TrainingError where there is none. Into the folder goes what
    must be fetched, which may be gone afterwards.

    A source is a file, a model of a Triton repository or one of its versions, or a model of MLflow's: an address such
    as models:/name/1, models:/name@alias and runs:/..., or its folder. Only TorchScript is read: a pickle is a program
    that runs in being read.
    """
    path, declared = _find(source, folder)
    _check_kind(path)
    return artifact.foreign(path), declared


def _find(source: str, folder: Path) -> tuple[Path, Declared | None]:
    if mlflow_models.is_one(source):
        return mlflow_models.find(source, folder)
    path = Path(source)
    if path.is_dir():
        if triton.is_one(path):
            return triton.find(path)
        raise TrainingError(
            f"{path}: neither a model of Triton's ({triton.CONFIG}, 1/model.pt) nor of MLflow's (MLmodel)"
        )
    if not path.is_file():
        raise TrainingError(f"{path}: no such file or folder")
    return path, None


def _check_kind(path: Path) -> None:
    names: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    if _CODE in names:
        return
    if names.isdisjoint(_PICKLES) and path.read_bytes()[:1] != b"\x80":
        raise TrainingError(f"{path}: no TorchScript archive; torch.jit.script(module).save(path) writes one")
    raise TrainingError(
        f"{path}: a pickle of Python objects (torch.save), which is a program and is not opened; where the module was "
        "made, torch.jit.script(module).save(path) writes TorchScript"
    )
