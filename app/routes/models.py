"""GET /models: what is published, in what state, and what each version says of itself."""

from fastapi import APIRouter

from app.deps import PartsDep
from app.forecasts.catalogue import Model, Version
from app.schemas import ListedModel, ListedVersion, ModelList, VersionDetail, refusals

router = APIRouter(tags=["models"])


@router.get("/models", summary="List the models")
async def list_models(parts: PartsDep) -> ModelList:
    """Every published model with the state of its versions, and its aliases."""
    return ModelList(models=[_listed(name, model) for name, model in parts.catalogue.models.items()])


@router.get("/models/{name}", summary="Show a model", responses=refusals(404, 422))
async def show_model(name: str, parts: PartsDep) -> ListedModel:
    """One of them."""
    return _listed(name, parts.catalogue.model(name))


@router.get("/models/{name}/versions/{version}", summary="Show a version", responses=refusals(404, 422))
async def show_version(name: str, version: str, parts: PartsDep) -> VersionDetail:
    """A version's state, why it is out where it is, and its spec with an example to try.

    `version` is a number, an alias or `latest`.
    """
    return detail(parts.catalogue.find(name, version))


def detail(version: Version) -> VersionDetail:
    """A version as it is shown."""
    return VersionDetail(
        name=version.id.name,
        version=version.id.version,
        digest=version.id.digest,
        state=version.state,
        reason=version.reason,
        spec=version.spec,
    )


def _listed(name: str, model: Model) -> ListedModel:
    versions = [
        ListedVersion(version=number, state=version.state, digest=version.id.digest)
        for number, version in sorted(model.versions.items())
    ]
    return ListedModel(name=name, versions=versions, aliases=model.aliases)
