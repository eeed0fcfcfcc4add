"""Puts the application together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import handlers, runtime
from app.cache import Cache, MemoryCache
from app.cache_redis import RedisCache
from app.deps import State
from app.engine import Engine
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.middleware import Envelope, Intake
from app.predictor import Limits, Predictor
from app.registry import Registry
from app.routes import ROUTERS
from app.schemas import Problem
from app.settings import Policy, Settings
from models.store import Store

log = logging.getLogger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]

DESCRIPTION = """Forecasts of time series from LSTM and attention models, with the attention weights.

Post a window of rows to `/predict` for the next step or to `/forecast?steps=N` for more. `GET /models` says what is
served, and `/models/{name}/versions/{version}` what a model takes, with an example."""


def create_app(settings: Settings, lifecycle: Lifecycle | None = None) -> FastAPI:
    """The application; nothing of it is global, so a process may have several."""
    metrics = Metrics()
    app = FastAPIOffline(
        title="Foretell",
        version=version("foretell"),
        description=DESCRIPTION,
        redirect_slashes=False,
        lifespan=_lifespan(settings, lifecycle or Lifecycle(), metrics),
    )
    for router in ROUTERS:
        app.include_router(router)
    handlers.install(app)
    # The last added is the outermost.
    app.add_middleware(Intake, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Envelope, metrics=metrics, access_log=settings.access_log)
    _name_problem_schema(app)
    return app


def _lifespan(settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> Lifespan:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        engine = Engine(
            runtime.devices(settings.device),
            metrics,
            queue_rows=settings.max_queue_rows,
            batch_rows=settings.max_batch_rows,
            threads=settings.torch_threads,
        )
        registry = Registry(Store(settings.artifacts), engine, Policy.parse(settings.versions))
        cache = _cache(settings, metrics)
        limits = Limits(
            steps=settings.max_steps,
            deadline_ms=settings.deadline_ms,
            answer_numbers=settings.max_answer_numbers,
        )
        predictor = Predictor(registry, engine, cache, metrics, limits)
        metrics.watch(lambda: engine.rows, registry.versions)
        loading = asyncio.create_task(registry.load(), name="loading")
        loading.add_done_callback(_tell_failure)
        try:
            yield State(
                settings=settings,
                lifecycle=lifecycle,
                metrics=metrics,
                engine=engine,
                registry=registry,
                predictor=predictor,
            )
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await engine.close(settings.drain_s)
            if cache is not None:
                await cache.close()

    return lifespan


def _cache(settings: Settings, metrics: Metrics) -> Cache | None:
    if settings.redis_url is not None:
        timeout_s = settings.redis_timeout_ms / 1000
        return RedisCache(settings.redis_url, metrics, ttl_s=settings.cache_ttl_s, timeout_s=timeout_s)
    return MemoryCache(size=settings.cache_bytes, ttl_s=settings.cache_ttl_s) if settings.cache_bytes else None


def _tell_failure(loading: asyncio.Task[None]) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("loading the models failed", exc_info=error)


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
