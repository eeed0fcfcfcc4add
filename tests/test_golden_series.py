"""From many series with gaps, holidays and a summer time to served forecasts with bands: one recipe, one archive, real
HTTP, and every answer what the network and the table say offline.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from models.archive import RESIDUALS_FILE, record
from models.forecaster import Forecaster
from models.intervals import Base, Table
from models.store import Store
from tests.app.serving import Process, process
from training import recipe as recipes
from training.data.dataset import prepare
from training.fitting.fit import fit
from training.publishing.publish import publish

START = datetime(2025, 8, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ZONE = ZoneInfo("Europe/Berlin")
LENGTH, SHORTEST, STEPS, LIMIT = 24, 10, 6, 3
COLUMNS = ("sales", "price", "visitors")
"""Of a request, in order: a target, a known-future covariate, a past covariate. `size` is static."""

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """A published model under way, and the same offline."""

    service: Process
    network: Forecaster
    table: Table

    def offline(self, rows: Rows, size: float, future: Rows, last: datetime) -> Rows:
        """What the network says of one window [l, 3] with NaN for what is missing: [N, 1 + Q]."""
        window = np.full((LENGTH, 4), np.nan, np.float32)
        window[-len(rows) :, [0, 1, 3]] = rows
        window[:, 2] = size
        known = np.stack([future, np.full_like(future, size)], 1)
        with torch.inference_mode():
            outputs, _ = self.network.rollout(
                torch.from_numpy(window)[None],
                torch.tensor([int(last.timestamp())]),
                torch.from_numpy(known)[None],
                STEPS,
            )
        return outputs[0].numpy()

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401  JSON
        """The JSON answer to a JSON request, which is a good one."""
        answer = httpx.post(self.service.url + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def series(seed: int, rows: int, start: datetime = START) -> pl.DataFrame:
    """Sales that follow the local hour, the price and the size of the shop."""
    random = np.random.default_rng(seed)
    moments = [start + index * HOUR for index in range(rows)]
    hours = np.array([moment.astimezone(ZONE).hour for moment in moments])
    size, price = 1.0 + seed, random.choice([1.0, 2.0], rows)
    sales = size * (10 + 4 * np.sin(2 * np.pi * hours / 24) - 2 * price) + random.normal(size=rows)
    return pl.DataFrame(
        {
            "time": [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in moments],
            "shop": [f"shop-{seed}"] * rows,
            "sales": sales.round(3),
            "price": price,
            "size": [size] * rows,
            "visitors": (sales * 3 + random.normal(size=rows)).round(3),
        }
    )


def data(path: Path) -> Path:
    """Three shops in one file, their rows mixed, with gaps; the third one opened later."""
    shops = [series(0, 1800), series(1, 1800), series(2, 900, START + 900 * HOUR)]
    rows = pl.concat(shops).sort("time")
    random = np.random.default_rng(9)
    for name in ("sales", "visitors"):
        gone = pl.Series(random.random(len(rows)) < 0.03)
        rows = rows.with_columns(pl.when(gone).then(None).otherwise(pl.col(name)).alias(name))
    rows.write_csv(path)
    return path


RECIPE = """
name = "shops"
[data]
files = ["{file}"]
frequency = "PT1H"
series = "shop"
timezone = "Europe/Berlin"
calendar = {{ features = ["hour", "day_of_week", "holiday"], holidays = "DE-BE" }}
gaps = {{ method = "interpolate", limit = 3, mask = true }}
features = [
    {{ name = "sales", role = "target" }},
    {{ name = "price", role = "future" }},
    {{ name = "size", role = "static" }},
    {{ name = "visitors", role = "past" }},
]
[split]
train = 0.5
validation = 0.1
calibration = 0.2
[window]
length = 24
shortest = 10
horizon = 2
steps = 6
season = 24
[intervals]
method = "cqr"
[network]
architecture = "attention_lstm"
[network.config]
hidden = 8
layers = 1
[training]
epochs = 2
batch = 256
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The model of the shops, trained, published and served."""
    folder = tmp_path_factory.mktemp("shops")
    (folder / "shops.toml").write_text(RECIPE.format(file=data(folder / "shops.csv")))
    recipe = recipes.load(folder / "shops.toml")
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda _: None)
    published = publish(recipe, dataset, fitted, Store(folder / "artifacts"))
    table = Table.unpack(record(published.archive.read_bytes(), RESIDUALS_FILE) or b"")
    with process(folder / "artifacts", CACHE_BYTES=0) as service:
        yield World(service, fitted.network, table)


def window(first: datetime, rows: int, seed: int = 7) -> tuple[Rows, Rows, float, datetime]:
    """Rows [n, 3] of a shop that the model has never seen, the prices ahead [N], its size, and its last row's time."""
    frame = series(seed, rows + STEPS, first)
    values = frame.select(COLUMNS).to_numpy().astype(np.float32)
    return values[:rows], values[rows:, 1], float(frame["size"][0]), first + (rows - 1) * HOUR


def asked(rows: Rows, future: Rows, size: float, first: datetime) -> dict[str, Any]:
    """The request in JSON, with null for what is missing."""
    given = [[None if math.isnan(value) else float(value) for value in row] for row in rows]
    return {"window": given, "future": future[:, None].tolist(), "static": [size], "start": first.isoformat()}


def close(found: object, expected: Rows) -> None:
    """As served and as computed offline."""
    np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=1e-4, atol=1e-4)


FIRST = datetime(2026, 1, 10, 5, tzinfo=UTC)


def test_series_never_seen(world: World) -> None:
    """A shop of another size than any in training is forecast as the network forecasts it."""
    rows, future, size, last = window(FIRST, LENGTH)
    answer = world.post(f"/forecast?steps={STEPS}", asked(rows, future, size, FIRST))
    close(answer["forecast"], world.offline(rows, size, future, last)[:, :1])


def test_windows_with_gaps(world: World) -> None:
    """Nulls in JSON are filled in the graph: as offline with NaN, and not as with any other number."""
    rows, future, size, last = window(FIRST, LENGTH)
    whole = world.offline(rows, size, future, last)
    rows[4 : 4 + LIMIT, 0] = np.nan
    rows[-1, 2] = np.nan
    answer = world.post(f"/forecast?steps={STEPS}", asked(rows, future, size, FIRST))
    expected = world.offline(rows, size, future, last)
    close(answer["forecast"], expected[:, :1])
    assert not np.allclose(expected, whole)


def test_short_history(world: World) -> None:
    """With as few rows as the recipe allows, as offline with nothing before them."""
    rows, future, size, last = window(FIRST, SHORTEST)
    answer = world.post(f"/forecast?steps={STEPS}", asked(rows, future, size, FIRST))
    close(answer["forecast"], world.offline(rows, size, future, last)[:, :1])


@pytest.mark.parametrize(
    ("night", "hours"),
    [
        (datetime(2026, 3, 29, tzinfo=UTC), ["01:00+01:00", "03:00+02:00", "04:00+02:00"]),
        (datetime(2025, 10, 26, tzinfo=UTC), ["02:00+02:00", "02:00+01:00", "03:00+01:00"]),
    ],
)
def test_change_of_summer_time(world: World, night: datetime, hours: Sequence[str]) -> None:
    """Across the night in which Berlin's clocks change, instants go on evenly and their wall-clock times leap."""
    first = night - LENGTH * HOUR
    rows, future, size, last = window(first, LENGTH)
    local = asked(rows, future, size, first) | {"start": first.astimezone(ZONE).isoformat()}
    for body in (
        asked(rows, future, size, first),
        local,
        local | {"start": f"{first.astimezone(ZONE):%Y-%m-%dT%H:%M}"},
    ):
        answer = world.post(f"/forecast?steps={STEPS}", body)
        close(answer["forecast"], world.offline(rows, size, future, last)[:, :1])
        assert [stamp[11:16] + stamp[19:] for stamp in answer["timestamps"][:3]] == hours
    moved = world.post(f"/forecast?steps={STEPS}", asked(rows, future, size, first + 3 * HOUR))
    assert not np.allclose(moved["forecast"], answer["forecast"])


def bounds(world: World, outputs: Rows, level: str, band: str = "each") -> Rows:
    """The offline interval [2, N] of one window's outputs."""
    base = Base(outputs[None, :, :1], outputs[None, :, 1:2], outputs[None, :, 2:])
    (found,) = world.table.bounds(base, [level], band)  # type: ignore[arg-type]
    return np.stack([found.lower[0, :, 0], found.upper[0, :, 0]])


def test_bands_are_those_of_the_archive(world: World) -> None:
    """Each level, step by step and for the whole path, single and batched, as the table gives them offline."""
    rows, future, size, last = window(FIRST, LENGTH)
    outputs = world.offline(rows, size, future, last)
    body = asked(rows, future, size, FIRST)
    for band, name in (("step", "each"), ("path", "path")):
        answer = world.post(f"/forecast?steps={STEPS}&level=80,90&band={band}", body)
        assert list(answer["intervals"]) == ["80", "90"]
        for level, found in answer["intervals"].items():
            lower, upper = bounds(world, outputs, level, name)
            close([row[0] for row in found["lower"]], lower)
            close([row[0] for row in found["upper"]], upper)
    one = world.post("/predict?level=90.0", body)["intervals"]["90"]
    assert one["lower"][0] == pytest.approx(float(bounds(world, outputs[:1], "90")[0, 0]), rel=1e-4)

    plural = {"windows": [body["window"]] * 2, "future": [body["future"]] * 2}
    plural |= {"static": [body["static"]] * 2, "start": [body["start"]] * 2}
    many = world.post(f"/forecast?steps={STEPS}&level=90", plural)["intervals"]["90"]
    for index in range(2):
        close([row[0] for row in many["upper"][index]], bounds(world, outputs, "90")[1])


def table_of(rows: Rows, future: Rows, size: float, first: datetime, shop: str) -> list[list[str]]:
    """A shop's rows as a person has them in a spreadsheet, the prices ahead below."""
    lines = []
    for index, row in enumerate(np.vstack([rows, np.full((len(future), 3), np.nan, np.float32)])):
        price = row[1] if index < len(rows) else future[index - len(rows)]
        cells = [row[0], price, row[2]]
        texts = ["" if math.isnan(cell) else repr(float(cell)) for cell in cells]
        moment = (first + index * HOUR).astimezone(ZONE)
        lines.append([moment.isoformat(), shop, *texts, repr(size)])
    return lines


def test_table_of_several_shops_in_and_out(world: World) -> None:
    """A CSV of two shops, one with gaps and one too young, gives a CSV of their forecasts with bands."""
    old, new = window(FIRST, LENGTH + 5, seed=5), window(FIRST + 17 * HOUR, 12, seed=6)
    old[0][9, 0] = np.nan
    lines = [["time", "shop", *COLUMNS, "size"]]
    for name, (rows, future, size, last) in {"old": old, "new": new}.items():
        lines += table_of(rows, future, size, last - (len(rows) - 1) * HOUR, name)
    written = io.StringIO()
    csv.writer(written).writerows(lines)
    answer = httpx.post(
        f"{world.service.url}/forecast?steps={STEPS}&level=90",
        content=written.getvalue().encode(),
        headers={"Content-Type": "text/csv", "Accept": "text/csv"},
    )
    found = list(csv.DictReader(io.StringIO(answer.text)))

    assert [row["shop"] for row in found] == ["old"] * STEPS + ["new"] * STEPS
    for index, (rows, future, size, last) in enumerate((old, new)):
        part = found[index * STEPS : (index + 1) * STEPS]
        outputs = world.offline(rows[-LENGTH:], size, future, last)
        close([float(row["sales"]) for row in part], outputs[:, 0])
        lower, upper = bounds(world, outputs, "90")
        close([float(row["sales_lower_90"]) for row in part], lower)
        close([float(row["sales_upper_90"]) for row in part], upper)
        stamps = [datetime.fromisoformat(row["time"]) for row in part]
        assert stamps == [last + (step + 1) * HOUR for step in range(STEPS)]


@pytest.mark.parametrize(
    ("option", "place", "reason"),
    [
        ("steps=7&level=90", "query.steps", "calibrated for 6 steps; got 7"),
        ("steps=6&level=99.99", "query.level", "needs 19999 calibration windows"),
        ("steps=6&level=0", "query.level", "above 0"),
        ("steps=6&level=much", "query.level", "much"),
    ],
)
def test_bands_that_cannot_be_are_refused(world: World, option: str, place: str, reason: str) -> None:
    """With the place and what would do; nothing is clamped."""
    rows, future, size, _ = window(FIRST, LENGTH)
    body = asked(rows, np.pad(future, (0, 1), mode="edge"), size, FIRST)
    answer = httpx.post(f"{world.service.url}/forecast?{option}", json=body)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["place"]) == (422, place)
    assert reason in error["message"]
