"""Puts the application together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app import handlers, published
from app.access.browsers import Cors, Pages
from app.access.gate import Access, Gate
from app.access.needs import document as document_access
from app.administration.administrator import Administrator
from app.deps import State
from app.edge.middleware import Ample, Envelope, Intake
from app.forecasts.adaptive import Adaptive, FolderStates, States
from app.forecasts.bands import Bander, Tables
from app.forecasts.cache import Cache, MemoryCache
from app.forecasts.drift import Drift
from app.forecasts.predictor import Limits, Predictor
from app.forecasts.shadow import Shadows
from app.hindsight.followed import Comparer
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.processes.backend import Backend
from app.routes import DIRECT, ROUTERS, backtest, batch
from app.routes.direct import Shortcuts, Surroundings, shortcuts
from app.schemas import Problem
from app.schemas.inference import ChangeRequest, IndexRequest, InferenceError, InferRequest
from app.schemas.timeseries import TimeSeriesError, TimeSeriesRequest
from app.settings import Settings, origins_of
from app.spans import Tracer, tracer_of

if TYPE_CHECKING:
    from app.administration.news_redis import RedisNews

_REFERRED = (
    Problem,
    InferenceError,
    InferRequest,
    IndexRequest,
    ChangeRequest,
    TimeSeriesError,
    TimeSeriesRequest,
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]

DESCRIPTION = """Forecasts of time series from LSTM and attention models, with the attention weights.

Post a window of rows to `/predict` for the next step or to `/forecast?steps=N` for more. `GET /models` says what is
served, and `/models/{name}/versions/{version}` what a model takes, with an example."""


class Application:
    """The ASGI application: FastAPI's, but for the endpoints that run without it."""

    def __init__(self, api: FastAPI, direct: Shortcuts) -> None:
        self.api = api
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = self._direct.find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        await (direct or self.api)(scope, receive, send)


def create_app(settings: Settings, lifecycle: Lifecycle, backend: Backend, *, process: str = "service") -> Application:
    """The application, in the process of that name; nothing of it is global, so a process may have several.

    SettingsError where spans are wanted and what makes them is not installed.
    """
    tracer = tracer_of(settings, process, backend.metrics)
    published.prepare(settings)
    access = Access(settings, backend.metrics, lambda scope: _is_served(api, scope))
    api = FastAPIOffline(
        title="Foretell",
        version=version("foretell"),
        description=DESCRIPTION,
        redirect_slashes=False,
        lifespan=_lifespan(settings, lifecycle, backend, access, tracer),
        # It has traces of its own, with query strings in them, which environment variables turn on.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for router in ROUTERS:
        api.include_router(router)
    handlers.install(api)
    _complete_document(api, guarded=access.keyring.guarded)
    long = Ample("backtests and batches", settings.max_series_bytes, settings.backtests)
    ample = {backtest.PATH: long, batch.PATH: long}
    intake = partial(Intake, max_body_bytes=settings.max_body_bytes, ample=ample)
    gate = partial(Gate, access=access)
    envelope = partial(Envelope, metrics=backend.metrics, access_log=settings.access_log, tracer=tracer)
    # From the outermost to the innermost. A page of another origin is to see refusals too.
    origins = origins_of(settings.cors_origins)
    surroundings: list[Surroundings] = [envelope, gate, intake]
    if origins:
        surroundings.insert(0, partial(Cors, origins=origins))
    api.add_middleware(Pages)
    for surrounding in reversed(surroundings):
        api.add_middleware(surrounding)
    return Application(api, shortcuts(DIRECT, partial(_surrounded, surroundings)))


def _surrounded(surroundings: Sequence[Surroundings], app: ASGIApp) -> ASGIApp:
    for surrounding in reversed(surroundings):
        app = surrounding(app)
    return app


def _is_served(api: FastAPI, scope: Scope) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in api.routes)


def _lifespan(
    settings: Settings, lifecycle: Lifecycle, backend: Backend, access: Access, tracer: Tracer | None
) -> Lifespan:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        metrics = backend.metrics
        async with _closing(tracer), backend.running(settings, tracer) as parts, access.running(parts.folder):
            cache = _cache(settings, metrics)
            limits = Limits(
                steps=settings.max_steps,
                row_steps=settings.max_row_steps,
                deadline_ms=settings.deadline_ms,
                answer_numbers=settings.max_answer_numbers,
            )
            drift = Drift(metrics)
            adaptive = Adaptive(_states(settings, parts.folder), metrics)
            tables = Tables(published.read(settings))
            bander = Bander(tables, adaptive)
            shadows = Shadows(parts.engine, metrics)
            predictor = Predictor(parts.catalogue, parts.engine, cache, metrics, drift, bander, shadows, limits)
            news = _news(settings)
            administrator = Administrator(published.changed(settings), parts.catalogue, parts.changed, news)
            metrics.watch(
                parts.catalogue.versions,
                parts.catalogue.answering,
                parts.processes,
                lambda: not lifecycle.draining and parts.is_ready(settings.stall_s),
                lambda: parts.catalogue.trouble is None,
            )
            tasks = [
                asyncio.create_task(drift.watch(), name="drift"),
                asyncio.create_task(metrics.keep_swept(), name="metrics"),
            ]
            if news is not None:
                tasks.append(asyncio.create_task(news.follow(parts.changed), name="news"))
            try:
                yield State(
                    settings=settings,
                    lifecycle=lifecycle,
                    metrics=metrics,
                    parts=parts,
                    predictor=predictor,
                    tables=tables,
                    comparer=Comparer(predictor, tables, adaptive, metrics, most_rows=settings.max_steps),
                    administrator=administrator,
                )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if news is not None:
                    await news.close()
                await adaptive.close()
                metrics.settle()
                if cache is not None:
                    await cache.close()

    return lifespan


@asynccontextmanager
async def _closing(tracer: Tracer | None) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


# Redis is only in processes that use it: it takes seven megabytes and a tenth of a second.


def _cache(settings: Settings, metrics: Metrics) -> Cache | None:
    if settings.redis_url is None:
        return MemoryCache(size=settings.cache_bytes, ttl_s=settings.cache_ttl_s) if settings.cache_bytes else None
    from app.forecasts.cache_redis import RedisCache

    timeout_s = settings.redis_timeout_ms / 1000
    return RedisCache(settings.redis_url, metrics, ttl_s=settings.cache_ttl_s, timeout_s=timeout_s)


def _news(settings: Settings) -> "RedisNews | None":
    if settings.redis_url is None:
        return None
    from app.administration.news_redis import RedisNews

    return RedisNews(settings.redis_url, timeout_s=settings.redis_timeout_ms / 1000)


def _states(settings: Settings, folder: Path) -> States:
    if settings.redis_url is None:
        return FolderStates(folder)
    from app.forecasts.adaptive_redis import RedisStates

    return RedisStates(settings.redis_url, timeout_s=settings.redis_timeout_ms / 1000)


def _complete_document(app: FastAPI, *, guarded: bool) -> None:
    """Routes refer to these schemas by name; they are added once, and so is what keys are for."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        for model in _REFERRED:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
        document_access(document, guarded=guarded)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
