"""From a CSV file to a served forecast: real data, the real training, the real process, real HTTP."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import artifact
from models.forecaster import Forecaster
from models.store import Store
from tests.app.serving import ROOT, Process, process
from training.data.dataset import Dataset, prepare
from training.fitting.fit import Fitted, fit
from training.publishing.publish import publish
from training.recipe import Recipe, load

# Small: the thread is what is tested here, not the forecast.
ARCHITECTURES = {
    "linear": "",
    "lstm": "hidden = 8",
    "attention_lstm": "hidden = 8\nlayers = 1",
    "segment_lstm": "hidden = 8\nsegment = 6\nmixing = true",
    "transformer_lstm": "hidden = 8\nblocks = 1\nheads = 2",
}
HORIZON, STEPS = 2, 7
"""Four passes, the last of which is cut."""


def shortened(folder: Path) -> Path:
    """Some months of the data that ships with the repository: enough to learn something of."""
    path = folder / "weather-jfk.csv"
    with (ROOT / "data" / path.name).open() as rows:
        path.write_text("".join(islice(rows, 3000)))
    return path


def recipe(folder: Path, architecture: str) -> Recipe:
    """A small recipe over the data that ships with the repository."""
    path = folder / f"{architecture}.toml"
    path.write_text(
        f"""
        name = "{architecture}"
        [data]
        files = ["{shortened(folder)}"]
        frequency = "PT1H"
        gaps = {{ method = "carry_forward", limit = 2 }}
        features = [
            {{ name = "humid", role = "past" }},
            {{ name = "temp", role = "target" }},
            {{ name = "wind_speed", role = "target" }},
        ]
        [window]
        length = 24
        horizon = {HORIZON}
        steps = {STEPS}
        season = 24
        [network]
        architecture = "{architecture}"
        [network.config]
        {ARCHITECTURES[architecture]}
        [training]
        epochs = 1
        batch = 512
        """
    )
    return load(path)


def train(folder: Path, architecture: str) -> tuple[Recipe, Dataset, Fitted]:
    made = recipe(folder, architecture)
    dataset = prepare(made)
    return made, dataset, fit(made, dataset, tell=lambda epoch: None)


def eager(network: Forecaster, windows: NDArray[np.float32], steps: int) -> tuple[NDArray[np.float32], ...]:
    with torch.inference_mode():
        window = torch.from_numpy(windows)
        forecast, attention = network.rollout(
            window, torch.zeros(len(window), dtype=torch.int64), torch.empty(len(window), steps, 0), steps
        )
    return forecast.numpy(), attention.numpy()


def post(url: str, path: str, body: object) -> dict[str, object]:
    answer = httpx.post(url + path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def test_from_csv_to_served_forecast(tmp_path: Path) -> None:
    """Each network, trained on real data and published, answers over HTTP what it says in eager mode, to 1e-5."""
    store = Store(tmp_path / "artifacts")
    fitted = {}
    for architecture in ARCHITECTURES:
        made, dataset, trained = train(tmp_path, architecture)
        publish(made, dataset, trained, store)
        fitted[architecture] = trained.network
    test = dataset.windows["test"]
    windows = test.gather(torch.tensor([0, 100, 200])).rows[:, :24].numpy().copy()

    with process(tmp_path / "artifacts", CACHE_BYTES=0) as service:
        for architecture, network in fitted.items():
            forecast, attention = eager(network, windows, STEPS)
            model = f"?model={architecture}"

            one = post(service.url, f"/predict{model}", {"window": windows[0].tolist()})
            np.testing.assert_allclose(one["prediction"], forecast[0, 0], rtol=1e-5, atol=1e-5)

            many = post(service.url, f"/predict{model}", {"windows": windows.tolist()})
            np.testing.assert_allclose(many["predictions"], forecast[:, 0], rtol=1e-5, atol=1e-5)

            one = post(service.url, f"/forecast{model}&steps={STEPS}", {"window": windows[1].tolist()})
            np.testing.assert_allclose(one["forecast"], forecast[1], rtol=1e-5, atol=1e-5)
            check_attention(one["attention"], attention[1])

            many = post(service.url, f"/forecast{model}&steps={STEPS}", {"windows": windows.tolist()})
            np.testing.assert_allclose(many["forecasts"], forecast, rtol=1e-5, atol=1e-5)
            check_attention(many["attention"], attention)


def check_attention(found: object, expected: NDArray[np.float32]) -> None:
    if expected.size == 0:
        assert found is None
        return
    assert isinstance(found, dict)
    assert found["steps_per_row"] == HORIZON
    np.testing.assert_allclose(found["weights"], expected, rtol=1e-5, atol=1e-5)


def test_spec_tells_where_the_model_comes_from(tmp_path: Path) -> None:
    """What is served says its data by digest, its split, its recipe and its errors beside the baselines, no path."""
    made, dataset, trained = train(tmp_path, "linear")
    publish(made, dataset, trained, Store(tmp_path / "artifacts"))
    with process(tmp_path / "artifacts") as service:
        found = httpx.get(f"{service.url}/models/linear/versions/1").json()
    spec = found["spec"]
    assert found["state"] == "ready"
    assert spec["training"]["data"][0]["file"] == "weather-jfk.csv"
    assert spec["training"]["train"]["end"] == spec["training"]["validation"]["start"]
    assert set(spec["metrics"]["baselines"]) == {"last_value", "seasonal_naive", "linear"}
    assert len(spec["metrics"]["model"]["temp"]["mae"]) == STEPS
    assert str(ROOT) not in json.dumps(spec)


@pytest.fixture(scope="module")
def shipped() -> Iterator[Process]:
    """The service as `make serve` starts it."""
    with process(ROOT / "artifacts") as service:
        yield service


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["weather", "weather-lstm"])
def test_shipped_models_beat_the_naive_forecasts(shipped: Process, name: str, version: int) -> None:
    """On average over 24 steps, in MAE and RMSE, for every target, on windows that they have not seen."""
    found = httpx.get(f"{shipped.url}/models/{name}/versions/{version}").json()
    metrics = found["spec"]["metrics"]
    assert (found["state"], metrics["steps"]) == ("ready", 24)
    for target, scores in metrics["model"].items():
        for baseline in ("last_value", "seasonal_naive"):
            for error in ("mae", "rmse"):
                assert np.mean(scores[error]) < np.mean(metrics["baselines"][baseline][target][error])


@pytest.mark.parametrize("name", ["weather", "weather-lstm"])
def test_shipped_intervals_cover_what_they_say_or_say_that_they_do_not(name: str) -> None:
    """Within two points of every level on the test span; else the report is bold about it, and adaptive ones are."""
    folder = Store(ROOT / "artifacts").archive(name, 2).parent
    page = (folder / "report" / "report.md").read_text("utf-8")
    digest = Store(ROOT / "artifacts").index().models[name].versions[2]
    intervals = artifact.load(folder / "model.pt", digest=digest).spec.intervals
    assert intervals is not None
    for level, by_step in intervals.coverage.items():
        off = abs(100 * np.mean(by_step) - float(level)) > 2
        assert off == (f"- {level} %: " in page)
        assert abs(100 * np.mean(intervals.adaptive[level]) - float(level)) < 2


@pytest.mark.parametrize("version", [1, 2])
def test_last_week_gives_tomorrow(shipped: Process, version: int) -> None:
    """The README's request, with the data that ships, is answered with 24 hours and the attention of the pass."""
    body = (ROOT / "data" / "last-week.json").read_bytes()
    answer = httpx.post(
        f"{shipped.url}/forecast?model=weather&version={version}&steps=24",
        content=body,
        headers={"Content-Type": "application/json"},
    ).json()
    assert np.shape(answer["forecast"]) == (24, 3)
    assert np.shape(answer["attention"]["weights"]) == (1, 168)
    # Late December in New York, in °F: wrong units or scaling would be far out.
    temperature = np.array(answer["forecast"])[:, answer["targets"].index("temp")]
    assert ((temperature > 0) & (temperature < 60)).all()


def test_last_week_as_a_table_gives_tomorrow_with_bands(shipped: Process) -> None:
    """Pasted from `data/`, with the hours of New York beside the forecast; JSON says the same."""
    url = f"{shipped.url}/forecast?model=weather&steps=24&level=90"
    body = (ROOT / "data" / "last-week.csv").read_bytes()
    table = httpx.post(url, content=body, headers={"Content-Type": "text/csv", "Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.text)))
    found = httpx.post(url, content=body, headers={"Content-Type": "text/csv"}).json()

    assert [row["time"] for row in rows] == found["timestamps"]
    assert rows[0]["time"] == "2013-12-30T19:00:00-05:00"
    for column, target in enumerate(found["targets"]):
        ends = [found["intervals"]["90"][side] for side in ("lower", "upper")]
        for row, forecast, lower, upper in zip(rows, found["forecast"], *ends, strict=True):
            assert float(row[f"{target}_lower_90"]) == pytest.approx(lower[column])
            assert lower[column] < upper[column]
            assert float(row[target]) == pytest.approx(forecast[column])
