"""Alerts, rules and the dashboard, held against a real Prometheus that watches the real service at work.

Prometheus and its promtool are Debian's package `prometheus`; without it what needs them is left out.
"""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from app.access.needs import NEEDS
from tests.app import calibrated
from tests.app.keys import Keys, bearing
from tests.app.serving import ROOT, Process, metric, process, wait_until
from tests.builders import features
from tests.patience import PATIENCE_S

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "foretell.json"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
TESTS = ("alerts_test.yml", "alerts_test_days.yml")
# What a healthy service on a CPU with nothing amiss has no series of, or too short a past for.
MAY_BE_EMPTY = {
    "foretell_out_of_memory_total": "no device is short of memory",
}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="this machine has no Prometheus (Debian package prometheus)",
)


@cache
def read(name: str) -> Any:
    """A file of deploy/prometheus."""
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules(name: str) -> list[dict[str, Any]]:
    """All rules of a file."""
    return [rule for group in read(name)["groups"] for rule in group["rules"]]


def promtool(*arguments: str, text: str | None = None) -> str:
    """What promtool says; it has to be content."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=PROMETHEUS,
        capture_output=True,
        check=False,
        text=True,
        input=text,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# Without the service


@needs_prometheus
def test_files_are_valid() -> None:
    """Prometheus takes the configuration and the rules."""
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "recording.yml", "alerts.yml")


@needs_prometheus
@pytest.mark.parametrize("name", TESTS)
def test_alerts_fire_and_stay_quiet(name: str) -> None:
    """Each in its own case, with the labels and the words that somebody would read."""
    promtool("test", "rules", name)


def test_every_alert_is_tested_both_ways() -> None:
    """One case that fires and one that does not."""
    found: dict[str, set[bool]] = {}
    for case in [case for name in TESTS for case in read(name)["tests"]]:
        for expected in case["alert_rule_test"]:
            found.setdefault(expected["alertname"], set()).add(bool(expected["exp_alerts"]))
    assert found == {rule["alert"]: {True, False} for rule in rules("alerts.yml")}


def test_every_alert_says_what_and_where_to_look() -> None:
    """A summary, the value, and a section in docs/operations.md; the section has no others."""
    sections = re.findall(r"^### (Foretell\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    alerts = rules("alerts.yml")
    assert sorted(sections) == sorted(alert["alert"] for alert in alerts)
    for alert in alerts:
        assert alert["labels"].keys() == {"severity"}
        assert alert["labels"]["severity"] in ("critical", "warning")
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook"}
        assert "{{ $value" in annotations["description"]
        assert annotations["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_dashboard_is_whole() -> None:
    """Panels have a title, a unit and queries, no two the same place; variables that are used are there."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels:
        assert panel["title"]
        assert panel["targets"]
        assert panel["type"] in ("table", "heatmap") or panel["fieldConfig"]["defaults"]["unit"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels)))
    assert used == variables
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    (chosen,) = [one["current"]["value"] for one in dashboard["templating"]["list"] if one["name"] == "datasource"]
    assert source["uid"] == chosen


def test_objectives_are_of_all_forecasts() -> None:
    """Every endpoint that gives forecasts counts, and no other."""
    (pattern,) = {
        found
        for rule in rules("recording.yml")
        if rule["record"].startswith("job:foretell_errors")
        for found in re.findall(r'route=~"([^"]+)"', rule["expr"])
    }
    asked = {path for (method, path), need in NEEDS.items() if method == "POST" and need == "predict"}
    assert {path for path in asked if not path.endswith("/actuals")} == {
        path for _, path in NEEDS if re.fullmatch(pattern, path)
    }


# With it


class Watched:
    """The service after some work, and a Prometheus that has scraped it a few times."""

    def __init__(self, url: str) -> None:
        self.exposition = ""
        """What the service said of itself at the end of the work."""
        self._client = httpx.Client(base_url=f"{url}/api/v1/")

    def get(self, path: str, **parameters: str) -> Any:
        """Prometheus' answer."""
        answer = self._client.get(path, params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Started once: two versions, an alias with a shadow, and a bit of everything asked; all of it with keys."""
    folder = tmp_path_factory.mktemp("prom")
    (feature,) = features(["target"])
    quartiles = feature.statistics.model_copy(update={"quartiles": (9.3, 10.0, 10.7)})
    for seed in (0, 1):
        calibrated.publish(folder / "store", seed=seed, features=[feature.model_copy(update={"statistics": quartiles})])
    keys = Keys(folder)
    deploying, reading = keys.add("deployment", "admin", "predict", "read"), keys.add("prometheus", "read")
    (folder / "foretell.key").write_text(reading)
    with (
        process(folder / "store", HTTP_PROCESSES=1, KEYS_FILE=keys.file) as service,
        prometheus(folder, service) as url,
    ):
        with httpx.Client(base_url=service.url, headers=bearing(deploying), timeout=PATIENCE_S) as client:
            alias = client.put("/models/tiny/aliases/production", json={"version": 1, "shadow": 2})
            assert alias.status_code == 200, alias.text
            found = Watched(url)
            # A rate takes a before and an after.
            for turn in range(3):
                work(client, service.address, turn)
                seen = scrapes(found)
                wait_until(lambda seen=seen: scrapes(found) >= seen + 2)
            found.exposition = client.get("/metrics").text
        # The rules of a second time have what the first ones found.
        for _ in range(2):
            now = datetime.now(UTC)
            wait_until(lambda now=now: evaluated(found) > now)
        yield found
        found.close()


def scrapes(found: Watched) -> int:
    """How often the service has been looked at."""
    series = found.query('count_over_time(up{job="foretell"}[1h])')
    return int(series[0]["value"][1]) if series else 0


def evaluated(found: Watched) -> datetime:
    """When all rules had been evaluated once more."""
    return min(datetime.fromisoformat(group["lastEvaluation"]) for group in found.get("rules")["groups"])


def work(client: httpx.Client, address: tuple[str, int], turn: int) -> None:
    """Forecasts of both kinds, actuals, a shadow, refusals."""
    before = inputs(client)
    windows = calibrated.windows(4, seed=turn)
    for window in windows:
        assert client.post("/predict", json={"window": window}).status_code == 200
    # Beyond all that it was trained on.
    assert client.post("/predict", json={"window": [*windows[0][:-1], [100.0 + turn]]}).status_code == 200
    assert client.post("/forecast?steps=3&level=80", json={"windows": windows}).status_code == 200
    told = {"windows": windows, "actuals": [[[10.0]] * 3] * 4}
    assert client.post("/models/tiny/versions/1/actuals", json=told).status_code == 200
    assert client.post("/predict", json={"window": []}).status_code == 422
    with socket.create_connection(address) as rude:
        rude.sendall(b"nonsense\r\n\r\n")
        rude.recv(64)
    # Inputs are counted once a second.
    wait_until(lambda: inputs(client) > before)


def inputs(client: httpx.Client) -> float:
    """How many values of inputs have been counted."""
    return metric(client.get("/metrics").text, "foretell_input_values_total")


@contextmanager
def prometheus(folder: Path, service: Process) -> Iterator[str]:
    """The committed configuration, but for the address, a key and intervals that suit a test; its address."""
    configuration = read("prometheus.yml") | {"global": {"scrape_interval": "300ms", "evaluation_interval": "300ms"}}
    (job,) = configuration["scrape_configs"]
    address = ":".join(map(str, service.address))
    configuration["scrape_configs"] = [
        {
            "job_name": job["job_name"],
            "metrics_path": job["metrics_path"],
            "static_configs": [{"targets": [address]}],
            "authorization": {"credentials_file": str(folder / "foretell.key")},
        }
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    for name in configuration["rule_files"]:
        text = (PROMETHEUS / name).read_text()
        (folder / name).write_text(re.sub(r"^    interval: \w+$", "    interval: 300ms", text, flags=re.MULTILINE))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(port) or running.poll() is not None)
        assert running.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def answers(port: int) -> bool:
    """Whether Prometheus is ready."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@needs_prometheus
def test_metrics_are_well_formed(watched: Watched) -> None:
    """Prometheus' own check has nothing to say of /metrics."""
    said = promtool("check", "metrics", text=watched.exposition)
    assert said == ""


@needs_prometheus
def test_every_recording_rule_has_data(watched: Watched) -> None:
    """None is of a metric that there is not."""
    names = {rule["record"] for rule in rules("recording.yml")}
    assert {name for name in names if not watched.query(name)} == set()
    states = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {(rule["name"], rule["lastError"]) for rule in states if rule["health"] != "ok"} == set()


@needs_prometheus
def test_alerts_are_of_metrics_that_there_are(watched: Watched) -> None:
    """Every series that an alert names is there with all labels that it names, and none of them fires for nothing."""
    for alert in rules("alerts.yml"):
        for name, labels in selectors(alert["expr"]):
            found = watched.query(name)
            if name in MAY_BE_EMPTY:
                assert f'"{name}"' in (ROOT / "app" / "metrics.py").read_text()
                continue
            assert found, f"{alert['alert']}: there is no {name}"
            missing = labels - {label for series in found for label in series["metric"]}
            assert not missing, f"{alert['alert']}: {name} has no {missing}"
    assert watched.query('ALERTS{alertname=~"Foretell.+",alertstate="firing"}') == []


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The names of series in an expression, each with the labels by which it is picked."""
    for name, _, labels in re.findall(r"\b((?:\w+:)*(?:foretell|process)_\w+(?::\w+)*|up)\b(\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)=", labels))


@needs_prometheus
def test_every_query_of_the_dashboard_has_data(watched: Watched) -> None:
    """With its variables filled in, each panel shows something; so do the variables themselves."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])}
    assert len(queries) >= 50
    empty = {(title, query) for title, query in queries if not watched.query(filled(query))}
    assert {query for _, query in empty if not any(name in query for name in MAY_BE_EMPTY)} == set()
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None
            assert all(series["metric"][asked[2]] for series in watched.query(filled(asked[1])))
            assert watched.query(filled(asked[1]))
    for annotation in dashboard["annotations"]["list"]:
        watched.query(filled(annotation["expr"]))


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Read into the types that Grafana publishes of its dashboards and written again, nothing is lost or another."""
    plugins.register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    written = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))

    # The types lack these: what the editor of a variable shows, and what the Prometheus plugin has annotations say.
    plugged = {"definition", "titleFormat", "textFormat"}
    assert {place for place in lost(dashboard, written) if place.rsplit(".", 1)[-1] not in plugged} == set()


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    """The negative control: a misspelt field is what gets lost."""
    plugins.register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    dashboard["panels"][1]["titel"] = "x"
    written = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))

    assert "panels.1.titel" in lost(dashboard, written)


def lost(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where the second has not what the first has; it may have more."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{place}.{key}".lstrip("."))
            else:
                yield f"{place}.{key}".lstrip(".")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{place}.{number}")
    elif before != after:
        yield place


def filled(query: str) -> str:
    """A query as Grafana sends it where everything is chosen."""
    for name, value in {"$job": "foretell", "$instance": ".*", "$model": ".*", "$version": ".*"}.items():
        query = query.replace(name, value)
    return query.replace("$__rate_interval", "1m")
