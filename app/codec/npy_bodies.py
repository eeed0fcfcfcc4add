"""NumPy's own format (.npy) to windows. Nothing in it is unpickled, and no memory is taken on its word.

Shapes: B windows, l rows, C columns.
"""

import io
import math
import threading
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.asked.query import Places, Query
from app.errors import InvalidError, MalformedError, Place
from app.ticket import Floats

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_TURN = threading.Lock()
"""A header is parsed as Python source, whose parser of CPython 3.11 counts its depth for all threads together: two at a
time were seen to refuse what is right."""
_LONGEST_ECHO = 200
_MOST_BITS = 1000
"""Of a dimension; far too many, and short enough to be told."""
_LARGEST = np.finfo(np.float32).max
_HINT = "; an array cannot tell: send JSON or CSV"
_ARRAY, _ARRAYS = Places("array", "NaN", _HINT), Places("array[{}]", "NaN", _HINT)


def read(body: bytes) -> Query:
    """The query in an array [l, C] or [B, l, C]; MalformedError, or InvalidError naming the place."""
    content = io.BytesIO(body)
    shape, by_columns, dtype = _header(content)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise InvalidError(Place("array", f"its numbers are {str(dtype)[:_LONGEST_ECHO]}; send float32 or float64"))
    if len(shape) not in (2, 3):
        raise InvalidError(Place("array", f"{len(shape)} dimensions; send [rows, columns] or [windows, rows, columns]"))
    if min(shape) < 1:
        raise InvalidError(Place("array", f"its shape is {shape}; it must not be empty"))
    data = content.getbuffer()[content.tell() :]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise MalformedError(f"not .npy: {len(data)} bytes of numbers for the shape {shape} of {dtype}")
    numbers = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
    single = len(shape) == 2
    windows, places = (numbers[None], _ARRAY) if single else (numbers, _ARRAYS)
    return Query(_floats(windows, places), None, None, single, gaps=bool(np.isnan(windows).any()), places=places)


def _header(content: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether column by column, and type."""
    try:
        version = npy.read_magic(content)
        read = _HEADERS.get(version)
        if read is not None:
            with _TURN:
                shape, by_columns, dtype = read(content)
            # It takes True for a number, and numbers of so many digits that Python refuses to write them in a message.
            if any(type(size) is not int or size.bit_length() > _MOST_BITS for size in shape):
                raise ValueError("a dimension that no array has")  # noqa: TRY301  told like the others
            return shape, by_columns, dtype
    except Exception as error:  # a header is Python source, and what can be wrong with it is without end
        problem = str(error).partition("\n")[0][:_LONGEST_ECHO]
        raise MalformedError(f"not .npy: {problem}") from error
    raise MalformedError(f"not .npy: version {version} of the format; send one of {', '.join(map(str, _HEADERS))}")


def _floats(windows: NDArray[Any], places: Places) -> Floats:
    wrong = np.abs(windows) > _LARGEST
    if wrong.any():
        index, row, column = (int(one) for one in np.argwhere(wrong)[0])
        problem = f"{windows[index, row, column]} is not a finite 32-bit number"
        raise InvalidError(Place(places.of_cell(index, row, column, ""), problem))
    # A signalling NaN is a NaN.
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(windows, np.float32)
