"""Tables of every kind, by their media type; what Arrow needs is imported with the first that is Arrow."""

import sys
from importlib.util import find_spec

from app.asked.sheet import Long, Sheet
from app.codec import csv_bodies
from app.errors import MediaTypeError
from app.forecasts.predictor import Forecast

CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
ARROWS = (ARROW, "application/vnd.apache.arrow.file")
"""https://www.iana.org/assignments/media-types/application/vnd.apache.arrow.stream and its sibling."""
MEDIA_TYPES = (CSV, *ARROWS)
USUAL_BYTES = 2 * 2**20
"""That may come out of a body, where nobody says another number."""


def read(body: bytes, media_type: str, parameters: str, most_bytes: int) -> Sheet:
    """The cells of a body; MediaTypeError, MalformedError, BodyTooLargeError, or InvalidError naming the place."""
    if media_type == CSV:
        return csv_bodies.read(body, parameters)
    if not has_arrow():
        problem = "Apache Arrow is not read here: the service lacks the extra 'arrow'"
        raise MediaTypeError(f"{problem} (pip install 'foretell[arrow]'); send CSV or JSON")
    from app.codec import arrow

    return arrow.read(body, most_bytes)


def read_long(body: bytes, media_type: str, parameters: str, most_bytes: int) -> Long:
    """The same in parts, since of a text not all need be there at once."""
    if media_type == CSV:
        return csv_bodies.read_long(body, parameters)
    header, cells = read(body, media_type, parameters, most_bytes)
    return Long(header, cells.called, iter([cells]))


def to_arrow(forecast: Forecast) -> bytes:
    """A forecast as a stream, where that is possible."""
    from app.codec import arrow

    return arrow.written(forecast)


def is_loaded() -> bool:
    """Whether reading and writing Arrow begins at once: its import takes a tenth of a second."""
    return "app.codec.arrow" in sys.modules


def has_arrow() -> bool:
    """Whether it can be read and written: it is an extra."""
    return is_loaded() or find_spec("pyarrow") is not None
