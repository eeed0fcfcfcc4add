"""POST /v2/models/{name}/infer: forecasts by the Open Inference Protocol, version 2."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from fastapi import APIRouter, Request, Response

from app.asked.tensors import WINDOW
from app.codec import inference, tensors
from app.costs import Cost
from app.errors import InvalidError, Place
from app.forecasts.bands import Wanted
from app.forecasts.predictor import AttentionChoice, Choice, Predictor
from app.handlers import header
from app.packing import packed, packing_of
from app.routes.answering import Answer, client_of, made, note
from app.schemas import refusals
from app.schemas.inference import BINARY_ANSWER, INFER_BODY, InferParameters, InferResponse
from app.spans import current

router = APIRouter(prefix="/v2/models", tags=["inference protocol"])

_REFUSALS = refusals(400, 404, 408, 413, 415, 422, 500, 503, 504, path="/v2")
_BYTES = 4
"""Of a number."""
_VARY = b"Accept-Encoding"


@router.post(
    "/{name}/infer",
    summary="Infer",
    response_model=InferResponse,
    responses=BINARY_ANSWER | _REFUSALS,
    openapi_extra=INFER_BODY,
)
async def infer(request: Request, name: str) -> Response:
    """The forecast that the tensors ask for, of the version that is served by default."""
    return await _inferred(request, name, None)


@router.post(
    "/{name}/versions/{version}/infer",
    summary="Infer of a version",
    response_model=InferResponse,
    responses=BINARY_ANSWER | _REFUSALS,
    openapi_extra=INFER_BODY,
)
async def infer_of_version(request: Request, name: str, version: str) -> Response:
    """The same of a version: a number, an alias or `latest`."""
    return await _inferred(request, name, version)


async def _inferred(request: Request, name: str, version: str | None) -> Response:
    state = request.scope["state"]
    predictor: Predictor = state["predictor"]
    meant = predictor.meant(name, version, partial(client_of, request))
    cost = state["cost"] = Cost(meant.id)
    began = time.perf_counter()
    if request.scope["query_string"]:
        raise InvalidError(Place("query", "options are parameters of the body here"))
    asked = tensors.read(state["body"], header(request.scope, tensors.LENGTH), WINDOW)
    parameters = InferParameters.read(asked.parameters)
    with _in_its_words():
        chosen = inference.chosen(asked, meant.spec, parameters.level)
        query = inference.query_of(asked, meant.spec)
        cost.parse_s = time.perf_counter() - began
        if (span := current.get()) is not None:
            span.stage("parse", began)
        choice = Choice(
            meant,
            parameters.steps or meant.spec.horizon,
            _attention(parameters, chosen),
            parameters.deadline_ms,
            _wanted(parameters, chosen),
            parameters.priority,
        )
        forecast = await predictor.forecast(query, choice)
    note(cost, forecast)
    began = time.perf_counter()
    outputs = inference.outputs(forecast, chosen, binary=asked.binary)
    effort = sum(output.values.size for output in outputs if not output.binary)
    body, length = await made(partial(tensors.write, outputs, inference.said(forecast, asked.id)), effort)
    others = [] if length is None else [(tensors.LENGTH, b"%d" % length)]
    packing = packing_of(header(request.scope, b"accept-encoding"), len(body))
    if packing is not None:
        body = await made(partial(packed, body, packing), len(body) // _BYTES)
        others.append((b"content-encoding", packing.encode()))
    cost.write_s = time.perf_counter() - began
    if span is not None:
        span.stage("serialise", began, bytes=len(body))
    media_type = b"application/json" if length is None else b"application/octet-stream"
    return Answer(body, forecast, media_type, vary=_VARY, others=others)


def _attention(parameters: InferParameters, chosen: inference.Chosen) -> AttentionChoice:
    """None is computed that is not asked for."""
    if chosen.attention is None:
        return parameters.attention or "all"
    if not chosen.attention:
        return "none"
    if parameters.attention == "none":
        raise InvalidError(Place("parameters.attention", "none, but ATTENTION is among the outputs"))
    return parameters.attention or "all"


def _wanted(parameters: InferParameters, chosen: inference.Chosen) -> Wanted | None:
    if chosen.levels:
        return Wanted(chosen.levels, parameters.band, parameters.adaptive)
    if parameters.band != "step" or parameters.adaptive:
        raise InvalidError(Place("parameters", "band and adaptive are of intervals; they go with level"))
    return None


@contextmanager
def _in_its_words() -> Iterator[None]:
    try:
        yield
    except InvalidError as error:
        raise inference.renamed(error) from error
