"""A model in a repository of Triton's: `<model>/config.pbtxt` and `<model>/<version>/model.pt`."""

from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.publishing.declared import Declared, Tensor

CONFIG = "config.pbtxt"
_ARCHIVE = "model.pt"
_PYTORCH = {"backend": "pytorch", "platform": "pytorch_libtorch"}
_EXTRA = "Triton's configuration needs the extra 'triton': pip install 'foretell[triton]'"
_FLOATS = {"TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64"}


def is_one(folder: Path) -> bool:
    """Whether it is the folder of a model, or of one of its versions."""
    return any((place / CONFIG).exists() for place in (folder, folder.parent)) or bool(_versions(folder))


def find(folder: Path) -> tuple[Path, Declared | None]:
    """The archive, of the newest version where the folder is that of the model, and what is declared of it."""
    is_version = folder.name.isdecimal() and (folder.parent / CONFIG).exists()
    model = folder.parent if is_version else folder
    config = _read(model / CONFIG) if (model / CONFIG).exists() else None
    if not is_version:
        versions = _versions(model)
        if not versions:
            raise TrainingError(f"{model}: no version: a folder whose name is a number, with {_ARCHIVE} in it")
        folder = model / str(max(versions))
    name = (config.default_model_filename if config else "") or _ARCHIVE
    archive = folder / name
    if Path(name).name != name or not archive.is_file():
        raise TrainingError(f"{folder}: no file {name!r}")
    return archive, _declared(config, model / CONFIG) if config else None


def _versions(folder: Path) -> list[int]:
    # Triton, too, passes over names that begin with zero.
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdecimal() and not name.startswith("0")]


def _read(path: Path) -> Any:  # noqa: ANN401  a message of a library without types
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError:
        raise TrainingError(f"{path}: {_EXTRA}") from None
    config = ModelConfig()
    try:
        text_format.Parse(path.read_text(), config, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: {error}") from error
    for field, wanted in _PYTORCH.items():
        said = getattr(config, field)
        if said and said != wanted:
            raise TrainingError(f"{path}: {field} {said!r}; TorchScript is read, of {field} {wanted!r}")
    return config


def _declared(config: Any, path: Path) -> Declared | None:  # noqa: ANN401  see above
    """None where it leaves inputs and outputs to the server to find out."""
    if not config.input and not config.output:
        return None
    batched = config.max_batch_size > 0

    def tensor(said: Any) -> Tensor:  # noqa: ANN401  see above
        dims = tuple(said.reshape.shape) if said.HasField("reshape") else tuple(said.dims)
        kind = type(said).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[said.data_type].name
        return Tensor(said.name, _FLOATS.get(kind, kind), dims if batched else dims[1:])

    return Declared(str(path), [tensor(one) for one in config.input], [tensor(one) for one in config.output])
