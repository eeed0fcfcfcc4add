"""What is served, changed at run time: versions loaded and unloaded, aliases moved. All of it takes a key."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.gate import principal_of
from app.administration.administrator import Pointed
from app.deps import AdministratorDep
from app.routes.models import detail
from app.schemas import VersionDetail, refusals
from app.schemas.administration import AliasDetail, Audit, AuditLine, Last, Pointing, WaitS
from models.store import Alias

router = APIRouter(tags=["administration"])

_VERSION = "/models/{name}/versions/{version}"
_ALIAS = "/models/{name}/aliases/{alias}"
_REFUSALS = refusals(401, 403, 404, 409, 422, 429, 503)


@router.post(
    f"{_VERSION}/load",
    summary="Load a version",
    responses={**_REFUSALS, 202: {"model": VersionDetail, "description": "It is still loading"}},
)
async def load(
    request: Request, response: Response, administrator: AdministratorDep, name: str, version: str, wait_s: WaitS = 30.0
) -> VersionDetail:
    """Whatever `FORETELL_VERSIONS` says; one that has failed is tried again. It loads and warms beside what serves, on
    every replica. 409 says why it does not load."""
    found = await administrator.load(name, version, by=principal_of(request.scope).name, within_s=wait_s)
    response.status_code = 200 if found.state == "ready" else 202
    return detail(found)


@router.post(f"{_VERSION}/unload", summary="Unload a version", responses=_REFUSALS)
async def unload(request: Request, administrator: AdministratorDep, name: str, version: str) -> VersionDetail:
    """Whatever `FORETELL_VERSIONS` says, until it is loaded again. What it was asked before is answered first. 409
    where an alias needs it."""
    return detail(await administrator.unload(name, version, by=principal_of(request.scope).name))


@router.get(_ALIAS, summary="Show an alias", tags=["models"], responses=refusals(404, 422))
async def show_alias(administrator: AdministratorDep, name: str, alias: str) -> AliasDetail:
    """What it stands for, what answers for it, and how its traffic is split."""
    return _shown(administrator.shown(name, alias))


@router.put(
    _ALIAS, summary="Promote a version", responses=refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
)
async def point(
    request: Request,
    administrator: AdministratorDep,
    name: str,
    alias: Alias,
    pointing: Pointing,
    wait_s: WaitS = 30.0,
) -> AliasDetail:
    """Let an alias stand for a version, from the moment that it is ready: until then, and where it does not load (409),
    the alias stays as it is. Clients keep the version that they get by `split`: who they are says `X-Client-ID`, else
    their key, else their address."""
    shown = await administrator.point(
        name,
        alias,
        str(pointing.version),
        split=pointing.split,
        shadow=pointing.shadow,
        by=principal_of(request.scope).name,
        within_s=wait_s,
    )
    return _shown(shown)


@router.post(f"{_ALIAS}/rollback", summary="Roll an alias back", responses=_REFUSALS)
async def roll_back(request: Request, administrator: AdministratorDep, name: str, alias: str) -> AliasDetail:
    """To the version that it stood for before, which is still warm, without any split or shadow."""
    return _shown(await administrator.roll_back(name, alias, by=principal_of(request.scope).name))


@router.delete(_ALIAS, summary="Delete an alias", status_code=204, responses=_REFUSALS)
async def drop(request: Request, administrator: AdministratorDep, name: str, alias: str) -> None:
    """Requests for it are refused from then on; without `production`, `latest` is what is meant by default."""
    await administrator.drop(name, alias, by=principal_of(request.scope).name)


@router.get("/audit", summary="Show who changed what", responses=refusals(401, 403, 422, 429, 503))
async def audit(administrator: AdministratorDep, last: Annotated[Last, Query()] = 100) -> Audit:
    """Every change of the store, by whichever way it was made."""
    return Audit(changes=[AuditLine.model_validate(said) for said in await administrator.audit(last)])


def _shown(pointed: Pointed) -> AliasDetail:
    return AliasDetail(
        model=pointed.model,
        alias=pointed.alias,
        version=pointed.version,
        serves=pointed.serves,
        split=dict(pointed.traffic.split),
        shadow=pointed.traffic.shadow,
        previous=list(pointed.traffic.previous),
    )
