"""What browsers are told: what answers are, what pages may do, and which other pages may ask."""

import base64
import hashlib
import re
import socket
from pathlib import Path

import httpx
import pytest

from app.settings import Settings, SettingsError
from models.store import Store
from tests.app.keys import Keys
from tests.app.serving import process, serving
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

BODY = {"window": [[10.0 + row] for row in range(8)]}
OURS = "https://dashboard.example.org"
OTHERS = ["https://example.org", "http://dashboard.example.org", f"{OURS}.evil.org", "null", f"{OURS}:8443"]
PAGES = ["/docs", "/redoc", "/docs/oauth2-redirect"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    return root


def directives(answer: httpx.Response) -> dict[str, list[str]]:
    """Its Content-Security-Policy."""
    parts = [part.split() for part in answer.headers["content-security-policy"].split(";")]
    return {name: sources for name, *sources in parts}


# Pages and answers


@pytest.mark.anyio
@pytest.mark.parametrize("page", PAGES)
async def test_pages_may_do_only_what_they_came_with(store: Path, page: str) -> None:
    """Every script is one of the service's files or named by its digest, none may be put in, and no other page may
    show this one in a frame."""
    async with serving(store) as client:
        answer = await client.get(page)
    policy = directives(answer)
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]

    assert policy["script-src"] == ["'self'", *(f"'sha256-{digest}'" for digest in digests)]
    assert policy["default-src"] == ["'self'"]
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == ["'none'"]
    assert not re.search(r"<script(?! src=\"/)(?!>)|\son\w+=|javascript:", answer.text)
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"


def test_every_answer_of_the_process_says_what_it_is(store: Path) -> None:
    """`nosniff` is on answers, refusals and pages, once on each, and on what the server itself refuses; what answers a
    POST is not to be kept."""
    with process(store, HTTP_PROCESSES=0, CORS_ORIGINS=OURS) as service, httpx.Client(base_url=service.url) as client:
        preflight = {"Origin": OURS, "Access-Control-Request-Method": "POST"}
        answers = [
            client.get("/models"),
            client.get("/docs"),
            client.get("/nothing"),
            client.get("/static-offline-docs/swagger-ui.css"),
            client.get("/"),
            client.options("/predict", headers=preflight),
        ]
        posted = [client.post("/predict", json=BODY), client.post("/predict", content=b"{"), client.post("/nothing")]
        with socket.create_connection(service.address, timeout=PATIENCE_S) as plain:
            plain.sendall(b"GET\r\n\r\n")
            refused = plain.recv(65536).lower()

    assert refused.startswith(b"http/1.1 400 ")
    assert refused.count(b"x-content-type-options: nosniff") == 1
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 200]
    assert [answer.status_code for answer in posted] == [200, 400, 404]
    for answer in answers + posted:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert {answer.headers["cache-control"] for answer in posted} == {"no-store"}


# Other origins


async def asked_from(client: httpx.AsyncClient, origin: str) -> list[httpx.Response]:
    """A preflight, a forecast, a refusal and a list, as a page of that origin asks for them."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return [
        await client.options("/predict", headers={"Origin": origin, **asked}),
        await client.post("/predict", json=BODY, headers={"Origin": origin}),
        await client.post("/predict", json={}, headers={"Origin": origin}),
        await client.get("/models", headers={"Origin": origin}),
    ]


@pytest.mark.anyio
async def test_no_other_page_may_ask_by_default(store: Path) -> None:
    """No answer allows any origin, and a preflight is refused."""
    async with serving(store) as client:
        answers = await asked_from(client, OURS)

    assert [answer.status_code for answer in answers] == [405, 200, 422, 200]
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


@pytest.mark.anyio
async def test_pages_of_the_origins_that_are_set_may_ask(store: Path) -> None:
    """Exactly those: they see answers and refusals, whichever way a request takes, and nobody else does."""
    async with serving(store, cors_origins=f"{OURS}, http://localhost:3000") as client:
        ours = await asked_from(client, OURS)
        local = await asked_from(client, "http://localhost:3000")
        others = [
            answer
            for origin in (
                "https://example.org",
                "http://dashboard.example.org",
                f"{OURS}.evil.org",
                "null",
                f"{OURS}:8443",
            )
            for answer in await asked_from(client, origin)
        ]
        administers = await client.options(
            "/models/tiny/aliases/production", headers={"Origin": OURS, "Access-Control-Request-Method": "PUT"}
        )

    assert [answer.status_code for answer in ours] == [200, 200, 422, 200]
    assert {answer.headers["access-control-allow-origin"] for answer in ours} == {OURS}
    assert all("Origin" in answer.headers["vary"] for answer in ours)
    assert {answer.headers["access-control-allow-origin"] for answer in local} == {"http://localhost:3000"}
    assert not any("access-control-allow-origin" in answer.headers for answer in others)
    assert not any("access-control-allow-credentials" in answer.headers for answer in ours + others)
    assert administers.status_code == 400


@pytest.mark.anyio
async def test_a_page_sees_that_it_needs_a_key(store: Path, tmp_path: Path) -> None:
    """A preflight carries no key and passes; the 401 after it can be read."""
    async with serving(store, cors_origins=OURS, keys_file=Keys(tmp_path).file) as client:
        preflight, refused, *_ = await asked_from(client, OURS)

    assert (preflight.status_code, refused.status_code) == (200, 401)
    assert refused.headers["access-control-allow-origin"] == OURS


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "null",
        "example.org",
        "https://example.org/",
        "https://*.example.org",
        "https://a b",
        "ftp://a",
        OURS + " " + OURS,
    ],
)
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    """It would silently match nothing, or everything."""
    monkeypatch.setenv("FORETELL_CORS_ORIGINS", origins)
    with pytest.raises(SettingsError, match=r"FORETELL_CORS_ORIGINS=.*must be origins such as"):
        Settings.read()


@pytest.mark.parametrize("origins", ["", "https://example.org", "http://localhost:3000, https://[::1]:8443"])
def test_what_is_an_origin_is_taken(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    """None, one, several."""
    monkeypatch.setenv("FORETELL_CORS_ORIGINS", origins)
    assert Settings.read().cors_origins == origins
