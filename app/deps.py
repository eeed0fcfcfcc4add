"""What routes may ask for: the long-lived parts of the application, each in one line."""

from typing import Annotated, TypedDict

from fastapi import Depends, Request

from app.engine import Engine
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.predictor import Predictor
from app.registry import Registry
from app.settings import Settings


class State(TypedDict):
    """What the lifespan yields, and requests find in `request.state`."""

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    engine: Engine
    registry: Registry
    predictor: Predictor


# All of them async: a plain function would be sent to a thread and back for every request.


async def _settings(request: Request) -> Settings:
    return request.state.settings  # type: ignore[no-any-return]  # request.state is untyped; State says what is in it


async def _lifecycle(request: Request) -> Lifecycle:
    return request.state.lifecycle  # type: ignore[no-any-return]  # as above


async def _metrics(request: Request) -> Metrics:
    return request.state.metrics  # type: ignore[no-any-return]  # as above


async def _engine(request: Request) -> Engine:
    return request.state.engine  # type: ignore[no-any-return]  # as above


async def _registry(request: Request) -> Registry:
    return request.state.registry  # type: ignore[no-any-return]  # as above


async def _predictor(request: Request) -> Predictor:
    return request.state.predictor  # type: ignore[no-any-return]  # as above


SettingsDep = Annotated[Settings, Depends(_settings)]
LifecycleDep = Annotated[Lifecycle, Depends(_lifecycle)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
EngineDep = Annotated[Engine, Depends(_engine)]
RegistryDep = Annotated[Registry, Depends(_registry)]
PredictorDep = Annotated[Predictor, Depends(_predictor)]
