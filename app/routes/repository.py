"""POST /v2/repository: Triton's model repository extension; what changes what is served takes a key."""

from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError

from app.access.gate import principal_of
from app.codec.tensors import parse
from app.deps import AdministratorDep, PartsDep, SettingsDep
from app.errors import InvalidError, Place, UnavailableError
from app.forecasts.catalogue import Version
from app.schemas import refusals
from app.schemas.inference import ChangeRequest, IndexEntry, IndexRequest

router = APIRouter(prefix="/v2/repository", tags=["inference protocol"])

_CHANGES = refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, path="/v2")
_LONGEST_ECHO = 80
_MOST_TOLD = 10
_STATES: dict[str, Literal["READY", "UNAVAILABLE", "LOADING"]] = {"ready": "READY", "loading": "LOADING"}
Read = TypeVar("Read", bound=BaseModel)


def _described(body: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/index",
    summary="List the repository",
    responses=refusals(400, 408, 413, 415, 422, 503, path="/v2"),
    openapi_extra=_described(IndexRequest),
)
async def index(request: Request, parts: PartsDep) -> list[IndexEntry]:
    """Every published version with its state and, where it is out, why."""
    asked = _read(request, IndexRequest)
    return [_entry(one) for one in parts.catalogue.versions() if one.state == "ready" or not asked.ready]


@router.post("/models/{name}/load", summary="Load a model", responses=_CHANGES, openapi_extra=_described(ChangeRequest))
async def load(request: Request, administrator: AdministratorDep, settings: SettingsDep, name: str) -> list[IndexEntry]:
    """The version of `parameters.version`, else the newest that is published; answered once it is ready. 409 says why
    it does not load."""
    wanted = _read(request, ChangeRequest).parameters.version or await administrator.newest(name)
    by = principal_of(request.scope).name
    found = await administrator.load(name, wanted, by=by, within_s=settings.load_s)
    if found.state != "ready":
        raise UnavailableError(f"{name} version {found.id.version} is still loading")
    return [_entry(found)]


@router.post(
    "/models/{name}/unload", summary="Unload a model", responses=_CHANGES, openapi_extra=_described(ChangeRequest)
)
async def unload(request: Request, administrator: AdministratorDep, parts: PartsDep, name: str) -> list[IndexEntry]:
    """The version of `parameters.version`, else all of them. 409 where an alias needs it."""
    wanted = _read(request, ChangeRequest).parameters.version
    model = parts.catalogue.model(name)
    # Those that aliases stand for come first: where one is refused, none has gone.
    ordered = sorted(model.versions, key=lambda number: number not in model.aliases.values())
    loaded = [str(number) for number in ordered if model.versions[number].state in ("ready", "loading")]
    by = principal_of(request.scope).name
    versions = loaded if wanted is None else [wanted]
    return [_entry(await administrator.unload(name, version, by=by)) for version in versions]


def _read(request: Request, kind: type[Read]) -> Read:
    """What the body says, whatever it is called; nothing is as good as an empty object."""
    body: bytes = request.scope["state"]["body"]
    if not body:
        return kind()
    try:
        return kind.model_validate(parse(body))
    except ValidationError as error:
        places = []
        for fault in error.errors():
            place = ".".join(str(part)[:_LONGEST_ECHO] for part in fault["loc"]) or "body"
            unknown = "unknown field; a model is served as it was published"
            places.append(Place(place, unknown if fault["type"] == "extra_forbidden" else fault["msg"]))
        raise InvalidError(*places[:_MOST_TOLD]) from None


def _entry(version: Version) -> IndexEntry:
    state = _STATES.get(version.state, "UNAVAILABLE")
    reason = version.reason or ("" if state != "UNAVAILABLE" else version.state)
    return IndexEntry(name=version.id.name, version=str(version.id.version), state=state, reason=reason)
