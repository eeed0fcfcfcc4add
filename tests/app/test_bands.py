"""`level`, `band` and `adaptive`: what intervals a request gets around its forecast, and what it is refused."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.forecasts import bands
from models.store import Store
from tests.app import calibrated
from tests.app.calibrated import STEPS
from tests.app.serving import serving
from tests.builders import publish_tiny

pytestmark = pytest.mark.anyio

MARGINS = {"80": 80.0, "90": 90.0, "50": 50.0, "99": 99.0}
"""Of n = 199 errors from -99 to 99, number ceil(200 (1 - a / 2))."""


async def ask(client: httpx.AsyncClient, path: str, windows: int = 1, **fields: object) -> Any:  # noqa: ANN401  JSON
    """The answer to one window, or to several."""
    given = calibrated.windows(windows)
    body = {"window": given[0]} if windows == 1 else {"windows": given}
    response = await client.post(path, json=body | fields)
    assert response.status_code == 200, response.text
    return response.json()


async def refused(client: httpx.AsyncClient, path: str, body: object = None) -> tuple[str, str]:
    """The place and the reason of a 422."""
    response = await client.post(path, json=body or {"window": calibrated.windows(1)[0]})
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    return error["place"], error["message"]


@pytest.mark.parametrize("windows", [1, 3])
async def test_intervals_are_margins_around_the_forecast(tmp_path: Path, windows: int) -> None:
    """At the ranks that the levels are, whether they were measured or not, for one window and for several."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        answer = await ask(client, "/forecast?steps=3&level=50,80,99", windows)
        one = await ask(client, "/predict?level=90", windows)

    forecast = np.array(answer["forecast" if windows == 1 else "forecasts"])
    assert list(answer["intervals"]) == ["50", "80", "99"]
    for level, bounds in answer["intervals"].items():
        np.testing.assert_allclose(bounds["lower"], forecast - MARGINS[level], atol=1e-4)
        np.testing.assert_allclose(bounds["upper"], forecast + MARGINS[level], atol=1e-4)
    prediction = np.array(one["prediction" if windows == 1 else "predictions"])
    np.testing.assert_allclose(one["intervals"]["90"]["upper"], prediction + 90, atol=1e-4)
    assert "extrapolated_from" not in answer
    assert "actuals" not in answer


async def test_cached_forecasts_have_intervals_too(tmp_path: Path) -> None:
    """The cache keeps forecasts alone: another level is no other entry."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        await ask(client, "/forecast?steps=3")
        given = {"window": calibrated.windows(1)[0]}
        response = await client.post("/forecast?steps=3&level=80", json=given)

    assert response.headers["X-Cache"] == "hit"
    found = response.json()
    np.testing.assert_allclose(found["intervals"]["80"]["lower"], np.array(found["forecast"]) - 80, atol=1e-4)


async def test_simultaneous_band_is_wider_or_alike(tmp_path: Path) -> None:
    """Of errors that are alike at every step the largest is each of them: rank ceil(200 (1 - a)) of the absolute."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        answer = await ask(client, "/forecast?steps=3&level=90&band=path")
    forecast = np.array(answer["forecast"])
    np.testing.assert_allclose(answer["intervals"]["90"]["upper"], forecast + 90, atol=1e-4)


async def test_levels_are_told_as_short_as_they_can_be(tmp_path: Path) -> None:
    """However a client writes them."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        answer = await ask(client, "/forecast?steps=1&level=080.0,%2090.50,5")
    assert list(answer["intervals"]) == ["80", "90.5", "5"]


async def test_csv_has_a_column_for_each_end(tmp_path: Path) -> None:
    """Beside the targets."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        given = {"window": calibrated.windows(1)[0]}
        response = await client.post("/forecast?steps=2&level=80", json=given, headers={"Accept": "text/csv"})
    head, first, _ = response.text.splitlines()
    assert head == "step,target_0,target_0_lower_80,target_0_upper_80"
    _, forecast, lower, upper = map(float, first.split(","))
    assert (round(forecast - lower, 3), round(upper - forecast, 3)) == (80.0, 80.0)


@pytest.mark.parametrize(
    ("options", "place", "reason"),
    [
        ("level=99.5", "query.level", "level 99.5 needs 399 calibration windows; there are 199, enough for 99"),
        ("level=100", "query.level", "not above 0 and below 100"),
        ("level=0", "query.level", "not above 0 and below 100"),
        ("level=high", "query.level", "'high' is no percentage"),
        ("level=", "query.level", "'' is no percentage"),
        ("level=80,", "query.level", "'' is no percentage"),
        ("level=80,80.0", "query.level", "at most 20 levels, each of them once"),
        ("level=-80", "query.level", "'-80' is no percentage"),
        ("level=nan", "query.level", "'nan' is no percentage"),
        ("level=" + "9" * 1000, "query.level", "'99999999999999999999' is no percentage"),
        ("level=" + ",".join(map(str, range(1, 30))), "query.level", "at most 20 levels"),
        ("level=80&band=all", "query.band", "'step' or 'path'"),
        ("band=path", "query", "they go with level"),
        ("adaptive=true", "query", "they go with level"),
        ("level=80&adaptive=true&band=path", "query.adaptive", "without band=path"),
        ("level=70&adaptive=true", "query.level", "70"),
    ],
)
async def test_what_cannot_be_is_refused(tmp_path: Path, options: str, place: str, reason: str) -> None:
    """With the place, before anything is computed, and never clamped."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        found = await refused(client, f"/forecast?steps=3&{options}")
    assert found[0] == place
    assert reason in found[1]


async def test_steps_beyond_the_calibrated_ones(tmp_path: Path) -> None:
    """Are refused, unless the model extrapolates: then the answer says from where on."""
    calibrated.publish(tmp_path)
    calibrated.publish(tmp_path, "far", extrapolate=True)
    async with serving(tmp_path) as client:
        place, reason = await refused(client, "/forecast?model=tiny&steps=4&level=80")
        answer = await ask(client, "/forecast?model=far&steps=5&level=80")
    assert (place, reason) == ("query.steps", "intervals are calibrated for 3 steps; got 4")
    assert answer["extrapolated_from"] == STEPS + 1
    np.testing.assert_allclose(answer["intervals"]["80"]["upper"][4], np.array(answer["forecast"][4]) + 80, atol=1e-4)


async def test_model_without_intervals(tmp_path: Path) -> None:
    """Says so where it is asked for some, and answers everything else."""
    publish_tiny(Store(tmp_path))
    async with serving(tmp_path) as client:
        place, reason = await refused(client, "/forecast?steps=3&level=80")
        await ask(client, "/forecast?steps=3")
    assert place == "query.level"
    assert "has no intervals" in reason


async def test_intervals_count_for_the_size_of_an_answer(tmp_path: Path) -> None:
    """A request that is small enough without them may be too large with them."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path, max_answer_numbers=10) as client:
        await ask(client, "/forecast?steps=3&level=80&attention=none")
        place, reason = await refused(client, "/forecast?steps=3&level=80,90&attention=none")
    assert place == "query.steps"
    assert "15 numbers, of at most 10" in reason


async def test_archive_that_was_replaced_gives_no_intervals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The table is of the archive that was loaded, or it is none: the forecast would not be what it was made for."""
    calibrated.publish(tmp_path)
    calibrated.publish(tmp_path / "other", errors=calibrated.ERRORS * 0)
    async with serving(tmp_path) as client:
        archive = Store(tmp_path).archive("tiny", 1)
        kept = archive.read_bytes()
        shutil.copy(Store(tmp_path / "other").archive("tiny", 1), archive)
        given = {"window": calibrated.windows(1)[0]}
        response = await client.post("/forecast?steps=3&level=80", json=given)
        plain = await ask(client, "/forecast?steps=3")
        archive.write_bytes(kept)
        mended = await ask(client, "/forecast?steps=3&level=80")
    assert response.status_code == 500
    assert "not the one that was loaded" in caplog.text
    assert "not the one" not in response.text
    np.testing.assert_allclose(mended["intervals"]["80"]["upper"], np.array(plain["forecast"]) + 80, atol=1e-4)


async def test_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at the same time, and afterwards."""
    calibrated.publish(tmp_path)
    read: list[str] = []
    digest_of = bands.archive.digest_of
    monkeypatch.setattr(bands.archive, "digest_of", lambda content: read.append("once") or digest_of(content))
    async with serving(tmp_path) as client:
        await asyncio.gather(*(ask(client, "/forecast?steps=3&level=80") for _ in range(5)))
        await ask(client, "/predict?level=90")
    assert read == ["once"]


async def test_adaptive_intervals_without_actuals_are_as_calibrated(tmp_path: Path) -> None:
    """Nobody has told what came: the same intervals, and the answer says that nothing moved them."""
    calibrated.publish(tmp_path)
    async with serving(tmp_path) as client:
        plain = await ask(client, "/forecast?steps=3&level=80")
        adaptive = await ask(client, "/forecast?steps=3&level=80&adaptive=true")
    assert adaptive["intervals"] == plain["intervals"]
    assert adaptive["actuals"] == 0


async def test_adaptive_intervals_follow_what_came(tmp_path: Path) -> None:
    """After misses they are wider, after hits narrower; those that are not adaptive stay."""
    calibrated.publish(tmp_path)
    given = calibrated.windows(6)
    async with serving(tmp_path) as client:
        forecasts = await calibrated.forecasts(client, given, STEPS)
        plain = await ask(client, "/forecast?steps=3&level=80")
        missed = (forecasts + 1000).tolist()
        told = await client.post("/models/tiny/versions/1/actuals", json={"windows": given, "actuals": missed})
        assert told.status_code == 200, told.text
        wider = await ask(client, "/forecast?steps=3&level=80&adaptive=true")
        same = await ask(client, "/forecast?steps=3&level=80")
    assert same["intervals"] == plain["intervals"]
    assert wider["actuals"] == 6 * STEPS
    assert (np.array(wider["intervals"]["80"]["upper"]) > np.array(plain["intervals"]["80"]["upper"])).all()
    assert (np.array(wider["intervals"]["80"]["lower"]) < np.array(plain["intervals"]["80"]["lower"])).all()
