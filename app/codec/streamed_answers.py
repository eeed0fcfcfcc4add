"""Forecasts to lines of JSON, and to events, as they are computed.

Shapes: B windows, L window, N steps, T targets.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Literal, NamedTuple

import numpy as np
import orjson

from app.codec.answers import preferred, stamps_of
from app.forecasts.streaming import Piece, Stream
from app.ticket import Floats

LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
_KINDS = [LINES, EVENTS]

Kind = Literal["start", "step", "end", "error"]


class Line(NamedTuple):
    """What is told at once."""

    kind: Kind
    content: object
    """What orjson writes."""


def wants_stream(accept: bytes | None) -> str | None:
    """The media type of steps as they are computed that an Accept header would rather have than a whole answer."""
    return preferred(accept, _KINDS)


def written(lines: list[Line], media_type: str) -> bytes:
    """Lines of JSON, or events of their kinds."""
    dumped = [orjson.dumps(line.content, option=orjson.OPT_SERIALIZE_NUMPY) for line in lines]
    if media_type == LINES:
        return b"".join(one + b"\n" for one in dumped)
    kinds = (line.kind.encode() for line in lines)
    return b"".join(b"event: %s\ndata: %s\n\n" % (kind, one) for kind, one in zip(kinds, dumped, strict=True))


async def lines(stream: Stream, pieces: AsyncIterator[Piece]) -> AsyncGenerator[list[Line], None]:
    """What the model is, its steps one by one, and what they cost; lists of lines that are there together.

    The first list has the first steps already: what goes wrong before them is no line.
    """
    job = stream.job
    stamps = stamps_of(job.spec, job.layout.last, job.steps)
    found = [_head(stream)]
    async for piece in pieces:
        found += _steps(stream, piece, stamps)
        yield found
        found = []
    yield [_end(stream)]


def _head(stream: Stream) -> Line:
    job = stream.job
    head: dict[str, object] = {
        "model": job.model.name,
        "version": job.model.version,
        "digest": job.model.digest,
        "targets": job.spec.targets,
        "steps": job.steps,
    }
    if job.query.series is not None:
        head["series"] = job.query.series
    if stream.wants_attention:
        rows = job.spec.attention_rows
        head["attention"] = {"steps_per_row": job.spec.horizon // rows} if rows else None
    return Line("start", head)


def _steps(stream: Stream, piece: Piece, stamps: list[list[str]] | None) -> Iterator[Line]:
    one = stream.job.query.single
    for ahead in range(piece.forecast.shape[1]):
        step = piece.start + ahead
        line: dict[str, object] = {"step": step + 1}
        if stamps is not None:
            line["timestamp" if one else "timestamps"] = stamps[0][step] if one else [each[step] for each in stamps]
        line["forecast" if one else "forecasts"] = _of(piece.forecast[:, ahead], one=one)
        if piece.intervals is not None:
            line["intervals"] = {
                level: {"lower": _of(lower[:, ahead], one=one), "upper": _of(upper[:, ahead], one=one)}
                for level, (lower, upper) in piece.intervals.bounds.items()
            }
        if step in piece.attention:
            line["attention"] = _of(piece.attention[step], one=one)
        yield Line("step", line)


def _end(stream: Stream) -> Line:
    """Without it, something is missing."""
    computed = stream.computed
    end: dict[str, object] = {"done": True, "steps": stream.job.steps}
    if computed is not None:
        end |= {"queue_ms": round(computed.queued_s * 1e3, 3), "inference_ms": round(computed.device_s * 1e3, 3)}
    return Line("end", end)


def _of(values: Floats, *, one: bool) -> Floats:
    """[B, ...], or the only one."""
    return np.ascontiguousarray(values[0] if one else values)
