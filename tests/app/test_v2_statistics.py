"""Statistics of the Open Inference Protocol and the metrics of whole requests by model: they are what happened."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from app.costs import Cost, Tallies, Tally
from app.ticket import ModelId
from models.store import Store
from tests.app.serving import metric, serving
from tests.builders import publish_tiny

BODY = {"window": [[10.0 + row] for row in range(8)]}
INFER = {"inputs": [{"name": "WINDOW", "datatype": "FP32", "shape": [1, 8, 1], "data": list(range(8))}]}
STAGES = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
MODEL = ModelId("load", 2, "sha256:" + "0" * 64)


async def statistics(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """Of the one version that they are of."""
    (found,) = (await client.get(path)).json()["model_stats"]
    return dict(found)


def counts(said: dict[str, Any]) -> dict[str, int]:
    """How many of each."""
    return {name: one["count"] for name, one in said["inference_stats"].items()}


@pytest.mark.anyio
async def test_every_request_counts_once(tmp_path: Path) -> None:
    """Computed, cached and refused ones, by whichever endpoint they come; windows and passes by themselves."""
    publish_tiny(Store(tmp_path), "one")
    publish_tiny(Store(tmp_path), "other")
    async with serving(tmp_path) as client:
        before = await statistics(client, "/v2/models/one/stats")
        for path, json in (
            ("/predict?model=one", BODY),
            ("/predict?model=one", BODY),
            ("/forecast?model=one&steps=3", {"windows": [BODY["window"], BODY["window"]]}),
            ("/v2/models/one/infer", INFER),
        ):
            assert (await client.post(path, json=json)).status_code == 200
        assert (await client.post("/predict?model=one", json={"window": [[1]]})).status_code == 422
        assert (await client.post("/v2/models/one/infer", json={})).status_code == 422
        assert (await client.post("/predict?model=nobody", json=BODY)).status_code == 404
        after = await statistics(client, "/v2/models/one/versions/1/stats")
        every = (await client.get("/v2/models/stats")).json()["model_stats"]
        exposition = (await client.get("/metrics")).text

    assert (before["inference_count"], before["last_inference"]) == (0, 0)
    assert set(counts(before).values()) == {0}
    assert (after["name"], after["version"]) == ("one", "1")
    assert counts(after) == {"success": 4, "fail": 2, "cache_hit": 1, "cache_miss": 3} | dict.fromkeys(
        ("queue", "compute_infer"), 3
    ) | dict.fromkeys(("compute_input", "compute_output"), 4)
    # A window that was cached was not forecast again; three steps are three passes.
    assert (after["inference_count"], after["execution_count"]) == (4, 5)
    assert after["last_inference"] > 1_700_000_000_000
    assert all(one["ns"] > 0 for one in after["inference_stats"].values())
    parts = sum(after["inference_stats"][stage]["ns"] for stage in STAGES)
    assert parts <= after["inference_stats"]["success"]["ns"]
    assert [(one["name"], one["inference_stats"]["success"]["count"]) for one in every] == [("one", 4), ("other", 0)]
    for result, count in (("computed", 3), ("cached", 1), ("failed", 2)):
        assert metric(exposition, "foretell_model_request_seconds_count", model="one", result=result) == count
    assert metric(exposition, "foretell_model_windows_total", model="one", source="cached") == 1
    assert metric(exposition, "foretell_model_windows_total", model="one", source="computed") == 4
    assert metric(exposition, "foretell_model_stage_seconds_total", model="one", stage="compute") > 0
    assert metric(exposition, "foretell_model_request_seconds_count", model="nobody") == 0


@pytest.mark.anyio
async def test_without_a_cache_nothing_is_missed(tmp_path: Path) -> None:
    """Neither hits nor misses are counted where nothing is looked up, and the configuration says so."""
    publish_tiny(Store(tmp_path))
    async with serving(tmp_path, cache_bytes=0) as client:
        await client.post("/predict", json=BODY)
        found = counts(await statistics(client, "/v2/models/tiny/stats"))
        config = (await client.get("/v2/models/tiny/config")).json()

    assert (found["success"], found["cache_hit"], found["cache_miss"]) == (1, 0, 0)
    assert config["response_cache"] == {"enable": False}


# How they are added up


@pytest.mark.anyio
async def test_requests_are_told_together() -> None:
    """What is counted is told at once where that is asked for, in buckets, and once."""
    told: list[tuple[ModelId, Tally]] = []
    tallies = Tallies((0.1, 1.0), lambda model, tally: told.append((model, tally)))
    for seconds, status, cache in ((0.1, 200, "miss"), (0.2, 200, "hit"), (5.0, 200, None), (0.5, 503, None)):
        tallies.add(Cost(MODEL, windows=2, cache=cache, queue_s=1.0, cache_s=0.25), status, seconds)
    assert told == []
    tallies.settle()
    tallies.settle()

    ((model, tally),) = told
    assert model == MODEL
    assert tally.results["computed"].buckets == [1, 0, 1]
    assert tally.results["cached"].buckets == [0, 1, 0]
    assert tally.results["failed"].buckets == [0, 1, 0]
    assert tally.results["computed"].seconds == pytest.approx(5.1)
    assert tally.windows == {"computed": 4, "cached": 2}
    assert (tally.stages["queue"], tally.stages["cache_hit"], tally.stages["cache_miss"]) == (2.0, 0.25, 0.5)
