"""Many windows to a body of POST /batch.

Shapes: B windows, L rows of a window, C columns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from foretell.arrays import PandasFrame, PolarsFrame, is_array
from foretell.errors import DataError
from foretell.given import JSON, LINES, Content, Data, File, Time, body_of, depth_of, kind_of, opened, plain_of


@dataclass(frozen=True, slots=True)
class Many:
    """What is sent."""

    content: Content
    content_type: str


def many_of(data: Data, *, start: Time | Sequence[Time] | None = None, future: Any = None, static: Any = None) -> Many:
    """Of windows [B][L][C], or of one; of a mapping with a `window` each; of a table of many series; of a file of
    either, which is not read yet. DataError, naming the place, where it cannot be sent.
    """
    beside = {"start": start, "future": future, "static": static}
    extra = {name: value for name, value in beside.items() if value is not None}
    if isinstance(data, Mapping):
        data = [data]
    if _is_rows(data) or (extra and is_array(data)):
        return Many(_lines(data, extra), LINES)
    if extra:
        raise DataError(f"{', '.join(extra)}: a table or a file has its own; give rows or an array")
    if isinstance(data, str | PathLike):
        content = opened(data)
        kind = kind_of(content.begin() if isinstance(content, File) else content)
        return Many(content, LINES if kind == JSON else kind)
    body = body_of(data)
    return Many(body.content, LINES if body.content_type == JSON else body.content_type)


def _is_rows(data: Data) -> bool:
    others = str | bytes | bytearray | memoryview | PandasFrame | PolarsFrame
    return isinstance(data, Sequence) and not isinstance(data, others)


def _lines(data: Any, extra: Mapping[str, Any]) -> bytes:
    windows = data.tolist() if is_array(data) else data
    if windows and isinstance(windows[0], Mapping):
        if extra:
            raise DataError(f"{', '.join(extra)}: each window has its own")
        fields = windows
    elif depth_of(windows) == 2:  # one window, and what goes with it
        fields = [{"window": windows, **extra}]
    else:
        fields = [{"window": window} for window in windows]
        for name, given in extra.items():
            each = _each(name, given, len(windows))
            fields = [{**one, name: value} for one, value in zip(fields, each, strict=True)]
    return b"".join(_line(one, index) for index, one in enumerate(fields))


def _each(name: str, given: Any, count: int) -> Sequence[Any]:
    """What each of the windows has of it."""
    values = given.tolist() if is_array(given) else given
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise DataError(f"{name}: a list is needed, with one for each of the {count} windows")
    if len(values) != count:
        raise DataError(f"{name}: {len(values)} for {count} windows")
    return values


def _line(fields: Any, index: int) -> bytes:
    if not isinstance(fields, Mapping):
        raise DataError(f"windows[{index}]: a mapping is needed, as the others are")
    plain = plain_of(fields, f"windows[{index}]")
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"
