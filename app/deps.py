"""What routes may ask for: the long-lived parts of the application, each in one line."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Request

from app.administration.administrator import Administrator
from app.forecasts.bands import Tables
from app.forecasts.predictor import Predictor
from app.hindsight.followed import Comparer
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.processes.backend import Parts
from app.settings import Settings


class State(TypedDict):
    """What the lifespan yields, and requests find in `request.state`."""

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    parts: Parts
    predictor: Predictor
    tables: Tables
    comparer: Comparer
    administrator: Administrator


def _part(name: str) -> Callable[[Request], Awaitable[Any]]:
    # Async, since a plain function would be sent to a thread and back for every request.
    async def part(request: Request) -> Any:  # noqa: ANN401  request.state is untyped; State says what is in it
        return getattr(request.state, name)

    return part


SettingsDep = Annotated[Settings, Depends(_part("settings"))]
LifecycleDep = Annotated[Lifecycle, Depends(_part("lifecycle"))]
MetricsDep = Annotated[Metrics, Depends(_part("metrics"))]
PartsDep = Annotated[Parts, Depends(_part("parts"))]
AdministratorDep = Annotated[Administrator, Depends(_part("administrator"))]
TablesDep = Annotated[Tables, Depends(_part("tables"))]
