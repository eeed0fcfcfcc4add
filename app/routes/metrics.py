"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Response

from app.deps import MetricsDep

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(metrics: MetricsDep) -> Response:
    """The text exposition format of Prometheus."""
    return Response(await metrics.exposition(), media_type=metrics.content_type)
