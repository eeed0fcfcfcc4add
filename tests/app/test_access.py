"""Keys: who may ask for what, how a key is made, kept and recognised, and what those without one are told."""

import hmac
import json
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from app.access import keyring as keyring_module
from app.access.keyring import Keyring, KeysError, new_key, read_keys
from app.access.needs import NEEDS
from app.routes import ROUTERS
from app.settings import Settings
from models.store import Store
from tests.app.keys import Keys, bearing
from tests.app.serving import ROOT, application, metric, process, running, serving, until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

BODY = {"window": [[10.0 + row] for row in range(8)]}
ADMIN = "an administrator's key"

# What stands for each scope here; what is administered is not there, and the refusal of that comes later.
PREDICT = ("POST", "/predict")
READ = ("GET", "/models")
ADMINISTER = ("PUT", "/models/nothing/aliases/production")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    return root


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """No key yet."""
    return Keys(tmp_path)


async def status(client: httpx.AsyncClient, place: tuple[str, str], key: str | None = None) -> int:
    """What comes of asking with a key, or without."""
    headers = {} if key is None else bearing(key)
    return (await client.request(*place, json=BODY, headers=headers)).status_code


def unserved(app_status: int) -> bool:
    """Whether a request got past the gate to what is not there."""
    return app_status in (404, 405, 409, 422)


# The table


def test_every_route_is_listed(store: Path) -> None:
    """Whoever adds an endpoint says what it takes; one that nobody listed would be for administrators alone."""
    own = [route for router in ROUTERS for route in router.routes]
    pages = [route for route in application(store).api.routes if hasattr(route, "path")]
    listed = {(method, path.removesuffix("/{path:path}")) for method, path in NEEDS}

    for route in own + pages:
        path, methods = getattr(route, "path"), getattr(route, "methods", None) or {"GET"}  # noqa: B009  of any kind
        assert {(method, path) for method in methods} <= listed
    assert all(isinstance(route, APIRoute) for route in own)


@pytest.mark.anyio
async def test_what_is_not_listed_takes_an_administrator(store: Path, keys: Keys) -> None:
    """An endpoint that somebody forgot to list is closed, with keys and without."""
    reader = keys.add("reader", "read", "predict")

    async def forgotten() -> None:
        """Whoever wrote it."""

    for settings, expected in (
        ({}, {None: 403}),
        ({"keys_file": keys.file, "admin_key": ADMIN}, {None: 401, reader: 403, ADMIN: 200}),
    ):
        app = application(store, **settings)
        app.api.get("/forgotten/{name}")(forgotten)
        async with running(app) as client:
            for key, wanted in expected.items():
                assert await status(client, ("GET", "/forgotten/it"), key) == wanted


# Without keys, with one for administration, with a file of them


@pytest.mark.anyio
async def test_without_keys_all_but_administration_is_open(store: Path) -> None:
    """Nobody needs a key, a key that somebody sends all the same is as good as none, and the refusal of administration
    says how to turn it on."""
    async with serving(store) as client:
        assert [await status(client, place) for place in (PREDICT, READ)] == [200, 200]
        assert await status(client, PREDICT, "what a proxy wants") == 200
        refusal = await client.request(*ADMINISTER, json={})
        lost = await client.get("/nothing/here")
        wrong = await client.get("/predict")

    assert refusal.status_code == 403
    assert "FORETELL_ADMIN_KEY" in refusal.json()["detail"]
    assert (lost.status_code, wrong.status_code) == (404, 405)


@pytest.mark.anyio
async def test_admin_key_opens_administration_alone(store: Path) -> None:
    """With nothing but it, forecasts stay open to everybody."""
    async with serving(store, admin_key=ADMIN) as client:
        assert [await status(client, place) for place in (PREDICT, READ)] == [200, 200]
        none, wrong = await status(client, ADMINISTER), await status(client, ADMINISTER, ADMIN + "!")
        right = await status(client, ADMINISTER, ADMIN)

    assert (none, wrong) == (401, 401)
    assert unserved(right)


@pytest.mark.anyio
async def test_each_scope_opens_its_own(store: Path, keys: Keys) -> None:
    """A key opens what its scopes name and nothing else; the admin key opens everything; open is what has to be."""
    given = {scope: keys.add(scope + "er", scope) for scope in ("predict", "read", "admin")}
    async with serving(store, keys_file=keys.file, admin_key=ADMIN) as client:
        for place, scope in ((PREDICT, "predict"), (READ, "read"), (ADMINISTER, "admin")):
            found = {name: await status(client, place, key) for name, key in given.items()}
            assert found.pop(scope) not in (401, 403)
            assert set(found.values()) == {403}
            assert await status(client, place, ADMIN) not in (401, 403)
            assert await status(client, place) == 401
            assert await status(client, place, new_key()[0]) == 401
        for path in ("/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json", "/"):
            assert await status(client, ("GET", path)) in (200, 307)
        assert (await client.get("/static-offline-docs/swagger-ui.css")).status_code == 200


@pytest.mark.anyio
async def test_refusals_say_how_a_key_is_given(store: Path, keys: Keys) -> None:
    """401 with the challenge of RFC 6750, as a problem document; a key that is another's is named, never shown."""
    reader = keys.add("grafana", "read")
    async with serving(store, keys_file=keys.file) as client:
        none = await client.post("/predict", json=BODY)
        other = await client.post("/predict", json=BODY, headers={"Authorization": f"Basic {reader}"})
        wrong = await client.post("/predict", json=BODY, headers=bearing(reader))
        counted = (await client.get("/metrics", headers=bearing(reader))).text

    assert (none.status_code, other.status_code, wrong.status_code) == (401, 401, 403)
    assert none.headers["www-authenticate"] == "Bearer"
    assert none.headers["content-type"] == "application/problem+json"
    assert none.json()["type"] == "urn:foretell:problem:unauthorized"
    assert "'grafana'" in wrong.json()["detail"]
    assert reader not in other.text + wrong.text + counted
    # The test's own look at what is loaded is one more.
    assert metric(counted, "foretell_rejected_total", reason="unauthorized") == 3
    assert metric(counted, "foretell_key_requests_total", key="grafana", result="forbidden") == 1
    assert metric(counted, "foretell_key_requests_total", key="grafana", result="admitted") == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: "fk_" + "0" * 12 + key[15:],
        lambda key: key.replace("fk_", ""),
        lambda key: "",
        lambda key: "x" * 8000,
    ],
)
async def test_almost_a_key_is_none(store: Path, keys: Keys, change: Callable[[str], str]) -> None:
    """One character more, less or other, another id, nothing, or far too much: 401."""
    key = keys.add("somebody", "read")
    async with serving(store, keys_file=keys.file) as client:
        assert await status(client, READ, key) == 200
        assert await status(client, READ, change(key)) == 401


def test_a_key_is_compared_in_constant_time(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given, two digests are compared, and by the comparison that tells nothing by its time."""
    key = keys.add("somebody", "read")
    compared = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(keyring_module.hmac, "compare_digest", watched)
    ring = Keyring(Settings(keys_file=keys.file))
    for given in (key, new_key()[0], "nothing like it", ""):
        compared.clear()
        ring.find(given.encode())
        assert compared == [(32, 32), (32, 32)]


@pytest.mark.anyio
async def test_document_says_what_takes_a_key(store: Path, keys: Keys) -> None:
    """With keys each operation that takes one says so, with its refusals; without, administration alone does."""
    async with serving(store) as client:
        without = (await client.get("/openapi.json")).json()
    async with serving(store, keys_file=keys.file) as client:
        guarded = (await client.get("/openapi.json")).json()

    assert guarded["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "security" not in without["paths"]["/predict"]["post"]
    assert guarded["paths"]["/predict"]["post"]["security"] == [{"key": []}]
    assert {"401", "403", "429"} <= guarded["paths"]["/predict"]["post"]["responses"].keys()
    assert "security" not in guarded["paths"]["/health/live"]["get"]


# A client that is still sending


@pytest.fixture(scope="module")
def guarded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of a real service where everybody needs a key and nobody has one."""
    keys = Keys(tmp_path_factory.mktemp("keys"))
    with process(store, HTTP_PROCESSES=0, KEYS_FILE=keys.file) as service:
        yield service.address


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_sends_everything_first_gets_its_401(guarded: tuple[str, int], connection: str) -> None:
    """One that reads no answer before a megabyte is sent gets the 401 whole, and no reset."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: {2**20}\r\n\r\n"
    with socket.create_connection(guarded, timeout=PATIENCE_S) as client:
        client.sendall(head.encode())
        for _ in range(16):
            client.sendall(bytes(2**16))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"urn:foretell:problem:unauthorized" in answer


def test_a_client_that_waits_for_leave_to_send_gets_its_401_instead(guarded: tuple[str, int]) -> None:
    """Its body is never asked for."""
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection(guarded, timeout=PATIENCE_S) as client:
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")


# The file


@pytest.mark.anyio
async def test_a_changed_file_is_followed(store: Path, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """A new key opens soon, one that is gone does not any more, and a broken file changes nothing but the log."""
    first = keys.add("first", "read")
    async with serving(store, keys_file=keys.file) as client:
        second = keys.add("second", "read")
        await until(lambda: is_status(client, second, 200))
        keys.file.write_text('{"keys": [')
        await until(lambda: is_told(caplog, "the keys of before stand"))
        assert [await status(client, READ, key) for key in (first, second)] == [200, 200]
        keys.file.unlink()
        await until(lambda: is_told(caplog, "no such file"))
        assert await status(client, READ, first) == 200
        del keys.entries[0]
        keys.write()
        await until(lambda: is_status(client, first, 401))
        assert await status(client, READ, second) == 200


async def is_status(client: httpx.AsyncClient, key: str, wanted: int) -> bool:
    """Whether a key is known now, or not any more."""
    return await status(client, READ, key) == wanted


async def is_told(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    """Whether the log has it."""
    return text in caplog.text


@pytest.mark.parametrize(
    ("mode", "ours", "told"),
    [(0o600, True, False), (0o640, True, True), (0o604, True, True), (0o640, False, False), (0o644, False, True)],
)
def test_a_file_that_others_may_read_is_told_of(
    keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mode: int, *, ours: bool, told: bool
) -> None:
    """It is read all the same: it has no key in it, only digests. A group that has to is nobody else."""
    keys.file.chmod(mode)
    if not ours:
        monkeypatch.setattr("os.geteuid", lambda: keys.file.stat().st_uid + 1)
    with caplog.at_level(logging.WARNING):
        Keyring(Settings(keys_file=keys.file))

    assert ("open to other users" in caplog.text) == told


def test_a_process_that_starts_with_a_broken_file_knows_nobody(keys: Keys) -> None:
    """Neither does it open the service nor end it; the admin key still opens everything."""
    key = keys.add("somebody", "read")
    keys.file.write_text("nonsense")
    ring = Keyring(Settings(keys_file=keys.file, admin_key=ADMIN))

    assert ring.find(key.encode()) is None
    assert not ring.anonymous.scopes
    assert (found := ring.find(ADMIN.encode())) is not None
    assert found.name == "admin"


ENTRY = {"name": "a", "id": "0" * 12, "hash": "sha256:" + "0" * 64, "scopes": ["read"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([ENTRY | {"hash": "fk_my_secret"}], "keys.0.hash: "),
        ([ENTRY | {"scopes": ["write"]}], "keys.0.scopes.0: "),
        ([ENTRY | {"scopes": []}], "keys.0.scopes: "),
        ([ENTRY | {"quota": "lots"}], "keys.0.quota: a quota is written as"),
        ([ENTRY | {"name": "admin"}], "keys.0.name: this name is taken"),
        ([ENTRY | {"secret": "fk_my_secret"}], "keys.0.secret: "),
        ([ENTRY, ENTRY | {"id": "1" * 12}], "two keys have the same name"),
        ([ENTRY, ENTRY | {"name": "b"}], "two keys have the same id"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(keys: Keys, content: list[object], says: str) -> None:
    """Entry and field, and never what stands there, since that may be a key."""
    keys.file.write_text(json.dumps({"keys": content}))
    with pytest.raises(KeysError) as caught:
        read_keys(keys.file)

    assert str(caught.value).startswith(says)
    assert "my_secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[[keys]]\nname = ", b"\xff\xfe", b"keys = 3", b"key = []"])
def test_what_is_no_list_of_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    """Not TOML, not text, not a list, another name."""
    file = tmp_path / "keys.toml"
    file.write_bytes(content)
    with pytest.raises(KeysError):
        read_keys(file)


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("content", [None, '{"keys": [{"hash": "fk_my_secret"}]}'])
def test_a_wrong_file_stops_the_start(store: Path, keys: Keys, processes: int, content: str | None) -> None:
    """One line that names the setting, and the status 2."""
    keys.file.unlink() if content is None else keys.file.write_text(content)
    with process(store, ready=False, HTTP_PROCESSES=processes, KEYS_FILE=keys.file) as service:
        assert service.wait() == 2

    (line,) = service.output.splitlines()
    assert line.startswith(f"foretell: FORETELL_KEYS_FILE={keys.file}: ")
    assert "my_secret" not in line


# The command


def run_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python -m app.keys new ...`."""
    return subprocess.run(
        [sys.executable, "-m", "app.keys", "new", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["keys.toml", "keys.json"])
def test_command_adds_keys_that_open(tmp_path: Path, name: str) -> None:
    """Two keys, made by the command in the same file, are known by name; the file is its owner's alone."""
    file = tmp_path / name
    made = [
        run_command("--name", "grafana", "--scopes", "read", "--file", str(file)),
        run_command(
            "--name", "client", "--scopes", "predict, read", "--quota", "5/minute burst 2", "--file", str(file)
        ),
    ]
    ring = Keyring(Settings(keys_file=file))
    found = [ring.find(done.stdout.strip().encode()) for done in made]

    assert [principal.name for principal in found if principal] == ["grafana", "client"]
    assert found[1] is not None
    assert found[1].quota == (5, 60.0, 2)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(done.stdout.strip() not in file.read_text() + done.stderr for done in made)
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208  names alone


def test_command_shows_what_to_add(tmp_path: Path) -> None:
    """Without a file, the entry that it prints is one."""
    done = run_command("--name", "grafana", "--scopes", "read")
    file = tmp_path / "keys.toml"
    file.write_text(done.stderr[done.stderr.index("[[keys]]") : done.stderr.index("The key")])
    found = Keyring(Settings(keys_file=file)).find(done.stdout.strip().encode())

    assert found is not None
    assert (found.name, found.scopes) == ("grafana", {"read"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--name", "a b", "--scopes", "read"), "--name"),
        (("--name", "admin", "--scopes", "read"), "--name"),
        (("--name", "a", "--scopes", "write"), "--scopes"),
        (("--name", "a", "--scopes", "read", "--quota", "5"), "--quota"),
        (("--name", "taken", "--scopes", "read"), "two keys have the same name"),
    ],
)
def test_command_refuses_what_the_file_could_not_hold(keys: Keys, arguments: tuple[str, ...], says: str) -> None:
    """Its argument is named, no key is shown, and the file stays as it was."""
    keys.add("taken", "read")
    before = keys.file.read_bytes()
    done = run_command(*arguments, "--file", str(keys.file))

    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert keys.file.read_bytes() == before
