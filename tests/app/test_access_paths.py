"""No name from a request becomes a path of the file system: whatever is put in place of a model, version or alias."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.access.needs import NEEDS
from models.store import Store
from tests.app.keys import bearing
from tests.app.serving import serving
from tests.builders import publish_tiny

ADMIN = "an administrator's key"
MARK = "foretell-was-here"
"""Part of every name, so that a file that is looked for by it is seen."""
NAMES = [
    f"..%2f..%2f{MARK}",
    f"..%252f..%252f{MARK}",
    f"..%5c..%5c{MARK}",
    f"%2e%2e%2f{MARK}",
    f"%2fetc%2f{MARK}",
    f"{MARK}%00",
    f"tiny%00{MARK}",
    f"{MARK}%0a",
    f"~{MARK}",
    f"%c0%ae%c0%ae%2f{MARK}",
    f"%ef%bc%8e%ef%bc%8e%ef%bc%8f{MARK}",
    f"%e2%80%ae{MARK}",
    f"{MARK}%ff%fe",
    f"{MARK}{'x' * 5000}",
    f".{MARK}",
    f"-{MARK}",
    f"${{{MARK}}}".replace("{", "%7b").replace("}", "%7d"),
]
PLACES = sorted((method, path) for method, path in NEEDS if "{" in path and method != "HEAD")
PARAMETERS = [
    (method, path, parameter)
    for method, path in PLACES
    for parameter in ("{name}", "{version}", "{alias}", "{path:path}")
    if parameter in path
]
RIGHT = {"{name}": "tiny", "{version}": "1", "{alias}": "production", "{path:path}": "swagger-ui.css"}

opened: list[str] = []
is_watching = False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Keep what the process asks the file system for; a hook cannot be taken away again, so it is switched off."""
    if is_watching and (event == "open" or (event.startswith("os.") and "env" not in event)):
        opened.extend(repr(argument) for argument in arguments)


sys.addaudithook(watch)


@pytest.fixture
def watching() -> Iterator[list[str]]:
    """What is asked of the file system."""
    global is_watching  # noqa: PLW0603  the hook's
    opened.clear()
    is_watching = True
    yield opened
    is_watching = False


def test_the_watch_sees(watching: list[str], tmp_path: Path) -> None:
    """Opening, listing and removing are seen."""
    for ask in (open, os.listdir, os.remove):
        opened.clear()
        with pytest.raises(OSError):  # noqa: PT011  it is not there
            ask(tmp_path / MARK)
        assert MARK in "".join(opened)


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path", "parameter"), PARAMETERS)
async def test_names_do_not_reach_the_file_system(
    tmp_path: Path, watching: list[str], method: str, path: str, parameter: str
) -> None:
    """A refusal of the client's, for an administrator too, and no file is looked for by that name."""
    root = tmp_path / "store"
    publish_tiny(Store(root))
    before = sorted(root.rglob("*"))
    path = path.replace(parameter, "@")
    for other, value in RIGHT.items():
        path = path.replace(other, value)
    async with serving(root, admin_key=ADMIN) as client:
        for name in NAMES:
            url = httpx.URL(f"http://test{path.replace('@', name)}")
            opened.clear()
            answer = await client.request(method, url, headers=bearing(ADMIN), json={"version": 1})
            assert 400 <= answer.status_code < 500, (name, answer.text)
            # Assets are looked for, within their own folder.
            if parameter != "{path:path}":
                assert MARK not in "".join(opened), name

    assert sorted(root.rglob("*")) == before


@pytest.mark.anyio
@pytest.mark.parametrize("option", ["model", "model=tiny&version"])
async def test_options_do_not_reach_the_file_system(
    service: httpx.AsyncClient, watching: list[str], option: str
) -> None:
    """Nor does a name among the options."""
    for name in NAMES:
        answer = await service.post(f"/predict?{option}={name}", json={"window": [[10.0 + row] for row in range(8)]})
        assert answer.status_code in (404, 422), name
    assert MARK not in "".join(watching)


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    async with serving(root) as client:
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["..%2fcore.py", "../core.py", "%2e%2e/core.py", "..%5ccore.py", "%2fetc%2fpasswd", "core.py%00"]
)
async def test_assets_are_those_of_their_folder(service: httpx.AsyncClient, path: str) -> None:
    """What lies beside the pages' assets is not served."""
    answer = await service.get(httpx.URL(f"http://test/static-offline-docs/{path}"))

    assert 400 <= answer.status_code < 500
    assert "def " not in answer.text
