"""A model of MLflow's: in a registry, of a run, or in a folder; its pytorch flavour, as TorchScript."""

from pathlib import Path

from training.errors import TrainingError
from training.publishing.declared import Declared, Tensor

MLMODEL = "MLmodel"
_SCHEMES = ("models:", "runs:", "mlflow-artifacts:")
_FLAVOUR = "pytorch"
_ARCHIVE = "model.pth"
_EXTRA = "MLflow's models need the extra 'mlflow': pip install 'foretell[mlflow]'"
_HOW = "mlflow.pytorch.log_model(torch.jit.script(model), ..., serialization_format='pickle') writes TorchScript"


def is_one(source: str) -> bool:
    """Whether it is an address of MLflow's, or a folder that it has written."""
    return source.startswith(_SCHEMES) or (Path(source) / MLMODEL).is_file()


def find(source: str, folder: Path) -> tuple[Path, Declared | None]:
    """The archive, fetched into the folder where it is elsewhere, and what is declared of it."""
    try:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlflow":
            raise
        raise TrainingError(f"{source}: {_EXTRA}") from None
    try:
        place = Path(source)
        if source.startswith(_SCHEMES):
            place = Path(download_artifacts(artifact_uri=source, dst_path=str(folder)))
        if not (place / MLMODEL).is_file():
            raise TrainingError(f"{source}: no model of MLflow's: {MLMODEL} is not there")
        model = Model.load(str(place))
    except MlflowException as error:
        raise TrainingError(f"{source}: {str(error).partition(chr(10))[0]}") from error
    flavour = model.flavors.get(_FLAVOUR)
    if flavour is None:
        raise TrainingError(f"{source}: flavours {', '.join(model.flavors)}; {_FLAVOUR!r} is read. {_HOW}")
    data = (place / str(flavour.get("model_data", "data"))).resolve()
    archive = data if data.is_file() else data / _ARCHIVE
    if not archive.is_file() or not archive.is_relative_to(place.resolve()):
        found = sorted(path.name for path in data.iterdir()) if data.is_dir() else []
        raise TrainingError(f"{source}: no {_ARCHIVE} among {', '.join(found) or 'its files'}. {_HOW}")
    return archive, _declared(model.signature, f"{source}, signature")


def _declared(signature: object, where: str) -> Declared | None:
    """None where it has none, or one of columns."""
    schemas = [getattr(signature, name, None) for name in ("inputs", "outputs")]
    if not all(schema is not None and schema.is_tensor_spec() for schema in schemas):
        return None
    taken, given = (
        [
            Tensor(str(one.name or number), str(one.type), tuple(one.shape[1:]))
            for number, one in enumerate(schema.inputs)
        ]
        for schema in schemas
        if schema is not None
    )
    return Declared(where, taken, given)
