"""POST /models/{name}/versions/{version}/actuals: errors and coverage by hand, each value counted once, and what
adaptive intervals make of it, in one process, in several, and with a Redis that goes.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.schemas.followed import Errors
from models.store import Store
from tests.app.calibrated import forecasts, publish, told, windows
from tests.app.serving import metric, process, redis_server, serving, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

ONE, OTHER = windows(2)


async def figure(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """A metric."""
    return metric((await client.get("/metrics")).text, f"foretell_actuals_{name}", **labels)


async def coverage(client: httpx.AsyncClient, **labels: str) -> float:
    """The share of actual values that these intervals held."""
    of = await figure(client, "intervals_total", **labels)
    return await figure(client, "intervals_total", result="inside", **labels) / of


# What is answered


async def test_errors_and_coverage_by_hand(tmp_path: Path) -> None:
    """Forecast less actual, and for each level whether its interval held it; null where nobody knows what came."""
    publish(tmp_path)
    async with serving(tmp_path) as client:
        expected = (await forecasts(client, [ONE], 3))[0, :, 0]
        # An interval of 80 % goes to the 180th of 199 errors, which is 80, and one of 90 % to the 190th.
        actual = [[expected[0] + 79.5], [None], [expected[2] - 89.5]]
        answer = (await told(client, {"window": ONE, "actual": actual})).json()

    Errors.model_validate(answer)
    assert answer["errors"][0][0] == pytest.approx(-79.5, rel=1e-5)
    assert answer["errors"][2][0] == pytest.approx(89.5, rel=1e-5)
    assert answer["errors"][1] == [None]
    assert answer["covered"] == {"80": [[True], [None], [False]], "90": [[True], [None], [True]]}
    assert (answer["counted"], answer["adaptive"]) == (2, {"actuals": 2})
    assert (answer["model"], answer["version"], answer["targets"]) == ("tiny", 1, ["target_0"])
    assert "timestamps" not in answer


async def test_several_windows_of_their_own_lengths(tmp_path: Path) -> None:
    """Each has as many rows as followed it, and as it would have alone; times are told where they are known."""
    publish(tmp_path, roles=("target", "target"))
    asked = windows(2, columns=2)
    actuals = [[[1, 2]], [[3, 4], [5, None], [7, 8]]]
    starts = ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]
    async with serving(tmp_path) as client:
        answer = (await told(client, {"windows": asked, "actuals": actuals, "start": starts})).json()
        alone = (await told(client, {"window": asked[1], "actual": actuals[1], "start": starts[1]})).json()

    Errors.model_validate(answer)
    assert [len(rows) for rows in answer["errors"]] == [1, 3]
    assert np.array(answer["errors"][1], float) == pytest.approx(
        np.array(alone["errors"], float), rel=1e-5, nan_ok=True
    )
    assert answer["covered"]["90"][1] == alone["covered"]["90"]
    assert answer["timestamps"][1] == alone["timestamps"] == [f"2026-02-01T{hour:02}:00:00Z" for hour in (8, 9, 10)]
    assert (answer["counted"], alone["counted"]) == (7, 0)


@pytest.mark.parametrize("extrapolate", [False, True])
async def test_beyond_the_calibrated_steps(tmp_path: Path, extrapolate: bool) -> None:
    """There are errors, and coverage only where there are intervals."""
    publish(tmp_path, extrapolate=extrapolate)
    async with serving(tmp_path) as client:
        answer = (await told(client, {"window": ONE, "actual": [[10.0]] * 5})).json()

    assert np.isfinite(np.array(answer["errors"], float)).all()
    assert answer["covered"]["80"][:3] == [[True]] * 3
    assert answer["covered"]["80"][3:] == [[True] if extrapolate else [None]] * 2
    assert (answer["counted"], answer["adaptive"]) == (5, {"actuals": 3})


async def test_model_without_intervals(tmp_path: Path) -> None:
    """Errors are told and counted, once; nothing is said of intervals."""
    publish_tiny(Store(tmp_path))
    async with serving(tmp_path) as client:
        answers = [(await told(client, {"window": ONE, "actual": [[1], [2]]}, version="latest")).json() for _ in "12"]
        count = await figure(client, "total", model="tiny", version="1")

    assert answers[0].keys() == {"model", "version", "digest", "targets", "errors", "counted"}
    assert [answer["counted"] for answer in answers] == [2, 0]
    assert count == 2


async def test_known_future_and_static_values(tmp_path: Path) -> None:
    """A body is the request as it was, so with more rows ahead than followed; then it is the same window."""
    publish(tmp_path, roles=("target", "future", "static"), horizon=2)
    body: dict[str, Any] = {"window": windows(1, columns=2)[0], "future": [[1.0], [2.0], [3.0]], "static": [4.0]}
    async with serving(tmp_path) as client:
        forecast = (await client.post("/forecast?steps=3", json=body)).json()["forecast"]
        first = (await told(client, {**body, "future": body["future"][:2], "actual": [[0.0], [0.0]]})).json()
        whole = (await told(client, {**body, "actual": [[0.0]] * 3})).json()
        other = (await told(client, {**body, "static": [5.0], "actual": [[0.0]]})).json()

    assert np.array(whole["errors"]) == pytest.approx(np.array(forecast), rel=1e-5)
    assert [answer["counted"] for answer in (first, whole, other)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"window": ONE}, "actual"),
        ({"windows": [ONE]}, "actuals"),
        ({"window": ONE, "actuals": [[[1]]]}, "actual"),
        ({"window": ONE, "actual": [[1]], "actuals": [[[1]]]}, "actuals"),
        ({"actual": [[1]]}, "body"),
        ({"window": ONE, "actual": []}, "actual"),
        ({"window": ONE, "actual": None}, "actual"),
        ({"window": ONE, "actual": [1]}, "actual[0]"),
        ({"window": ONE, "actual": [[1], ["x"]]}, "actual[1][0]"),
        ({"window": ONE, "actual": [[1], [True]]}, "actual[1][0]"),
        ({"window": ONE, "actual": [[1], [1e39]]}, "actual[1][0]"),
        ({"window": ONE, "actual": [[1], [1, 2]]}, "actual[1]"),
        ({"window": ONE, "actual": [[1, 2]]}, "actual[0]"),
        ({"window": ONE, "actual": [[1]] * 51}, "actual"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]]]}, "actuals"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]], [["x"]]]}, "actuals[1][0][0]"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]], [[1]] * 51]}, "actuals[1]"),
        ({"window": [[None], *ONE[1:]], "actual": [[1]]}, "window[0][0]"),
        ({"window": ONE[1:], "actual": [[1]]}, "window"),
        ({"window": ONE, "actual": [[1]], "future": [[1]]}, "future"),
        ({"window": ONE, "actual": [[1]], "aktual": 1}, "aktual"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]], [[1, 2]]]}, "actuals[1][0]"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]], []]}, "actuals[1]"),
        ({"windows": [ONE, OTHER], "actuals": [[[1]], [[None], [True]]]}, "actuals[1][1][0]"),
        ({"window": [[3e38 * (-1) ** row] for row in range(8)], "actual": [[1]]}, "window"),
    ],
)
async def test_refusals_say_where(tmp_path: Path, body: object, place: str) -> None:
    """Each with the place that is wrong, and nothing counts."""
    publish(tmp_path)
    async with serving(tmp_path, max_steps=50) as client:
        response = await told(client, body)  # type: ignore[arg-type]  # anything
        count = await figure(client, "total")

    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["place"] == place
    assert count == 0


async def test_other_refusals(tmp_path: Path) -> None:
    """A model or version that is not there, an option, a body and a content type that are none of its, a deadline."""
    publish(tmp_path)
    body = {"window": ONE, "actual": [[1]]}
    async with serving(tmp_path) as client:
        path = "/models/tiny/versions/1/actuals"
        responses = [
            await told(client, body, name="other"),
            await told(client, body, version=2),
            await told(client, body, version="canary"),
            await client.post(f"{path}?steps=1", json=body),
            await client.post(path, content=b"{"),
            await client.post(path, content=b"target_0\n1\n", headers={"content-type": "text/csv"}),
            await client.post(f"{path}?deadline_ms=1000000", json=body),
        ]

    assert [response.status_code for response in responses] == [404, 404, 404, 422, 400, 415, 422]
    assert {response.headers["content-type"] for response in responses} == {"application/problem+json"}


# What is counted


async def test_metrics_by_hand(tmp_path: Path) -> None:
    """Sums by target and how far ahead; what is told again is not counted again, one wild value not in full."""
    publish(tmp_path, horizon=3)
    async with serving(tmp_path) as client:
        expected = (await forecasts(client, [ONE], 4))[0, :, 0]
        actual = [[expected[0] + 2], [expected[1] - 85], [expected[2] + 3], [expected[3] + 4]]
        for rows in (actual[:2], actual, actual):
            await told(client, {"window": ONE, "actual": rows})
        ahead = [
            [await figure(client, name, target="target_0", ahead=place) for place in ("first", "pass", "beyond")]
            for name in ("total", "absolute_error_total", "squared_error_total")
        ]
        held = [
            await figure(client, "intervals_total", level="80", intervals=kind, result=result, ahead=place)
            for kind in ("plain", "adaptive")
            for result in ("inside", "outside")
            for place in ("first", "pass", "beyond")
        ]
        await told(client, {"window": OTHER, "actual": [[1e38]]})
        wild = await figure(client, "absolute_error_total", ahead="first")

    assert ahead[0] == [1, 2, 1]
    assert ahead[1] == pytest.approx([2, 85 + 3, 4], rel=1e-4)
    assert ahead[2] == pytest.approx([4, 85 * 85 + 9, 16], rel=1e-4)
    # Beyond the three calibrated steps there are no intervals.
    assert held == [1, 1, 0, 0, 1, 0] * 2
    assert wild == pytest.approx(2 + 1000)


async def test_coverage_of_adaptive_intervals_is_of_the_steps_that_learn(tmp_path: Path) -> None:
    """Beyond the calibrated ones an extrapolated interval holds or not, and no adaptive one is counted as a miss."""
    publish(tmp_path, horizon=3, extrapolate=True)
    async with serving(tmp_path) as client:
        expected = (await forecasts(client, [ONE], 5))[0]
        await told(client, {"window": ONE, "actual": expected.tolist()})
        held = [
            await figure(client, "intervals_total", level="80", intervals=kind, result=result)
            for kind in ("plain", "adaptive")
            for result in ("inside", "outside")
        ]

    assert held == [5, 0, 3, 0]


async def test_each_value_counts_once(tmp_path: Path) -> None:
    """Row by row as they come, or again and again: in the end each value has counted once."""
    publish(tmp_path)
    async with serving(tmp_path) as client:
        actual: list[list[float | None]] = [[9.0], [10.0], [11.0]]
        counted = [
            (await told(client, {"window": ONE, "actual": rows})).json()["counted"]
            for rows in (actual[:1], actual[:2], [[9.0], [10.0], [None]], actual, actual)
        ]
        later = (await told(client, {"window": ONE, "actual": actual, "start": "2026-01-01T00:00:00Z"})).json()
        total = await figure(client, "total")

    assert counted == [1, 1, 0, 1, 0]
    # With its time, the same values are another window.
    assert later["counted"] == 3
    assert total == 6


# What is learnt


async def test_coverage_returns_after_a_change(tmp_path: Path) -> None:
    """Errors grow by three fifths: calibrated intervals miss too much from then on, adaptive ones are soon right."""
    random = np.random.default_rng(0)
    publish(tmp_path, errors=random.normal(0, 1, 1999).astype(np.float32))
    count = 1200
    async with serving(tmp_path, max_queue_rows=count) as client:
        asked = windows(count)
        noise = random.normal(0, 1, (count, 1, 1)) * np.where(np.arange(count) < 200, 1, 1.6)[:, None, None]
        actuals = await forecasts(client, asked, 1) + noise

        async def tell(first: int, end: int) -> None:
            body = {"windows": asked[first:end], "actuals": actuals[first:end].tolist()}
            assert (await told(client, body)).json()["counted"] == end - first

        async def inside(kind: str) -> float:
            return await figure(client, "intervals_total", level="90", intervals=kind, result="inside")

        await tell(0, 200)
        before = [await coverage(client, level="90", intervals=kind) for kind in ("plain", "adaptive")]
        await tell(200, 700)
        settled = [await inside(kind) for kind in ("plain", "adaptive")]
        await tell(700, 1200)
        after = [(await inside(kind) - then) / 500 for kind, then in zip(("plain", "adaptive"), settled, strict=True)]

    assert before == pytest.approx([0.9, 0.9], abs=0.04)
    assert after[0] < 0.75
    assert after[1] == pytest.approx(0.9, abs=0.03)


async def test_a_new_version_begins_anew(tmp_path: Path) -> None:
    """What was learnt of one version is nothing to the next, nor are its actuals old news there."""
    publish(tmp_path)
    publish(tmp_path, seed=1)
    body = {"window": ONE, "actual": [[10.0]]}
    async with serving(tmp_path, versions="all") as client:
        answers = [(await told(client, body, version=version)).json() for version in (1, 1, "latest")]

    assert [answer["version"] for answer in answers] == [1, 1, 2]
    assert [answer["counted"] for answer in answers] == [1, 0, 1]
    assert [answer["adaptive"] for answer in answers] == [{"actuals": 1}] * 3


def test_processes_share_what_they_learn(tmp_path: Path) -> None:
    """Whichever process is told, each value counts once, all move the same state, and inputs and errors add up."""
    publish(tmp_path / "store")
    with process(tmp_path / "store", HTTP_PROCESSES=2) as service:

        def tell(number: int) -> httpx.Response:
            # A connection of its own each time, which any process may get.
            body = {"window": windows(1, seed=number % 20)[0], "actual": [[10.0]]}
            return httpx.post(f"{service.url}/models/tiny/versions/1/actuals", json=body, timeout=PATIENCE_S)

        with ThreadPoolExecutor(4) as pool:
            answers = [response.json() for response in pool.map(tell, range(40))]
        for number in range(20):
            httpx.post(f"{service.url}/predict", json={"window": windows(1, seed=number)[0]}, timeout=PATIENCE_S)
        counted = service.metric("foretell_actuals_total")
        wait_until(lambda: service.metric("foretell_input_values_total") == 20)
        again = tell(0).json()

    assert sum(answer["counted"] for answer in answers) == 20
    assert counted == 20
    assert again["adaptive"] == {"actuals": 20}


async def test_redis_shares_what_replicas_learn(tmp_path: Path) -> None:
    """With Redis, what one replica was told another knows; without it, answers and counts go on."""
    publish(tmp_path / "store")
    bodies = [{"window": window, "actual": [[10.0]]} for window in windows(4)]
    with redis_server(tmp_path) as server:
        settings: dict[str, Any] = {"redis_url": server.url, "redis_timeout_ms": 10_000}
        async with serving(tmp_path / "store", **settings) as one, serving(tmp_path / "store", **settings) as other:
            first = (await told(one, bodies[0])).json()
            second = (await told(other, bodies[0])).json()
            third = (await told(other, bodies[1])).json()
            server.kill()
            away = [await told(one, bodies[2]) for _ in "12"]
            errors = metric((await one.get("/metrics")).text, "foretell_adaptive_errors_total")
            counted = await figure(one, "total")

    assert [answer["counted"] for answer in (first, second, third)] == [1, 0, 1]
    assert [answer["adaptive"] for answer in (first, second, third)] == [{"actuals": 1}, {"actuals": 1}, {"actuals": 2}]
    assert [response.status_code for response in away] == [200, 200]
    # Nobody knows now whether it was told before.
    assert [(answer.json()["counted"], answer.json()["adaptive"]) for answer in away] == [(1, None)] * 2
    assert (errors, counted) == (2, 3)


async def test_forecasts_use_what_was_learnt(tmp_path: Path) -> None:
    """Misses at a step make its adaptive intervals wider, at every level by itself, and leave the calibrated ones."""
    publish(tmp_path)
    async with serving(tmp_path) as client:

        async def widths(**options: str) -> list[float]:
            options = {"steps": "3", "level": "80,90", **options}
            answer = (await client.post("/forecast", params=options, json={"window": ONE})).json()
            bounds = [answer["intervals"][level] for level in ("80", "90")]
            return [
                upper - lower
                for level in bounds
                for (upper,), (lower,) in zip(level["upper"], level["lower"], strict=True)
            ]

        calibrated, fresh = await widths(), await widths(adaptive="true")
        # Every window misses at its second step, by as much as an interval of 80 % does not hold and one of 90 % does.
        asked = windows(10, seed=1)
        expected = await forecasts(client, asked, 3)
        actuals = np.full((10, 3, 1), None)
        actuals[:, 1] = expected[:, 1] + 85
        await told(client, {"windows": asked, "actuals": actuals.tolist()})
        after, learnt = await widths(), await widths(adaptive="true")

    assert fresh == after == calibrated
    changes = np.array(learnt) - np.array(calibrated)
    assert changes[[0, 2, 3, 5]] == pytest.approx(np.zeros(4), abs=1e-3)
    assert 5 < changes[1] < 12
    assert -6 < changes[4] < -1
