"""The Dockerfile and docker-compose.yml, held to facts. deploy/containers/prove.py goes through the steps, by hand."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from app.settings import PREFIX, Settings
from deploy.containers.dockerfile import DockerfileError, Ignored, Stage, instructions, sent, stages
from models.store import Store
from tests.app.serving import ROOT, process
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

IGNORED = Ignored((ROOT / ".dockerignore").read_text())
HEALTH = ROOT / "deploy" / "containers" / "health.py"


@pytest.fixture(scope="module")
def built() -> list[Stage]:
    """The Dockerfile."""
    return stages((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml, with what it refers to filled in."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def test_what_is_copied_is_there(built: list[Stage]) -> None:
    """Every source exists, git has it, and .dockerignore lets it through; from another stage, that stage makes it."""
    copied = [(stage, one) for stage in built for one in stage.all("COPY")]
    assert len(copied) >= 7
    for _, one in copied:
        *sources, _ = one.arguments
        if sources[0].startswith("--from="):
            (maker,) = [stage for stage in built if f"--from={stage.name}" == sources[0]]
            assert any(sources[1] in made.rest for made in maker.all("RUN"))
            continue
        for source in sources:
            taken = sent(ROOT, source, IGNORED)
            assert taken, f"line {one.line}: nothing of {source}"
            known = subprocess.run(
                ["git", "check-ignore", *taken], cwd=ROOT, capture_output=True, check=False, text=True
            )
            assert known.stdout == ""


def test_only_what_serves_is_in_the_image(built: list[Stage]) -> None:
    """Neither tests nor training, nor a pip; nothing of the builder but the environment."""
    final = built[-1]
    taken = {path.relative_to(ROOT).as_posix() for one in final.all("COPY") for path in _taken(one.arguments)}
    assert {path.split("/")[0] for path in taken} == {"app", "models", "artifacts", "deploy"}
    assert {path for path in taken if path.startswith("deploy/")} == {"deploy/containers/health.py"}
    assert not {path for path in taken if "__pycache__" in path or "audit" in path or "/." in path}
    assert "artifacts/index.json" in taken
    assert not any("pip" in one.rest for one in final.all("RUN"))
    assert all(not path.startswith(("tests", "training")) for path in taken)


def _taken(arguments: list[str]) -> list[Path]:
    return (
        []
        if arguments[0].startswith("--")
        else [path for source in arguments[:-1] for path in sent(ROOT, source, IGNORED)]
    )


def test_final_image(built: list[Stage]) -> None:
    """It runs as a number that is not root, ends by SIGTERM, and its settings are settings."""
    final = built[-1]
    (user,) = final.all("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.rest)
    last = [one.name for one in final.instructions]
    assert not {"RUN", "COPY"} & set(last[last.index("USER") :])
    assert [one.rest for one in final.all("STOPSIGNAL")] == ["SIGTERM"]
    settings = {name for name in final.environment() if name.startswith(PREFIX)}
    assert settings <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert [one.rest for one in final.all("EXPOSE")] == [final.environment()["FORETELL_PORT"]]
    assert final.all("CMD")[-1].arguments == ["python", "-m", "app"]
    labels = dict(word.split("=", 1) for one in final.all("LABEL") for word in one.arguments)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "revision")} <= set(
        labels
    )
    for stage in built:
        arguments = {word.partition("=")[0] for one in stage.all("ARG") for word in one.arguments}
        for one in stage.instructions:
            used = set(re.findall(r"\$\{?([A-Z_]+)", one.rest))
            assert used <= arguments | stage.environment().keys(), f"line {one.line}"


def health_command(final: Stage) -> list[str]:
    """Of the image, with this Python and this folder."""
    (check,) = final.all("HEALTHCHECK")
    command = json.loads(check.rest.partition("CMD ")[2])
    (copied,) = [one for one in final.all("COPY") if one.arguments[0].endswith("health.py")]
    assert copied.arguments[1] == "./"
    assert command[0] == "python"
    assert command[-1] == HEALTH.name
    return [sys.executable, *command[1:-1], str(HEALTH)]


def test_health_check_of_a_service(built: list[Stage], tmp_path: Path) -> None:
    """The command succeeds while the real service is ready, and says why not before and after."""
    publish_tiny(Store(tmp_path))
    command = health_command(built[-1])
    with process(tmp_path, HTTP_PROCESSES=0) as service:
        port = service.address[1]
        assert _checked(command, port) == (0, "")
    status, reason = _checked(command, port)
    assert status == 1
    assert "refused" in reason


@pytest.mark.parametrize(("answer", "reason"), [(503, "not ready: 503"), (0, "not healthy: ")])
def test_health_check_of_others(built: list[Stage], answer: int, reason: str) -> None:
    """A service that is not ready, and something that speaks no HTTP, are not healthy."""
    with _answering(answer) as port:
        status, said = _checked(health_command(built[-1]), port)
    assert status == 1
    assert said.startswith(reason)


def test_health_check_is_small(built: list[Stage]) -> None:
    """It imports nothing of the service, nor what takes long, unless there is TLS."""
    command = health_command(built[-1])
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]],
        env={"FORETELL_PORT": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "socket" in imported
    assert not imported & {"ssl", "http.client", "urllib.request", "asyncio", "app", "site"}


def _checked(command: list[str], port: int) -> tuple[int, str]:
    done = subprocess.run(
        command,
        env={"FORETELL_PORT": str(port), "PATH": os.defpath},
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def _answering(status: int) -> Iterator[int]:
    """A server with one answer; with 0 it says something that is none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status:
                self.send_response(status)
                self.end_headers()
            else:
                self.wfile.write(b"nonsense\r\n")

        def log_message(self, *_: object) -> None:
            """To nobody."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# docker-compose.yml


def test_compose_is_valid(compose: dict[str, Any]) -> None:
    """By the schema of the specification, which the package check-jsonschema carries."""
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(compose)
    assert [
        service for service, said in compose["services"].items() if "healthcheck" not in said and "build" not in said
    ] == []


def test_compose_is_careful(compose: dict[str, Any]) -> None:
    """Read-only, without rights, bounded, on this machine alone; what is mounted is there, and is not written to."""
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (ROOT / source).is_dir(), volume
                assert rest.endswith(":ro")
            else:
                assert source in compose["volumes"]


def test_compose_fits_the_service(compose: dict[str, Any], built: list[Stage]) -> None:
    """Its settings are settings, its arguments the Dockerfile's; it is given the time that it takes to end."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    arguments = {word.partition("=")[0] for stage in built for one in stage.all("ARG") for word in one.arguments}
    defaults = Settings()
    for name in ("foretell", "foretell-gpu"):
        service = compose["services"][name]
        assert service["environment"].keys() <= known
        assert service["build"]["args"].keys() <= arguments
        assert int(service["stop_grace_period"].removesuffix("s")) > defaults.grace_s + defaults.drain_s
    assert compose["services"]["foretell-gpu"]["profiles"] == ["gpu"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    (discovered,) = job["dns_sd_configs"]
    assert set(discovered["names"]) == {"foretell", "foretell-gpu"} <= compose["services"].keys()
    assert str(discovered["port"]) == built[-1].environment()["FORETELL_PORT"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/foretell.yml").read_text())["providers"][
        0
    ]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]


# What reads the Dockerfile


def test_dockerfile_is_read() -> None:
    """Lines that go on, comments between, arguments in FROM, stages by name or number."""
    text = 'ARG BASE=a:1\n# x\nFROM ${BASE} AS one\nRUN a \\\n# between\n    b\n\nFROM b\nCMD ["x", "y z"]\n'
    one, two = stages(text, BASE="c:2")
    assert (one.base, one.name, two.base, two.name) == ("c:2", "one", "b", "1")
    assert one.instructions[0].arguments == ["a", "b"]
    assert two.instructions[0].arguments == ["x", "y z"]
    assert two.instructions[0].line == 9
    with pytest.raises(DockerfileError, match="line 1"):
        stages("RUN x")
    with pytest.raises(DockerfileError, match="line 2"):
        list(instructions("FROM a\nRUN <<EOF"))


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("app/main.py", False),
        ("app/__pycache__/main.pyc", True),
        ("tests/x.py", True),
        ("artifacts/index.json", False),
        ("artifacts/.lock", True),
        ("artifacts/audit.jsonl", True),
        ("artifacts/weather/2/model.pt", False),
        ("deploy/containers/health.py", False),
        ("deploy/containers/prove.py", True),
        ("keys.toml", True),
    ],
)
def test_what_is_sent(path: str, left_out: bool) -> None:
    """The last pattern that fits decides."""
    assert IGNORED(path) is left_out
