"""GET /health/live and /health/ready, for the orchestrator."""

from fastapi import APIRouter, Response

from app.deps import LifecycleDep, PartsDep, SettingsDep
from app.schemas import Live, Ready

router = APIRouter(prefix="/health", tags=["health"])


@router.get(
    "/live", summary="Is it alive?", responses={503: {"model": Live, "description": "A device is stuck or dead"}}
)
async def live(parts: PartsDep, response: Response) -> Live:
    """True while nothing needs a restart from outside: the event loop answers, and so do the devices, unless they are
    processes of their own, which the service mends itself."""
    healthy = parts.is_live()
    response.status_code = 200 if healthy else 503
    return Live(live=healthy)


@router.get("/ready", summary="May it get requests?", responses={503: {"model": Ready, "description": "Not now"}})
async def ready(parts: PartsDep, settings: SettingsDep, lifecycle: LifecycleDep, response: Response) -> Ready:
    """True once every chosen version has been tried and one is warm, while a device answers and no shutdown is on."""
    able = not lifecycle.draining and parts.is_ready(settings.stall_s)
    response.status_code = 200 if able else 503
    return Ready(ready=able)
