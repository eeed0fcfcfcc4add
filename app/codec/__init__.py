"""Bodies to numbers and back: the only place where bytes are read and written, one file a kind of them."""

from collections.abc import Callable, Collection, Mapping

from app.asked.query import Followed, Query
from app.asked.sheet import Sheet
from app.codec import csv_bodies, json_bodies, npy_bodies
from app.codec.answers import effort, forecast, prediction, table, wants_table
from app.codec.followed_answers import effort_of, judged, surprises
from app.codec.streamed_answers import wants_stream
from app.errors import MediaTypeError

__all__ = [
    "effort",
    "effort_of",
    "forecast",
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
_Reader = Callable[[bytes, str], Query | Sheet]


def read(body: bytes, content_type: str | None) -> Query | Sheet:
    """What a body says; MediaTypeError, MalformedError, or InvalidError naming the place.

    A table is not a query yet: what its columns are is for the model to say.
    """
    media_type, parameters = _media_type(content_type, _READERS)
    return _READERS[media_type](body, parameters)


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


_READERS: Mapping[str, _Reader] = {
    _JSON: lambda body, _: json_bodies.read(body),
    "text/csv": csv_bodies.read,
    "application/x-npy": lambda body, _: npy_bodies.read(body),
}
