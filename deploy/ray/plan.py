"""What somebody wants to have scored, and whether it can be; knows neither torch nor Ray."""

from pathlib import Path
from typing import Literal, NamedTuple

from app.forecasts.bands import BandName, Wanted, check
from app.settings import Settings
from app.ticket import ModelId
from deploy.ray.table import Columns, columns_of
from deploy.ray.work import Manifest, WorkError, files_of, schema_of
from models import archive
from models.intervals import Table
from models.signature import Trust
from models.spec import Spec
from models.store import Entry, Store

Precision = Literal["float32", "bfloat16"]


class Given(NamedTuple):
    """What the command line says."""

    data: Path
    to: Path
    model: str
    version: str | None
    steps: int
    levels: tuple[str, ...]
    band: BandName
    id: str | None
    actors: int | None
    gpus: float


class Plan(NamedTuple):
    """What every scorer is told."""

    data: Path
    root: Path
    """Where results go."""
    store: Path | str
    model: ModelId
    columns: Columns
    steps: int
    wanted: Wanted | None
    device: str
    """`auto`, `cpu`, `cuda` or `cuda:n`."""
    threads: int
    batch_rows: int
    precision: Precision


def planned(given: Given, settings: Settings) -> tuple[Manifest, Plan]:
    """Everything that can be wrong is, before anything is computed."""
    if given.steps > settings.max_steps:
        raise WorkError(f"--steps {given.steps} is above FORETELL_MAX_STEPS={settings.max_steps}")
    place = settings.artifacts
    store = Store(place.absolute() if isinstance(place, Path) else place)
    model, signature = model_of(store, given.model, given.version)
    if settings.trusted_key is not None:
        Trust.parse(settings.trusted_key).check(model.name, model.version, model.digest, signature)
    with store.opened(model.name, model.version) as place_here:
        spec, table = contents(place_here, model)
    wanted = Wanted(given.levels, given.band) if given.levels else None
    if wanted is not None:
        if table is None:
            raise WorkError(f"{model.name} {model.version} has no intervals")
        check(table, wanted, given.steps)
    data = given.data.absolute()
    files = files_of(data)
    columns = columns_of(schema_of(data, files), spec, given.id or spec.series or "id")
    manifest = Manifest(
        model=model.name,
        version=model.version,
        digest=model.digest,
        steps=given.steps,
        levels=given.levels,
        band=given.band,
        precision=settings.precision,
        id=columns.id,
        data=files,
    )
    plan = Plan(
        data,
        given.to.absolute(),
        store.name,
        model,
        columns,
        given.steps,
        wanted,
        # Ray need not hide GPUs from processes that asked for none.
        "cpu" if settings.device == "auto" and not given.gpus else settings.device,
        settings.torch_threads,
        settings.max_batch_rows,
        settings.precision,
    )
    return manifest, plan


def model_of(store: Store, name: str, wanted: str | None) -> tuple[ModelId, str | None]:
    """The version that is meant, as for a request, and its signature."""
    entry = store.index().models.get(name, Entry())
    if not entry.versions:
        raise WorkError(f"{store.name}: there is no model {name!r}")
    alias = wanted or "production"
    if alias in entry.aliases:
        number = entry.aliases[alias]
    elif wanted in (None, "latest"):
        number = max(entry.versions)
    else:
        number = int(alias) if alias.isdecimal() else 0
    if number not in entry.versions:
        raise WorkError(f"{store.name}: {name} has no version {wanted!r}")
    return ModelId(name, number, entry.versions[number]), entry.signatures.get(number)


def contents(archive_at: Path, model: ModelId) -> tuple[Spec, Table | None]:
    """What an archive says of its model, and of its intervals where it has them; WorkError where it is another's."""
    try:
        content = archive_at.read_bytes()
        spec, residuals = (archive.record(content, name) for name in (archive.SPEC_FILE, archive.RESIDUALS_FILE))
        if spec is None or archive.digest_of(content) != model.digest:
            raise WorkError(f"{model.name} {model.version}: not the archive that the index lists")
        return Spec.model_validate_json(spec), None if residuals is None else Table.unpack(residuals)
    except OSError as error:
        raise WorkError(f"{model.name} {model.version}: {error.strerror}") from error
    except ValueError as error:
        raise WorkError(f"{model.name} {model.version}: {str(error).splitlines()[0]}") from error
