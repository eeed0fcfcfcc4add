"""Bulk scoring without a cluster: which rows are read how, and that the results are the service's."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import polars
import pytest

from app.device.runtime import Runtime
from app.settings import Settings
from app.ticket import Part, Ticket
from models.core import Surroundings
from models.spec import Gaps
from models.store import Store
from tests.app.calibrated import publish
from tests.app.serving import ROOT, serving
from tests.builders import START, publish_tiny
from tests.docs.blocks import blocks

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

from deploy.ray import work  # noqa: E402
from deploy.ray.plan import Given, planned  # noqa: E402  they need pyarrow
from deploy.ray.scoring import Scorer  # noqa: E402
from deploy.ray.table import ColumnsError  # noqa: E402
from deploy.ray.work import FORECASTS, REJECTED, Folder, WorkError, files_of, parts_of  # noqa: E402

HOUR = timedelta(hours=1)


def series(count: int, columns: int = 1, *, length: int = 8, seed: int = 0) -> np.ndarray:
    """[count, length, columns]"""
    return np.random.default_rng(seed).normal(10, 1, (count, length, columns)).astype(np.float32)


def given(folder: Path, **changed: Any) -> Given:
    """An order for the model `tiny`."""
    order = Given(folder / "data.parquet", folder / "out", "tiny", None, 3, (), "step", None, None, 0)
    return order._replace(**changed)


def scored(folder: Path, **changed: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows of the forecasts and of what was rejected."""
    order = given(folder, **changed)
    manifest, plan = planned(order, Settings.model_validate({"artifacts": folder, "device": "cpu"}))
    with Folder(order.to).claimed(manifest):
        scorer = Scorer(plan, "cpu")
        counts = [scorer.score(part) for part in parts_of(manifest)]
    told, rejected = pq.read_table(order.to / FORECASTS).to_pylist(), []
    for file in sorted((order.to / REJECTED).iterdir()):
        rejected += pq.read_table(file).to_pylist()
    assert sum(count.rejected for count in counts) == len(rejected)
    assert sum(count.forecast for count in counts) == len(told) / order.steps
    assert sum(Folder(order.to).count(manifest)) == sum(part.rows for part in parts_of(manifest))
    return told, rejected


async def asked(client: httpx.AsyncClient, steps: int, body: Mapping[str, object], **options: str) -> dict[str, Any]:
    """The service's own answer."""
    response = await client.post("/forecast", params={"steps": steps, **options}, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.anyio
async def test_forecasts_and_intervals_are_those_of_the_service(tmp_path: Path) -> None:
    """Two targets and a past covariate, with bounds of two levels; to the last bit, in batches of the same size."""
    publish(tmp_path, roles=("target", "past", "target"), horizon=2)
    windows = series(5, 3)
    columns = {
        name: pa.array(list(windows[:, :, index])) for index, name in enumerate(("target_0", "past_1", "target_2"))
    }
    pq.write_table(pa.table({"id": list("abcde"), **columns}), tmp_path / "data.parquet")

    told, rejected = scored(tmp_path, levels=("80", "90"), steps=3)
    async with serving(tmp_path) as client:
        answer = await asked(client, 3, {"windows": windows.tolist()}, level="80,90")

    assert rejected == []
    assert [(row["id"], row["step"]) for row in told] == [(name, step) for name in "abcde" for step in (1, 2, 3)]
    for index, name in enumerate(("target_0", "target_2")):
        expected = np.array(answer["forecasts"], np.float32)[:, :, index].ravel()
        assert [np.float32(row[name]) for row in told] == expected.tolist()
        for level in ("80", "90"):
            for side in ("lower", "upper"):
                ends = np.array(answer["intervals"][level][side], np.float32)[:, :, index].ravel()
                assert [np.float32(row[f"{name}_{side}_{level}"]) for row in told] == ends.tolist()


@pytest.mark.anyio
async def test_known_future_and_static_features(tmp_path: Path) -> None:
    """Lists that are longer by what is known, and lists of one length whose seen columns have nothing there."""
    publish_tiny(Store(tmp_path), roles=("target", "future", "static"), horizon=2)
    windows, ahead = series(2, 2), series(2, 1, length=4, seed=1)
    load = [windows[0, :, 0].tolist(), [*windows[1, :, 0].tolist(), None, None, None, None]]
    known = [[*windows[row, :, 1].tolist(), *ahead[row, :, 0].tolist()] for row in range(2)]
    table = {"id": [1, 2], "target_0": load, "future_1": known, "static_2": [3.0, 4.0]}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")

    told, rejected = scored(tmp_path)
    async with serving(tmp_path) as client:
        body = {"windows": windows.tolist(), "future": ahead.tolist(), "static": [[3.0], [4.0]]}
        answer = await asked(client, 3, body)

    assert rejected == []
    assert np.allclose([row["target_0"] for row in told], np.ravel(answer["forecasts"]), rtol=1e-6)


@pytest.mark.anyio
@pytest.mark.parametrize("as_list", [False, True])
async def test_the_last_values_count_and_times_go_on(tmp_path: Path, as_list: bool) -> None:
    """Of a row that is longer than the window, with the time of its first value or those of all."""
    publish_tiny(Store(tmp_path), surroundings=Surroundings(timezone="Europe/Berlin"))
    windows = series(1, length=11)
    first = datetime(2026, 3, 29, 1, 0, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)
    stamps = [first + hours * HOUR for hours in range(11)]
    # Wall-clock time leaps from 1:00 to 3:00 that night.
    wall = [stamp.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None) for stamp in stamps]
    times = {"time": [wall]} if as_list else {"start": [first]}
    pq.write_table(pa.table({"id": ["a"], "target_0": list(windows[:, :, 0]), **times}), tmp_path / "data.parquet")

    told, _ = scored(tmp_path)
    async with serving(tmp_path) as client:
        answer = await asked(client, 3, {"window": windows[0, 3:].tolist(), "start": stamps[3].isoformat()})

    assert np.array([row["target_0"] for row in told], np.float32).tolist() == [
        np.float32(step[0]) for step in answer["forecast"]
    ]
    assert [row["time"].isoformat() for row in told] == answer["timestamps"]


def test_rows_that_the_model_does_not_take_are_told(tmp_path: Path) -> None:
    """Each with its reason, its id and its place in the file; the others have their forecasts."""
    publish_tiny(Store(tmp_path), roles=("target", "past"))
    good = series(1)[0, :, 0].tolist()
    rows: list[tuple[object, object]] = [
        (good, good),
        (None, good),
        (good[1:], good[1:]),
        (good, good[1:]),
        ([*good[:3], None, *good[4:]], good),
        ([*good[:3], float("inf"), *good[4:]], good),
        ([*good[:3], 1e300, *good[4:]], good),
        ([], []),
        ([0.0, *good], [0.0, *good]),
    ]
    table = {"id": list(range(9)), "target_0": [row[0] for row in rows], "past_1": [row[1] for row in rows]}
    kind = pa.list_(pa.float64())
    schema = pa.schema({"id": pa.int64(), "target_0": kind, "past_1": kind})
    pq.write_table(pa.table(table, schema=schema), tmp_path / "data.parquet", row_group_size=5)

    told, rejected = scored(tmp_path)

    assert sorted({row["id"] for row in told}) == [0, 8]
    assert all(row["id"] == row["row"] for row in rejected)
    assert [(row["row"], row["reason"]) for row in rejected] == [
        (1, "column 'past_1': 8 values, but 'target_0' has 0"),
        (2, "window: 7 rows; the model takes exactly 8"),
        (3, "column 'past_1': 7 values, but 'target_0' has 8"),
        (4, "column 'target_0', value 4 of the window: no value, but the model does not fill gaps"),
        (5, "column 'target_0': a number that is not finite"),
        (6, "column 'target_0': a number that is not finite"),
        (7, "window: no value of a target or a past covariate"),
    ]


def test_times_that_are_none_are_told(tmp_path: Path) -> None:
    """Missing ones, too few, not a step apart, twice in a year, and outside of the calendar."""
    publish_tiny(Store(tmp_path), surroundings=Surroundings(timezone="Europe/Berlin"))
    even = [datetime(2026, 1, 1, hour) for hour in range(8)]  # noqa: DTZ001  wall-clock time
    # The hour from 2:00 to 3:00 comes twice: from 2:00 on there are two rows that may be the first.
    twice = [datetime(2026, 10, 25, 2)]  # noqa: DTZ001
    lists = [even, [*even[:7], None], even[:7], [*even[:7], datetime(2026, 1, 1, 9)], None]  # noqa: DTZ001
    values = series(1)[0, :, 0].tolist()
    table = pa.table(
        {"id": list(range(5)), "target_0": [values] * 5, "time": pa.array(lists, pa.list_(pa.timestamp("ns")))}
    )
    pq.write_table(table, tmp_path / "data.parquet")
    _, rejected = scored(tmp_path)
    starts = [even[0], None, *twice, datetime(2026, 3, 29, 2), datetime(1969, 1, 1)]  # noqa: DTZ001
    pq.write_table(
        pa.table({"id": list(range(5)), "target_0": [values] * 5, "start": pa.array(starts, pa.timestamp("us"))}),
        tmp_path / "starts.parquet",
    )
    _, others = scored(tmp_path, data=tmp_path / "starts.parquet", to=tmp_path / "other")

    assert [row["reason"] for row in rejected] == [
        "column 'time': 7 times for 8 values",
        "column 'time': 7 times for 8 values",
        "column 'time': times that are not 1:00:00 apart",
        "column 'time': 0 times for 8 values",
    ]
    zone = "no single moment in Europe/Berlin; give times with their offset from UTC"
    assert [row["reason"] for row in others] == [
        "column 'start': no time",
        f"column 'start': {zone}",
        f"column 'start': {zone}",
        "column 'start': not within 1970 to 9999",
    ]


def test_gaps_are_filled_where_the_model_fills_them(tmp_path: Path) -> None:
    """And a row with more of them than it fills is told."""
    publish_tiny(Store(tmp_path), surroundings=Surroundings(gaps=Gaps(method="carry_forward", limit=2)))
    values = series(1)[0, :, 0].tolist()
    rows = [[*values[:2], None, None, *values[4:]], [*values[:2], None, None, None, *values[5:]]]
    pq.write_table(pa.table({"id": ["a", "b"], "target_0": rows}), tmp_path / "data.parquet")

    told, rejected = scored(tmp_path)

    assert {row["id"] for row in told} == {"a"}
    assert [row["reason"] for row in rejected] == [
        "column 'target_0', value 3 of the window: more than 2 values missing in a row; the model fills at most so many"
    ]


def test_a_window_that_the_model_fails_on_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one with which the pass breaks off nor one without a finite forecast."""
    publish_tiny(Store(tmp_path))
    windows = series(6)
    windows[1], windows[4] = 66, 77
    pq.write_table(pa.table({"id": list(range(6)), "target_0": list(windows[:, :, 0])}), tmp_path / "data.parquet")
    run = Runtime.run

    def breaking(self: Runtime, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> list[Part]:
        (window,) = [ticket.window for ticket in tickets]
        if (window == 77).any():
            raise RuntimeError("a kernel that does not like it")
        (part,) = run(self, tickets, go_on)
        return [part._replace(forecast=np.where((window == 66).any(1)[:, None], np.float32(np.inf), part.forecast))]

    monkeypatch.setattr(Runtime, "run", breaking)
    told, rejected = scored(tmp_path)

    assert sorted({row["id"] for row in told}) == [0, 2, 3, 5]
    assert [(row["id"], row["reason"]) for row in rejected] == [
        (1, "the model's forecast of target_0 is not finite from step 1 on"),
        (4, "the model fails on it"),
    ]


def test_a_long_table_becomes_one_as_the_documentation_says(tmp_path: Path) -> None:
    """With its lines, run as they stand there; of each series the last rows count."""
    publish_tiny(Store(tmp_path))
    frame = polars.DataFrame(
        [(f"s{row % 3}", START + row // 3 * HOUR, float(row)) for row in range(60)],
        schema=["id", "time", "target_0"],
        orient="row",
    )
    frame.sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "long.parquet")
    (code,) = [block for block in blocks((ROOT / "docs/cluster.md").read_text()) if block.language == "python"]
    subprocess.run([sys.executable, "-c", code.text], cwd=tmp_path, check=True)

    told, rejected = scored(tmp_path)

    assert rejected == []
    ends = {(row["id"], row["time"]) for row in told if row["step"] == 1}
    assert ends == {(f"s{number}", START + 20 * HOUR) for number in range(3)}


def test_no_series_is_no_fault(tmp_path: Path) -> None:
    """A file without rows has results without rows."""
    publish_tiny(Store(tmp_path))
    nothing = pa.table({"id": pa.array([], pa.string()), "target_0": pa.array([], pa.list_(pa.float32()))})
    with pq.ParquetWriter(tmp_path / "data.parquet", nothing.schema) as writer:
        writer.write_table(nothing)

    assert scored(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": [1]}, "no column 'target_0'"),
        ({"name": [1], "target_0": [[1.0]]}, "no column 'id'"),
        ({"id": [1], "target0": [[1.0]]}, "did you mean 'target0'?"),
        ({"id": [1], "target_0": [1.0]}, "column 'target_0' is double, not a list of numbers: each row is a series"),
        ({"id": [1], "target_0": [["a"]]}, "not a list of numbers"),
        ({"id": [1], "target_0": [[1.0]], "time": ["2026"]}, "column 'time' is string, not a time"),
    ],
)
def test_columns_that_are_not_the_models_are_told(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    """Before anything is computed."""
    publish_tiny(Store(tmp_path))
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")

    with pytest.raises(ColumnsError) as raised:
        planned(given(tmp_path), Settings.model_validate({"artifacts": tmp_path}))

    assert expected in str(raised.value)


def test_a_folder_is_for_one_order(tmp_path: Path) -> None:
    """Another version, other steps or other data are refused, and so is a second one at the same time."""
    store = Store(tmp_path)
    publish_tiny(store)
    publish_tiny(store, seed=1)
    settings = Settings.model_validate({"artifacts": tmp_path})
    table = pa.table({"id": [1], "target_0": [series(1)[0, :, 0].tolist()]})
    pq.write_table(table, tmp_path / "data.parquet")
    manifest, _ = planned(given(tmp_path, version="1"), settings)
    folder = Folder(tmp_path / "out")
    with folder.claimed(manifest), pytest.raises(WorkError, match="somebody else"), folder.claimed(manifest):
        pass

    orders = [("version was 1, now 2", {}), ("steps was 3, now 4", {"version": "1", "steps": 4})]
    for expected, changed in orders:
        other, _ = planned(given(tmp_path, **changed), settings)
        with pytest.raises(WorkError, match=f"{expected}; choose another folder"), folder.claimed(other):
            pass
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "data.parquet")
    other, _ = planned(given(tmp_path, version="1"), settings)
    with pytest.raises(WorkError, match="data was other data"), folder.claimed(other):
        pass
    with folder.claimed(manifest):
        assert [part.rows for part in folder.missing(manifest)] == [1]


def test_what_is_half_done_is_not_done(tmp_path: Path) -> None:
    """A file that was being written is removed, and its part is missing; what others put there is no result."""
    publish_tiny(Store(tmp_path))
    pq.write_table(pa.table({"id": [1], "target_0": [series(1)[0, :, 0].tolist()]}), tmp_path / "data.parquet")
    manifest, _ = planned(given(tmp_path), Settings.model_validate({"artifacts": tmp_path}))
    folder = Folder(tmp_path / "out")
    with folder.claimed(manifest):
        (part,) = folder.missing(manifest)
    half = tmp_path / "out" / FORECASTS / ".half-1"
    half.write_text("PAR1")
    with folder.claimed(manifest):
        assert folder.missing(manifest) == [part]
        assert not half.exists()
        (half.parent / part.name).write_text("PAR1")
        with pytest.raises(WorkError, match="not written by this; remove it, and start again"):
            folder.count(manifest)


def test_parts_of_files_in_folders_do_not_meet(tmp_path: Path) -> None:
    """Names tell folders apart, whatever letters they have."""
    names = [work.Part(path, 0, 1).name for path in ("a/b.parquet", "a%2Fb.parquet", "b.parquet", "a/b-00000.parquet")]

    assert names[0] == "a%2Fb-00000.parquet"
    assert len({*names}) == 4
    with pytest.raises(WorkError, match=r"no \*\.parquet in it"):
        files_of(tmp_path)
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(WorkError, match=r"x\.parquet: "):
        files_of(tmp_path)


def test_the_manifest_says_what_was_asked(tmp_path: Path) -> None:
    """Model, version, digest, steps and the data, for whoever finds the folder."""
    store = Store(tmp_path)
    publish_tiny(store)
    pq.write_table(pa.table({"id": ["a"], "target_0": list(series(1)[:, :, 0])}), tmp_path / "data.parquet")

    scored(tmp_path)

    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    digest = store.index().models["tiny"].versions[1]
    assert (told["model"], told["version"], told["digest"], told["steps"]) == ("tiny", 1, digest, 3)
    assert [(file["path"], file["rows"]) for file in told["data"]] == [("data.parquet", [1])]
