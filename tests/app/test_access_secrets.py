"""Secrets appear nowhere: in no log at any level, no answer, metric or document, and not at a start that fails."""

import json
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.forecasts.adaptive_redis import RedisStates
from app.settings import Settings
from models.store import Store
from tests.app.keys import Keys, bearing
from tests.app.serving import ROOT, RedisServer, process, redis_server, serving, until, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

BODY = {"window": [[10.0 + row] for row in range(8)]}
ADMIN = "admin-Zk83hdW0qpLs"
PASSWORD = "redis-Yt5wMx71vb"
WRONG = "wrong-Qs92nfK4ur"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    return root


def secret_of(key: str) -> str:
    """The part of a key that is one."""
    return key.split("_", 2)[2]


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("trouble", ["none", "wrong password", "not there"])
def test_a_running_service_keeps_its_secrets(store: Path, tmp_path: Path, processes: int, trouble: str) -> None:
    """Keys that open and keys that do not, Redis that answers, refuses the password or is not there, everything logged
    that there is: nobody learns any of it from the log, /metrics, the document or an answer."""
    keys = Keys(tmp_path)
    key = keys.add("client", "predict", "read", quota="1000/day")
    said = []
    with redis_server(tmp_path, "--requirepass", WRONG if trouble == "wrong password" else PASSWORD) as redis:
        if trouble == "not there":
            redis.kill()
        url = redis.url.replace("unix://", f"unix://:{PASSWORD}@")
        with process(
            store,
            HTTP_PROCESSES=processes,
            KEYS_FILE=keys.file,
            ADMIN_KEY=ADMIN,
            REDIS_URL=url,
            LOG_LEVEL="debug",
        ) as service:
            with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
                for given in (key, ADMIN, WRONG, f"{key}{WRONG}"):
                    headers = bearing(given)
                    said += [
                        client.post("/predict", json=BODY, headers=headers),
                        client.post("/predict", content=b"{", headers=headers),
                        client.get("/models", headers=headers),
                        client.get("/nothing", headers=headers),
                        client.put("/models/tiny/aliases/production", json={}, headers=headers),
                        client.get("/openapi.json", headers=headers),
                        client.get("/metrics", headers=headers),
                        client.post("/predict", json=BODY, headers={"Authorization": f"Basic {given}"}),
                    ]
            keys.file.write_text(json.dumps({"keys": [{"name": secret_of(key), "hash": key}]}))
            wait_until(lambda: "the keys of before stand" in service.output)
        log = service.output
    told = log + "".join(answer.text + str(answer.headers) for answer in said)

    assert [answer.status_code for answer in said[:3]] == [200, 400, 200]
    assert log
    for secret in (ADMIN, PASSWORD, WRONG, secret_of(key)):
        assert secret not in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", f"http://user:{PASSWORD}@host"),
        ("REDIS_URL", f"redis://user:{PASSWORD}/{PASSWORD}@host:port"),
        ("REDIS_URL", f"user:{PASSWORD}@host"),
        ("REDIS_URL", f"http://host?password={PASSWORD}"),
        ("REDIS_URL", f"redis://host:port/0?password={PASSWORD}"),
        ("ADMIN_KEY", PASSWORD[:15]),
        ("PROT", PASSWORD),
    ],
)
def test_a_start_that_fails_keeps_them_too(store: Path, name: str, value: str) -> None:
    """One line that names the setting."""
    with process(store, ready=False, **{name: value}) as service:
        assert service.wait() == 2

    (line,) = service.output.splitlines()
    assert f"FORETELL_{name}" in line
    assert PASSWORD[:15] not in line


def test_settings_do_not_show_them() -> None:
    """Not even where somebody writes them into a log."""
    settings = Settings(admin_key=SecretStr(ADMIN), redis_url=f"redis://:{PASSWORD}@host")

    assert ADMIN not in repr(settings) + str(settings)
    assert PASSWORD not in repr(settings) + str(settings)


def test_a_start_that_fails_for_another_reason_keeps_them(store: Path) -> None:
    """Settings that contradict each other are told without the others."""
    with process(
        store, ready=False, TLS_KEY_FILE="key.pem", ADMIN_KEY=ADMIN, REDIS_URL=f"redis://:{PASSWORD}@host"
    ) as service:
        assert service.wait() == 2

    assert ADMIN not in service.output
    assert PASSWORD not in service.output


@pytest.mark.anyio
async def test_what_the_documentation_lets_redis_allow_is_enough(tmp_path: Path) -> None:
    """A user of Redis who may do what docs/security.md says, and nothing else, is all that the service takes."""
    lines = (ROOT / "docs" / "security.md").read_text().splitlines()
    (line,) = (line.strip() for line in lines if line.strip().startswith("ACL SETUSER "))
    root = tmp_path / "store"
    publish_tiny(Store(root))
    keys = Keys(tmp_path)
    headers = bearing(keys.add("client", "predict", quota="2/day"))
    with redis_server(tmp_path) as redis:
        redis.client.execute_command(*line.replace(">…", f">{PASSWORD}").split())
        url = redis.url.replace("unix://", f"unix://foretell:{PASSWORD}@")
        async with serving(root, keys_file=keys.file, redis_url=url, redis_timeout_ms=10_000) as client:
            first = await client.post("/predict", json=BODY, headers=headers)
            await until(lambda: is_kept(redis))
            second = await client.post("/predict", json=BODY, headers=headers)
            third = await client.post("/predict", json=BODY, headers=headers)
        states = RedisStates(url, timeout_s=10)
        await states.change("digest", lambda before: (before + b"learnt", None))
        learnt = await states.read("digest", 100)
        await states.close()
        counted = redis.client.exists(f"foretell:1:quota:{keys.entries[0]['id']}")
        denied = redis.client.acl_log()

    assert [answer.headers.get("x-cache") for answer in (first, second)] == ["miss", "hit"]
    assert third.status_code == 429
    assert counted == 1
    assert learnt == b"learnt"
    assert denied == []


async def is_kept(redis: RedisServer) -> bool:
    """Whether an answer is in the cache: it is put there in its own time."""
    return len(redis.client.keys("foretell:1:*")) >= 2
