"""GET /health/live and /health/ready, for the orchestrator."""

from fastapi import APIRouter, Response

from app.deps import EngineDep, LifecycleDep, RegistryDep, SettingsDep
from app.schemas import Live, Ready

router = APIRouter(prefix="/health", tags=["health"])


@router.get(
    "/live", summary="Is it alive?", responses={503: {"model": Live, "description": "A device is stuck or dead"}}
)
async def live(engine: EngineDep, settings: SettingsDep, response: Response) -> Live:
    """True while the event loop and every device's loop answer; where it is false, restart."""
    healthy = engine.healthy(settings.stall_s)
    response.status_code = 200 if healthy else 503
    return Live(live=healthy)


@router.get("/ready", summary="May it get requests?", responses={503: {"model": Ready, "description": "Not now"}})
async def ready(
    engine: EngineDep, settings: SettingsDep, registry: RegistryDep, lifecycle: LifecycleDep, response: Response
) -> Ready:
    """True once every chosen version has been tried and one is warm, while devices answer and no shutdown is on."""
    able = registry.ready and not lifecycle.draining and engine.healthy(settings.stall_s)
    response.status_code = 200 if able else 503
    return Ready(ready=able)
