"""What callers may give, and what becomes of it."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from foretell import DataError
from foretell.arrays import values_of
from foretell.given import ARROW_FILE, ARROW_STREAM, CSV, JSON, LINES, NPY, Body, File, body_of
from foretell.many import Many, many_of
from tests.client.services import CSV as TABLE
from tests.client.services import START, WINDOW


def said(body: Body) -> Any:
    """What a JSON body says."""
    assert body.content_type == JSON
    return json.loads(body.content)


def test_rows() -> None:
    """Rows as they are; several windows by another name; NaN and None are missing; numbers of other kinds."""
    assert said(body_of([[1, None], [float("nan"), Decimal("2.5")]])) == {"window": [[1, None], [None, 2.5]]}
    assert said(body_of([[[1]], [[2]]])) == {"windows": [[[1]], [[2]]]}
    assert said(body_of([np.array([1.0, 2.0]), np.array([3.0, 4.0])])) == {"window": [[1, 2], [3, 4]]}


def test_what_goes_beside_rows() -> None:
    """A start, the known future and static features; also of an array, and into a body that is given as it is."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    wanted = {"window": [[1], [2]], "start": "2026-01-01T00:00:00+00:00", "future": [[3]], "static": {"a": 1}}
    given: dict[str, Any] = {"start": start, "future": np.array([[3.0]]), "static": {"a": 1}}
    assert said(body_of([[1], [2]], **given)) == wanted
    assert said(body_of(np.array([[1], [2]]), **given)) == wanted
    assert said(body_of({"window": [[1], [2]]}, **given)) == wanted


@pytest.mark.parametrize("kind", ["float32", "float64", "int16"])
def test_arrays(kind: str) -> None:
    """As numpy writes them, in one of the two types that are read."""
    array = np.arange(6).reshape(3, 2).astype(kind)
    body = body_of(array.T)
    read = np.load(io.BytesIO(body.content), allow_pickle=False)
    assert (body.content_type, read.tolist()) == (NPY, array.T.tolist())
    assert read.dtype == ("float32" if kind == "float32" else "float64")


def _pandas() -> pd.DataFrame:
    return pd.read_csv(io.StringIO(TABLE), parse_dates=["time"])


@pytest.mark.parametrize(
    "frame",
    [
        _pandas(),
        _pandas().set_index("time"),
        _pandas().set_index("time").rename_axis(None),
        _pandas().set_index("time").tz_convert("America/New_York"),
        pl.read_csv(io.StringIO(TABLE), try_parse_dates=True),
        pl.read_csv(io.StringIO(TABLE)),
    ],
)
def test_tables(frame: Any) -> None:
    """Of pandas and polars, with times in a column or in the index, in any zone."""
    body = body_of(frame)
    read = pl.read_csv(io.BytesIO(body.content))
    assert body.content_type == CSV
    assert read.columns == ["time", "target_0", "past_1"]
    assert read.select("target_0", "past_1").rows() == [tuple(row) for row in WINDOW]
    assert datetime.fromisoformat(read["time"][7]) == datetime(2026, 1, 1, 7, tzinfo=UTC)


def test_naive_times_stay_naive() -> None:
    """They are of the model's time zone, and only the service knows that."""
    naive = pd.DataFrame({"a": [1.0]}, index=pd.DatetimeIndex(["2026-01-01 00:00"]))
    for frame in (naive, pl.DataFrame({"time": [datetime(2026, 1, 1)], "a": [1.0]})):  # noqa: DTZ001
        read = pl.read_csv(io.BytesIO(body_of(frame).content))
        assert datetime.fromisoformat(read["time"][0]).tzinfo is None


def test_files(tmp_path: Path) -> None:
    """What a file is, its first bytes say; so it is with bytes, which may come from anywhere."""
    (tmp_path / "a").write_text(TABLE)
    (tmp_path / "b").write_text(json.dumps({"window": WINDOW}))
    np.save(tmp_path / "c.npy", np.array(WINDOW))
    frame = pl.read_csv(TABLE.encode(), try_parse_dates=True)
    frame.write_ipc_stream(tmp_path / "d")
    frame.write_ipc(tmp_path / "e.arrow")
    paths = (tmp_path / "a", str(tmp_path / "b"), tmp_path / "c.npy", tmp_path / "d", tmp_path / "e.arrow")
    assert [body_of(path).content_type for path in paths] == [CSV, JSON, NPY, ARROW_STREAM, ARROW_FILE]
    assert many_of(tmp_path / "d").content_type == ARROW_STREAM
    assert body_of(TABLE.encode()).content_type == CSV
    assert said(body_of(tmp_path / "b", start=START)) == {"window": WINDOW, "start": START}


@pytest.mark.parametrize(
    ("given", "beside", "says"),
    [
        ([[1, "x"]], {}, None),
        ([[1, object()]], {}, r"window\[0\]\[1\]: .* is no number"),
        ([[1], [float("inf")]], {}, r"window\[1\]\[0\]: inf cannot be sent"),
        ([1, 2], {}, "1 dimensions"),
        ([], {}, "1 dimensions"),
        ([[[[1]]]], {}, "4 dimensions"),
        (np.array([1.0]), {}, "1 dimensions"),
        (np.array([["a"]]), {}, "numbers are needed"),
        (3, {}, "int cannot be sent"),
        ("nowhere.csv", {}, "nowhere.csv: No such file"),
        (TABLE.encode(), {"start": START}, "start: a table has its own"),
        (b"ARROW1\0\0", {"start": START}, "start: a table has its own"),
        ({"window": WINDOW, "start": START}, {"start": START}, "start: given twice"),
    ],
)
def test_what_cannot_be_sent(given: Any, beside: dict[str, Any], says: str | None) -> None:
    """The place is named. A text in place of a number is the service's to refuse, which says so in its words."""
    if says is None:
        assert said(body_of(given, **beside)) == {"window": given}
        return
    with pytest.raises(DataError, match=says):
        body_of(given, **beside)


def lines_of(many: Many) -> list[Any]:
    """What lines of JSON say."""
    assert many.content_type == LINES
    assert isinstance(many.content, bytes)
    return [json.loads(line) for line in many.content.splitlines()]


def test_many_windows() -> None:
    """A line each, with what goes beside it; one by itself is one of one; an array stays one as long as it can."""
    assert lines_of(many_of([[[1]], [[float("nan")]]])) == [{"window": [[1]]}, {"window": [[None]]}]
    assert lines_of(many_of([np.array([[1.0]]), np.array([[2.0]])])) == [{"window": [[1]]}, {"window": [[2]]}]
    assert lines_of(many_of([[1], [2]], start=START)) == [{"window": [[1], [2]], "start": START}]
    assert lines_of(many_of({"window": [[1]]})) == [{"window": [[1]]}]
    given: dict[str, Any] = {"start": [START] * 2, "future": np.array([[[3.0]], [[4.0]]]), "static": [{"a": 1}, [2]]}
    wanted = [
        {"window": [[1]], "start": START, "future": [[3]], "static": {"a": 1}},
        {"window": [[2]], "start": START, "future": [[4]], "static": [2]},
    ]
    assert lines_of(many_of([[[1]], [[2]]], **given)) == wanted
    assert lines_of(many_of(np.array([[[1]], [[2]]]), **given)) == wanted
    assert many_of(np.zeros((2, 3, 1))).content_type == NPY
    assert many_of(_pandas()).content_type == CSV


def test_files_of_many(tmp_path: Path) -> None:
    """They are left where they are; what can be read but once is read."""
    (tmp_path / "a").write_text(TABLE)
    (tmp_path / "b").write_text('{"window": [[1]]}\n' * 2)
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 1)))
    found = [many_of(tmp_path / name) for name in ("a", "b", "c.npy")]
    assert [many.content_type for many in found] == [CSV, LINES, NPY]
    for name, many in zip(("a", "b", "c.npy"), found, strict=True):
        assert isinstance(many.content, File)
        assert b"".join(many.content.parts()) == (tmp_path / name).read_bytes()
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(TABLE.encode())
    assert many_of(f"/dev/fd/{reading}").content == TABLE.encode()
    os.close(reading)


@pytest.mark.parametrize(
    ("given", "beside", "says"),
    [
        ([], {}, "1 dimensions"),
        ("nowhere.csv", {}, "nowhere.csv: No such file"),
        (TABLE.encode(), {"start": [START]}, "start: a table or a file has its own"),
        ("a.csv", {"start": [START]}, "start: a table or a file has its own"),
        ([[[1]], [[2]]], {"start": [START]}, "start: 1 for 2 windows"),
        ([[[1]], [[2]]], {"start": START}, "start: a list is needed, with one for each of the 2 windows"),
        ([{"window": [[1]]}], {"static": [[1]]}, "static: each window has its own"),
        ([{"window": [[1]]}, 3], {}, r"windows\[1\]: a mapping is needed"),
        ([[[1]], [[object()]]], {}, r"windows\[1\].window\[0\]\[0\]: .* is no number"),
        (3, {}, "int cannot be sent"),
    ],
)
def test_what_cannot_be_many(given: Any, beside: dict[str, Any], says: str) -> None:
    """The place is named."""
    with pytest.raises(DataError, match=says):
        many_of(given, **beside)


def test_arrays_where_there_is_numpy() -> None:
    """Float64 with NaN for what is missing; rows of different lengths stay lists."""
    values = values_of([[1.5, None], [2, 3]])
    assert values.dtype == "float64"
    assert np.isnan(values[0, 1])
    assert values_of([[1.0], [1.0, 2.0]]) == [[1.0], [1.0, 2.0]]


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    """`import foretell` brings httpx alone: it costs no one numpy or pandas."""
    strangers = {"numpy", "pandas", "polars", "plotext", "torch", "app"}
    check = f"import foretell, sys; print(*{strangers} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_numpy_and_click() -> None:
    """Answers are lists then, and the command says what it lacks."""
    check = """
import sys
sys.modules.update(dict.fromkeys(("numpy", "pandas", "click")))
import foretell, foretell.arrays, foretell.__main__
print(foretell.arrays.values_of([[1.5, None]]))
try:
    foretell.arrays.frame_of("pandas", {}, None, "UTC")
except ImportError as error:
    print(error)
foretell.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[[1.5, None]]", "pandas is not installed: pip install pandas"]
    assert (done.returncode, done.stderr) == (2, "foretell: click is missing: pip install 'foretell-client[cli]'\n")
