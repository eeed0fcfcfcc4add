"""Forecasts to JSON and CSV, and who gets which."""

import csv
import io
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pytest

from app import codec, schemas
from app.asked import times
from app.forecasts.bands import Intervals
from app.forecasts.predictor import Forecast
from app.routes import answering
from app.ticket import ModelId
from models.intervals import Bounds
from tests.app import calibrated
from tests.app.serving import serving
from tests.app.specs import spec_of

SPEC = spec_of(("target", "past", "target"), timezone="America/New_York", time="when", series="station")
MODEL = ModelId("tiny", 1, "sha256:0")
MARCH = 1_362_895_200_000_000
"""One in the morning of the day on which New York's clocks leap, in epoch microseconds."""


def numbers(*shape: int, start: float = 0.0) -> np.ndarray:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + np.float32(start)) / np.float32(10)


def forecast_of(windows: int = 1, steps: int = 2, **fields: object) -> Forecast:
    """Targets 0.0, 0.1 and so on; nothing asked for besides."""
    said = {"attention": None, "wants_attention": False, "cache": None, "single": windows == 1}
    return Forecast(MODEL, SPEC, numbers(windows, steps, 2), **(said | fields))


def answer(forecast: Forecast) -> dict[str, Any]:
    return orjson.loads(codec.forecast(forecast))


def rows(forecast: Forecast) -> list[list[str]]:
    return list(csv.reader(io.StringIO(codec.table(forecast, "text/csv").decode(), newline="")))


def test_table_of_one_window() -> None:
    """A row a step, the shortest text for each number."""
    assert codec.table(forecast_of(), "text/csv") == b"step,target_0,target_2\r\n1,0.0,0.1\r\n2,0.2,0.3\r\n"


def test_table_tells_the_time_in_the_models_zone() -> None:
    """Under the name that tables give to it."""
    found = rows(forecast_of(last=np.array([MARCH])))

    assert found[0] == ["when", "step", "target_0", "target_2"]
    assert [row[0] for row in found[1:]] == ["2013-03-10T03:00:00-04:00", "2013-03-10T04:00:00-04:00"]


def test_table_of_several_windows() -> None:
    """One after the other, by name where they have names, else by number."""
    named = rows(forecast_of(2, series=["JFK", "L,A"]))
    numbered = rows(forecast_of(2))

    assert named[0] == ["station", "step", "target_0", "target_2"]
    assert [row[:2] for row in named[1:]] == [["JFK", "1"], ["JFK", "2"], ["L,A", "1"], ["L,A", "2"]]
    assert [row[:2] for row in numbered] == [["window", "step"], ["0", "1"], ["0", "2"], ["1", "1"], ["1", "2"]]
    assert [row[2:] for row in named[1:]] == [row[2:] for row in numbered[1:]]


def test_table_with_intervals() -> None:
    """Lower and upper bound of each target and level, behind the forecasts."""
    bounds = {"80": (numbers(1, 2, 2, start=-1), numbers(1, 2, 2, start=1)), "95": (numbers(1, 2, 2), numbers(1, 2, 2))}

    found = rows(forecast_of(intervals=Intervals({level: Bounds(*ends) for level, ends in bounds.items()})))

    assert found[0][3:7] == ["target_0_lower_80", "target_2_lower_80", "target_0_upper_80", "target_2_upper_80"]
    assert found[0][7] == "target_0_lower_95"
    assert found[2] == ["2", "0.2", "0.3", "0.1", "0.2", "0.3", "0.4", "0.2", "0.3", "0.2", "0.3"]


def test_table_comes_back_to_the_last_bit() -> None:
    """What is written is what was forecast."""
    values = np.random.default_rng(0).normal(0, 1e10, (1, 50, 2)).astype(np.float32)
    forecast = forecast_of()
    forecast.forecast = values

    found = np.array([[float(cell) for cell in row[1:]] for row in rows(forecast)[1:]], np.float32)

    np.testing.assert_array_equal(found, values[0])


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("steps", [1, 2])
def test_intervals_have_the_shape_of_the_forecast(windows: int, steps: int) -> None:
    """In every kind of answer, and as the documented models say."""
    low, high = numbers(windows, steps, 2, start=-1), numbers(windows, steps, 2, start=1)
    forecast = forecast_of(
        windows, steps, intervals=Intervals({"80": Bounds(low, high)}, 2, 7), last=np.array([MARCH] * windows)
    )

    several = answer(forecast)
    one = orjson.loads(codec.prediction(forecast))

    assert np.shape(several["intervals"]["80"]["lower"]) == np.shape(
        several["forecast" if windows == 1 else "forecasts"]
    )
    assert np.shape(one["intervals"]["80"]["upper"]) == np.shape(one["prediction" if windows == 1 else "predictions"])
    first = high[0, 0] if windows == 1 else high[:, 0]
    np.testing.assert_array_equal(np.array(one["intervals"]["80"]["upper"], np.float32), first)
    models = (schemas.Prediction, schemas.Forecast) if windows == 1 else (schemas.Predictions, schemas.Forecasts)
    for model, found in zip(models, (one, several), strict=True):
        assert model.model_validate(found, strict=True).model_dump(exclude_unset=True) == found


def test_times_have_the_shape_of_the_forecast() -> None:
    """One of a prediction, a list of a forecast, and one more level for several windows."""
    first, second = "2013-03-10T03:00:00-04:00", "2013-03-10T04:00:00-04:00"
    one, two = forecast_of(last=np.array([MARCH])), forecast_of(2, last=np.array([MARCH, MARCH + 3_600_000_000]))

    assert orjson.loads(codec.prediction(one))["timestamp"] == first
    assert orjson.loads(codec.prediction(two))["timestamps"] == [first, second]
    assert answer(one)["timestamps"] == [first, second]
    assert answer(two)["timestamps"][0] == [first, second]
    assert not {"timestamp", "timestamps"} & answer(forecast_of()).keys()


def test_names_of_series() -> None:
    """Stand in the order of the forecasts, where there are any."""
    assert answer(forecast_of(2, series=["JFK", "LGA"]))["series"] == ["JFK", "LGA"]
    assert "series" not in answer(forecast_of(2))


def test_there_are_no_times_after_the_last_year() -> None:
    """A forecast that goes on beyond what can be written has none."""
    last = 253_402_300_799_000_000 - timedelta(hours=1) // timedelta(microseconds=1)

    assert "timestamps" not in answer(forecast_of(last=np.array([last])))


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        (None, False),
        (b"*/*", False),
        (b"application/json", False),
        (b"text/*", False),
        (b"image/png", False),
        (b"text/csv", True),
        (b"Text/CSV; header=present", True),
        (b"text/csv;q=0.5", True),
        (b"text/csv;q=0", False),
        (b"text/csv, application/json", False),
        (b"text/csv, application/json;q=0.9", True),
        (b"text/csv;q=0.8, application/json;q=0.9", False),
        (b"text/csv, */*;q=0.1", True),
        (b"text/csv, */*", True),
        (b"text/csv;q=0.5, */*", False),
        (b"text/csv;q=0.5, application/*;q=0.6", False),
        (b"text/csv;q=x", True),
        (b"text/csvish", False),
        (b"\xff, text/csv", True),
    ],
)
def test_who_gets_csv(accept: bytes | None, csv: bool) -> None:
    """Whoever names it, and wants neither JSON as much nor anything else more."""
    assert codec.wants_table(accept) == ("text/csv" if csv else None)


def test_windows_that_end_together_share_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer to write than all numbers beside them."""
    made: list[int] = []

    def stamps(last: int, step: timedelta, steps: int, zone: ZoneInfo) -> list[str] | None:
        made.append(last)
        return write(last, step, steps, zone)

    write = times.stamps
    monkeypatch.setattr(times, "stamps", stamps)
    lasts = np.array([MARCH, 0, MARCH])
    found = answer(forecast_of(3, last=lasts))["timestamps"]
    assert sorted(made) == [0, MARCH]
    assert (found[0], found[1][0]) == (found[2], "1969-12-31T20:00:00-05:00")


def test_effort_by_hand() -> None:
    """Of one target more than of another, of tables more than of JSON, of times most of all."""
    bounds: Bounds = (numbers(2, 3, 2), numbers(2, 3, 2))
    said = forecast_of(2, 3, intervals=Intervals({"80": bounds}), attention=numbers(2, 1, 4), last=np.array([1, 2]))
    assert codec.effort(said, None) == 12 * 3 + 8 + 6 * 20
    assert codec.effort(said, "text/csv") == 12 * 3 * 10 + 6 * 20


@pytest.mark.anyio
@pytest.mark.parametrize("beside", [False, True])
async def test_what_is_large_is_made_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """Others are answered meanwhile; what is small does not pay for a thread."""
    calibrated.publish(tmp_path)
    threads: dict[str, bool] = {}

    def watch(name: str) -> None:
        real = getattr(codec, name)

        def watched(*given: object, **named: object) -> object:
            threads[name] = threading.current_thread() is not threading.main_thread()
            return real(*given, **named)

        monkeypatch.setattr(codec, name, watched)

    names = ("forecast", "prediction", "table", "read_followed", "judged", "surprises")
    for name in names:
        watch(name)
    if beside:
        monkeypatch.setattr(answering, "_MOST_EFFORT", 0)
    asked = {"window": calibrated.windows(1)[0]}
    told = asked | {"actual": [[1.0]]}
    async with serving(tmp_path) as client:
        for path, body, accept in (
            ("/forecast?steps=2", asked, "*/*"),
            ("/forecast?steps=2", asked, "text/csv"),
            ("/predict", asked, "*/*"),
            ("/anomalies", told, "*/*"),
            ("/models/tiny/versions/1/actuals", told, "*/*"),
        ):
            assert (await client.post(path, json=body, headers={"accept": accept})).status_code == 200
    assert threads == dict.fromkeys(names, beside)
