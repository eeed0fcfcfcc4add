"""Bodies to numbers and back: the only place where bytes are read and written, one file a kind of them."""

from collections.abc import Callable, Collection, Mapping

from app.asked.query import Followed, Query
from app.asked.sheet import Sheet
from app.codec import json_bodies, npy_bodies, tables
from app.codec.answers import effort, forecast, prediction, table, wants_table
from app.codec.followed_answers import effort_of, judged, surprises
from app.codec.streamed_answers import wants_stream
from app.errors import MediaTypeError

__all__ = [
    "effort",
    "effort_of",
    "forecast",
    "is_slow",
    "judged",
    "prediction",
    "read",
    "read_followed",
    "surprises",
    "table",
    "wants_stream",
    "wants_table",
]

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
"""What curl says of a body where nobody says anything else."""
_ARROW = b"application/vnd.apache.arrow."


def read(body: bytes, content_type: str | None, *, most_bytes: int = tables.USUAL_BYTES) -> Query | Sheet:
    """What a body says; MediaTypeError, MalformedError, BodyTooLargeError where more than `most_bytes` come out of it,
    or InvalidError naming the place.

    A table is not a query yet: what its columns are is for the model to say.
    """
    media_type, parameters = _media_type(content_type, _MEDIA_TYPES)
    reader = _READERS.get(media_type)
    return tables.read(body, media_type, parameters, most_bytes) if reader is None else reader(body)


def is_slow(content_type: bytes | None) -> bool:
    """Whether such a body takes long to read whatever is in it: the first of Arrow, which brings its library."""
    return content_type is not None and content_type.lower().startswith(_ARROW) and not tables.is_loaded()


def read_followed(body: bytes, content_type: str | None) -> Followed:
    """What a body says that also tells what followed, JSON; errors as in `read`."""
    _media_type(content_type, [_JSON])
    return json_bodies.read_followed(body)


def _media_type(content_type: str | None, read: Collection[str]) -> tuple[str, str]:
    """It and its parameters; MediaTypeError where it is none of these."""
    media_type, _, parameters = (content_type or _JSON).partition(";")
    media_type = media_type.strip().lower()
    if media_type not in read:
        hint = f"; give -H 'Content-Type: {_JSON}'" if media_type == _FORM else ""
        raise MediaTypeError(f"{media_type!r} is not read here; send {' or '.join(read)}{hint}")
    return media_type, parameters


_READERS: Mapping[str, Callable[[bytes], Query]] = {
    _JSON: json_bodies.read,
    "application/x-npy": npy_bodies.read,
}
_MEDIA_TYPES = (_JSON, tables.CSV, "application/x-npy", *tables.ARROWS)
