"""Puts the application together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Receive, Scope, Send

from app import handlers
from app.deps import State
from app.forecasts.adaptive import Adaptive, FolderStates, States
from app.forecasts.adaptive_redis import RedisStates
from app.forecasts.bands import Bander, Tables
from app.forecasts.cache import Cache, MemoryCache
from app.forecasts.cache_redis import RedisCache
from app.forecasts.drift import Drift
from app.forecasts.predictor import Limits, Predictor
from app.hindsight.followed import Comparer
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.middleware import Ample, Envelope, Intake
from app.processes.backend import Backend
from app.routes import DIRECT, ROUTERS, backtest
from app.routes.direct import shortcuts
from app.schemas import Problem
from app.settings import Settings
from models.store import Store

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]

DESCRIPTION = """Forecasts of time series from LSTM and attention models, with the attention weights.

Post a window of rows to `/predict` for the next step or to `/forecast?steps=N` for more. `GET /models` says what is
served, and `/models/{name}/versions/{version}` what a model takes, with an example."""


class Application:
    """The ASGI application: FastAPI's, but for the endpoints that run without it."""

    def __init__(self, api: FastAPI, direct: Mapping[tuple[str, str], ASGIApp]) -> None:
        self.api = api
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = self._direct.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        await (direct or self.api)(scope, receive, send)


def create_app(settings: Settings, lifecycle: Lifecycle, backend: Backend) -> Application:
    """The application; nothing of it is global, so a process may have several."""
    api = FastAPIOffline(
        title="Foretell",
        version=version("foretell"),
        description=DESCRIPTION,
        redirect_slashes=False,
        lifespan=_lifespan(settings, lifecycle, backend),
    )
    for router in ROUTERS:
        api.include_router(router)
    handlers.install(api)
    _name_problem_schema(api)
    ample = {
        backtest.PATH: Ample("backtests", settings.max_series_bytes, settings.backtests, settings.deadline_ms / 1000)
    }
    intake = partial(Intake, max_body_bytes=settings.max_body_bytes, ample=ample)
    envelope = partial(Envelope, metrics=backend.metrics, access_log=settings.access_log)
    # The last added is the outermost.
    api.add_middleware(intake)
    api.add_middleware(envelope)
    return Application(api, shortcuts(DIRECT, lambda endpoint: envelope(intake(endpoint))))


def _lifespan(settings: Settings, lifecycle: Lifecycle, backend: Backend) -> Lifespan:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        metrics = backend.metrics
        async with backend.running(settings) as parts:
            cache = _cache(settings, metrics)
            limits = Limits(
                steps=settings.max_steps,
                deadline_ms=settings.deadline_ms,
                answer_numbers=settings.max_answer_numbers,
            )
            drift = Drift(metrics)
            adaptive = Adaptive(_states(settings, parts.folder), metrics)
            tables = Tables(Store(settings.artifacts))
            bander = Bander(tables, adaptive)
            predictor = Predictor(parts.catalogue, parts.engine, cache, metrics, drift, bander, limits)
            metrics.watch(parts.catalogue.versions, parts.processes)
            watching = asyncio.create_task(drift.watch(), name="drift")
            try:
                yield State(
                    settings=settings,
                    lifecycle=lifecycle,
                    metrics=metrics,
                    parts=parts,
                    predictor=predictor,
                    tables=tables,
                    comparer=Comparer(
                        parts.catalogue, predictor, tables, adaptive, metrics, most_rows=settings.max_steps
                    ),
                )
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await adaptive.close()
                if cache is not None:
                    await cache.close()

    return lifespan


def _cache(settings: Settings, metrics: Metrics) -> Cache | None:
    if settings.redis_url is not None:
        timeout_s = settings.redis_timeout_ms / 1000
        return RedisCache(settings.redis_url, metrics, ttl_s=settings.cache_ttl_s, timeout_s=timeout_s)
    return MemoryCache(size=settings.cache_bytes, ttl_s=settings.cache_ttl_s) if settings.cache_bytes else None


def _states(settings: Settings, folder: Path) -> States:
    if settings.redis_url is not None:
        return RedisStates(settings.redis_url, timeout_s=settings.redis_timeout_ms / 1000)
    return FolderStates(folder)


def _name_problem_schema(app: FastAPI) -> None:
    """Routes refer to the Problem schema by name; it is added once."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, nested in schema.pop("$defs", {}).items():
            document["components"]["schemas"][name] = nested
        document["components"]["schemas"]["Problem"] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
