"""GET /v2: what is served and how it is, by the Open Inference Protocol, version 2."""

from importlib.metadata import version as version_of
from typing import Any

from fastapi import APIRouter, Response

from app.asked.tensors import Tensor, inputs_of, outputs_of
from app.costs import Figures
from app.deps import LifecycleDep, MetricsDep, PartsDep, SettingsDep
from app.errors import NotReadyError
from app.forecasts.catalogue import Catalogue, Version
from app.processes.backend import Parts
from app.schemas import Live, refusals
from app.schemas.inference import (
    Batching,
    Duration,
    InferenceStatistics,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    ResponseCache,
    ServerMetadata,
    ServerReady,
    Statistics,
    StringValue,
    TensorConfig,
    TensorMetadata,
)
from app.settings import Settings
from models.spec import Spec

router = APIRouter(prefix="/v2", tags=["inference protocol"])

_EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]
_PLATFORM, _BACKEND = "pytorch_torchscript", "foretell"
_MODEL, _VERSION = "/models/{name}", "/models/{name}/versions/{version}"
_UNKNOWN = refusals(404, 422, 503, path="/v2")
_NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"model": ModelReady, "description": "Not now"}}


@router.get("", summary="Show the server")
@router.get("/", include_in_schema=False)
async def server() -> ServerMetadata:
    """Its name, its version, and which extensions of the protocol it has."""
    return ServerMetadata(name="foretell", version=version_of("foretell"), extensions=_EXTENSIONS)


@router.get("/health/live", summary="Is the server alive?", responses={503: {"model": Live, "description": "Not now"}})
async def live(parts: PartsDep, response: Response) -> Live:
    """As /health/live."""
    alive = parts.is_live()
    response.status_code = 200 if alive else 503
    return Live(live=alive)


@router.get(
    "/health/ready", summary="Is the server ready?", responses={503: {"model": ServerReady, "description": "Not now"}}
)
async def ready(parts: PartsDep, settings: SettingsDep, lifecycle: LifecycleDep, response: Response) -> ServerReady:
    """As /health/ready."""
    able = not lifecycle.draining and parts.is_ready(settings.stall_s)
    response.status_code = 200 if able else 503
    return ServerReady(live=parts.is_live(), ready=able)


@router.get("/models/stats", summary="Show the statistics of all models")
async def all_statistics(parts: PartsDep, settings: SettingsDep, metrics: MetricsDep) -> Statistics:
    """Of every version that is ready, counted by all HTTP processes together."""
    found = [version for version in parts.catalogue.versions() if version.state == "ready"]
    return _statistics(found, await metrics.figures(), settings)


@router.get(_MODEL, summary="Show a model's tensors", responses=_UNKNOWN)
async def model_metadata(parts: PartsDep, name: str) -> ModelMetadata:
    """What the version that is served by default takes and gives."""
    return _metadata(parts.catalogue, name, None)


@router.get(_VERSION, summary="Show a version's tensors", responses=_UNKNOWN)
async def version_metadata(parts: PartsDep, name: str, version: str) -> ModelMetadata:
    """The same of a version: a number, an alias or `latest`."""
    return _metadata(parts.catalogue, name, version)


@router.get(f"{_MODEL}/ready", summary="Is a model ready?", responses=refusals(404, 422, path="/v2") | _NOT_NOW)
async def model_ready(parts: PartsDep, response: Response, name: str) -> ModelReady:
    """Whether a version of it answers where none is named."""
    return _readiness(parts.catalogue, response, name, None)


@router.get(f"{_VERSION}/ready", summary="Is a version ready?", responses=refusals(404, 422, path="/v2") | _NOT_NOW)
async def version_ready(parts: PartsDep, response: Response, name: str, version: str) -> ModelReady:
    """Whether what is named answers."""
    return _readiness(parts.catalogue, response, name, version)


@router.get(f"{_MODEL}/config", summary="Show a model's configuration", responses=_UNKNOWN)
async def model_config(parts: PartsDep, settings: SettingsDep, name: str) -> ModelConfig:
    """As Triton would have it, of the version that is served by default."""
    return _config(parts, settings, name, None)


@router.get(f"{_VERSION}/config", summary="Show a version's configuration", responses=_UNKNOWN)
async def version_config(parts: PartsDep, settings: SettingsDep, name: str, version: str) -> ModelConfig:
    """The same of a version: a number, an alias or `latest`."""
    return _config(parts, settings, name, version)


@router.get(f"{_MODEL}/stats", summary="Show a model's statistics", responses=refusals(404, 422, path="/v2"))
async def model_statistics(parts: PartsDep, settings: SettingsDep, metrics: MetricsDep, name: str) -> Statistics:
    """Of those of its versions that are ready."""
    return _statistics(parts.catalogue.model(name).in_state("ready"), await metrics.figures(), settings)


@router.get(f"{_VERSION}/stats", summary="Show a version's statistics", responses=refusals(404, 422, 503, path="/v2"))
async def version_statistics(
    parts: PartsDep, settings: SettingsDep, metrics: MetricsDep, name: str, version: str
) -> Statistics:
    """Of one version, whatever its state."""
    return _statistics([parts.catalogue.find(name, version)], await metrics.figures(), settings)


def _metadata(catalogue: Catalogue, name: str, wanted: str | None) -> ModelMetadata:
    meant, spec, _ = catalogue.resolve(name, wanted)
    return ModelMetadata(
        name=name,
        versions=[str(version.id.version) for version in catalogue.model(name).in_state("ready")],
        platform=_PLATFORM,
        inputs=[_shown(tensor) for tensor in inputs_of(spec)],
        outputs=[_shown(tensor) for tensor in outputs_of(spec)],
        properties={"version": str(meant.version), "digest": meant.digest} | _properties(spec),
    )


def _properties(spec: Spec) -> dict[str, str]:
    """What the tensors alone do not say."""
    said = {
        "columns": ",".join(spec.columns),
        "targets": ",".join(spec.targets),
        "future": ",".join(spec.future),
        "static": ",".join(spec.static),
        "horizon": str(spec.horizon),
        "frequency_s": f"{spec.frequency.total_seconds():g}",
    }
    return {name: value for name, value in said.items() if value}


def _shown(tensor: Tensor) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


def _readiness(catalogue: Catalogue, response: Response, name: str, wanted: str | None) -> ModelReady:
    try:
        catalogue.resolve(name, wanted)
    except NotReadyError:
        response.status_code = 503
        return ModelReady(name=name, ready=False)
    return ModelReady(name=name, ready=True)


def _config(parts: Parts, settings: Settings, name: str, wanted: str | None) -> ModelConfig:
    meant, spec, _ = parts.catalogue.resolve(name, wanted)
    said = {"version": str(meant.version), "digest": meant.digest} | _properties(spec)
    return ModelConfig(
        name=name,
        platform=_PLATFORM,
        backend=_BACKEND,
        max_batch_size=parts.engine.queue_rows,
        input=[_configured(tensor) for tensor in inputs_of(spec)],
        output=[_configured(tensor) for tensor in outputs_of(spec)],
        dynamic_batching=Batching(max_queue_delay_microseconds=0),
        response_cache=ResponseCache(enable=_caches(settings)),
        parameters={key: StringValue(string_value=value) for key, value in said.items()},
    )


def _configured(tensor: Tensor) -> TensorConfig:
    return TensorConfig(name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=list(tensor.shape[1:]))


def _caches(settings: Settings) -> bool:
    return settings.redis_url is not None or settings.cache_bytes > 0


def _statistics(versions: list[Version], figures: dict[tuple[str, str], Figures], settings: Settings) -> Statistics:
    caches = _caches(settings)
    return Statistics(
        model_stats=[
            _counted(version, figures.get((version.id.name, str(version.id.version)), Figures()), caches=caches)
            for version in versions
        ]
    )


def _counted(version: Version, of: Figures, *, caches: bool) -> ModelStatistics:
    computed, cached, failed = (of.requests.get(result, 0) for result in ("computed", "cached", "failed"))
    right_s = of.seconds.get("computed", 0.0) + of.seconds.get("cached", 0.0)

    def stage(count: int, name: str) -> Duration:
        return _duration(count, of.stages.get(name, 0.0))

    return ModelStatistics(
        name=version.id.name,
        version=str(version.id.version),
        last_inference=int(of.last * 1000),
        inference_count=of.windows.get("computed", 0),
        execution_count=of.passes,
        inference_stats=InferenceStatistics(
            success=_duration(computed + cached, right_s),
            fail=_duration(failed, of.seconds.get("failed", 0.0)),
            queue=stage(computed, "queue"),
            compute_input=stage(computed + cached, "parse"),
            compute_infer=stage(computed, "compute"),
            compute_output=stage(computed + cached, "write"),
            cache_hit=stage(cached, "cache_hit"),
            cache_miss=stage(computed if caches else 0, "cache_miss"),
        ),
    )


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count=count, ns=round(seconds * 1e9))
