"""POST /anomalies: p-values by hand, their accord with the intervals, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.schemas.followed import Anomalies
from models.store import Store
from tests.app.calibrated import forecasts, publish, windows
from tests.app.serving import metric, serving
from tests.builders import publish_tiny

pytestmark = pytest.mark.anyio

ONE, OTHER = windows(2)


async def test_p_values_by_hand(tmp_path: Path) -> None:
    """Twice the share of errors, the new one among them, that are as far out on the same side; and the interval."""
    publish(tmp_path)
    async with serving(tmp_path) as client:
        expected = (await forecasts(client, [ONE], 3))[0, :, 0]
        actual = [[expected[0] + 89.5], [None], [expected[2] - 200]]
        tied = {"window": ONE, "actual": [[expected[0] + 90.5]]}
        tie = (await client.post("/anomalies?level=90", json=tied)).json()
        answer = (await client.post("/anomalies?level=90", json={"window": ONE, "actual": actual})).json()
        wider = (await client.post("/anomalies?level=98.9", json={"window": ONE, "actual": actual})).json()
        counted = metric((await client.get("/metrics")).text, "foretell_actuals_total")

    Anomalies.model_validate(answer)
    # Of 200 errors ten, 90 to 99, and the new one are as large as 89.5, and none other is as small as -200.
    assert np.array(answer["p_values"], float)[:, 0] == pytest.approx([22 / 200, np.nan, 2 / 200], nan_ok=True)
    assert answer["anomalous"] == [[False], [None], [True]]
    assert (tie["p_values"], tie["anomalous"]) == ([[0.1]], [[True]])
    assert wider["anomalous"] == [[False], [None], [True]]
    assert np.array(answer["expected"])[:, 0] == pytest.approx(expected)
    assert answer["level"] == "90"
    bounds = answer["intervals"]["90"]
    assert np.array(bounds["upper"]) - np.array(answer["expected"]) == pytest.approx(np.full((3, 1), 90), rel=1e-5)
    assert np.array(bounds["lower"]) - np.array(answer["expected"]) == pytest.approx(np.full((3, 1), -90), rel=1e-5)
    # Asking is no telling.
    assert counted == 0


@pytest.mark.parametrize("level", ["50", "80", "90", "95", "98.9"])
async def test_an_anomaly_is_what_is_outside_of_the_interval(tmp_path: Path, level: str) -> None:
    """At every level and for several windows of their own lengths, as far as an actual can be told from a bound."""
    publish(tmp_path, roles=("target", "target"))
    asked = windows(3, columns=2)
    random = np.random.default_rng(1)
    actuals = [random.uniform(-120, 120, (rows, 2)).round(2).tolist() for rows in (3, 1, 2)]
    async with serving(tmp_path) as client:
        body = {"windows": asked, "actuals": actuals, "start": ["2026-01-01T00:00:00Z"] * 3}
        answer = (await client.post("/anomalies", params={"level": level}, json=body)).json()

    Anomalies.model_validate(answer)
    assert [len(rows) for rows in answer["timestamps"]] == [3, 1, 2]
    for index, rows in enumerate(actuals):
        lower, upper = (np.array(answer["intervals"][level][side][index]) for side in ("lower", "upper"))
        outside = (np.array(rows) < lower) | (np.array(rows) > upper)
        assert answer["anomalous"][index] == outside.tolist()
        assert (np.array(answer["p_values"][index]) <= 1 - float(level) / 100 + 1e-12).tolist() == outside.tolist()


async def test_level_is_called_what_a_forecast_calls_it(tmp_path: Path) -> None:
    """However it is written, and as often as a level can be: once."""
    publish(tmp_path)
    body = {"window": ONE, "actual": [[1.0]]}
    async with serving(tmp_path) as client:
        for level in ("80.0", "080"):
            answer = (await client.post("/anomalies", params={"level": level}, json=body)).json()
            assert (answer["level"], list(answer["intervals"])) == ("80", ["80"])
        several = await client.post("/anomalies?level=80,90", json=body)
    assert several.json()["detail"] == "query.level: one level is taken here, not 2"


async def test_chooses_the_model(tmp_path: Path) -> None:
    """By name and version, as for forecasts; at 95 % where no level is given."""
    publish(tmp_path, "one")
    publish(tmp_path, "other")
    publish(tmp_path, "other", seed=1)
    body = {"window": ONE, "actual": [[1]]}
    async with serving(tmp_path, versions="all") as client:
        without = await client.post("/anomalies", json=body)
        answer = (await client.post("/anomalies?model=other&version=1&deadline_ms=20000", json=body)).json()

    assert (without.status_code, without.json()["errors"][0]["place"]) == (422, "query.model")
    assert (answer["model"], answer["version"], answer["level"]) == ("other", 1, "95")


@pytest.mark.parametrize(
    ("query", "body", "status", "place"),
    [
        ("level=99.1", {}, 422, "query.level"),  # there are errors enough for 99
        ("level=0", {}, 422, "query.level"),
        ("level=100", {}, 422, "query.level"),
        ("level=80,95", {}, 422, "query.level"),
        ("level=", {}, 422, "query.level"),
        ("levl=80", {}, 422, "query"),
        ("deadline_ms=0", {}, 422, "query.deadline_ms"),
        ("model=other", {}, 404, None),
        ("version=3", {}, 404, None),
        ("", {"actual": [[1]] * 4}, 422, "actual"),  # three steps are calibrated
        ("", {"actual": [[1, 2]]}, 422, "actual[0]"),
        ("", {"actual": [["x"]]}, 422, "actual[0][0]"),
        ("", {"window": ONE[1:]}, 422, "window"),
    ],
)
async def test_refusals_say_where(
    tmp_path: Path, query: str, body: dict[str, Any], status: int, place: str | None
) -> None:
    """Before anything is forecast, where that can be told."""
    publish(tmp_path)
    async with serving(tmp_path) as client:
        response = await client.post(f"/anomalies?{query}", json={"window": ONE, "actual": [[1]], **body})

    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert place is None or response.json()["errors"][0]["place"] == place


async def test_model_without_intervals(tmp_path: Path) -> None:
    """It cannot say what is unusual."""
    publish_tiny(Store(tmp_path))
    async with serving(tmp_path) as client:
        response = await client.post("/anomalies", json={"window": ONE, "actual": [[1]]})

    assert response.status_code == 422
    assert response.json()["errors"][0]["message"].startswith("the model has no intervals")


async def test_beyond_the_calibrated_steps(tmp_path: Path) -> None:
    """Where the model's intervals go on there, so do the p-values."""
    publish(tmp_path, extrapolate=True)
    async with serving(tmp_path) as client:
        answer = (await client.post("/anomalies", json={"window": ONE, "actual": [[1e6]] * 5})).json()

    assert answer["anomalous"] == [[True]] * 5
