"""The playground's files and the reports of versions: what they are answered as, and that nothing else is."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from models.store import REPORT, Store
from tests.app.keys import Keys, bearing
from tests.app.serving import ROOT, serving
from tests.builders import publish_tiny

FILES = {
    "report.md": b"# tiny, version 1\n",
    "errors.png": b"\x89PNG\r\n",
    "metrics.json": b"{}",
    "series.csv": b"series\n",
}
KINDS = {"md": "text/markdown", "png": "image/png", "json": "application/json", "csv": "text/csv"}
REPORT_OF = "/models/tiny/versions/1/report"
ELSEWHERE = [
    "../model.pt",
    "..",
    ".",
    "",
    "../../../index.json",
    "/etc/passwd",
    "report.md/../../model.pt",
    "report.md\0",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 with a report, and beside its files what is not to be had; version 2 without one."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    publish_tiny(Store(root), seed=1)
    folder = root / "tiny" / "1" / REPORT
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "folder.md").mkdir()
    (folder / "link.md").symlink_to(root / "index.json")
    with (folder / "large.csv").open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    return root


@pytest.fixture(scope="module")
async def client(store: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A service with these."""
    async with serving(store) as client:
        yield client


def spelt(name: str) -> str:
    """A name in a path that no client takes for a way: with every byte in hexadecimal digits."""
    return "".join(f"%{byte:02x}" for byte in name.encode())


# The page


@pytest.mark.anyio
async def test_the_page_may_do_nothing_but_what_it_came_with(client: httpx.AsyncClient) -> None:
    """No script and no style is in it, none from elsewhere may run, text cannot become HTML, and nobody frames it."""
    answer = await client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert (policy["connect-src"], policy["img-src"]) == ("'self'", "'self' data:")
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=|javascript:|https?://", answer.text)


@pytest.mark.anyio
async def test_every_file_of_the_page_is_there(client: httpx.AsyncClient) -> None:
    """Whatever page, modules and styles name is served, as what it is; and no file is served that nothing names."""
    waiting, found = {""}, {}
    while waiting:
        name = waiting.pop()
        answer = await client.get(f"/{name}")
        assert answer.status_code == 200, name
        found[name] = answer.headers["content-type"]
        if not name.endswith("uplot.js"):
            named = re.findall(r'(?:src|href)="(playground/[\w.]+)"|from "\./([\w.]+)"', answer.text)
            waiting |= {page or f"playground/{module}" for page, module in named} - found.keys()

    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    for name, kind in found.items():
        assert kind == kinds.get(Path(name).suffix, "text/html; charset=utf-8"), name
    files = {path.name for path in (ROOT / "app" / "pages").rglob("*.*")}
    assert {Path(name).name for name in found} == files - {"index.html"} | {""}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/playground/main.js", REPORT_OF, f"{REPORT_OF}/errors.png"])
async def test_what_a_browser_has_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    """It asks each time, and is told by the tag that nothing has changed."""
    answer = await client.get(path)
    tag = answer.headers["etag"]
    assert answer.headers["cache-control"].endswith("no-cache")

    for given in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await client.get(path, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, answer.content)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["nothing.js", "LICENSE", "home.py", "../home.py", "..", "vendor/uplot/uplot.js", "main.js\0"]
)
async def test_there_are_no_other_files(client: httpx.AsyncClient, name: str) -> None:
    """Neither beside them nor above."""
    answer = await client.get(f"/playground/{spelt(name)}")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


# Reports


@pytest.mark.anyio
async def test_a_report_is_its_files_and_nothing_that_runs(client: httpx.AsyncClient) -> None:
    """Each is given as what it is, to be shown and not run, and by an alias too."""
    for name, content in FILES.items():
        answer = await client.get(f"{REPORT_OF}/{name}")
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"].partition(";")[0] == KINDS[name.partition(".")[2]]
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["cache-control"] == "private, no-cache"
    assert (await client.get(REPORT_OF)).content == FILES["report.md"]
    head = await client.head(f"{REPORT_OF}/errors.png")
    assert (head.status_code, head.headers["content-type"]) == (200, "image/png")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", [*ELSEWHERE, "page.html", "drawing.svg", "folder.md", "link.md", "large.csv", "none.png"]
)
async def test_a_report_leads_nowhere_else(client: httpx.AsyncClient, name: str) -> None:
    """Not above its folder, not along a link, to no kind of file that a browser would run, and to nothing endless."""
    answer = await client.get(f"{REPORT_OF}/{spelt(name)}")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.anyio
async def test_where_there_is_none_that_is_said(client: httpx.AsyncClient) -> None:
    """Without a report, without such a file, without such a version or model."""
    for path, detail in {
        "/models/tiny/versions/2/report": "tiny version 2 has no report",
        f"{REPORT_OF}/none.png": "tiny version 1 has no file 'none.png' in its report",
        "/models/tiny/versions/9/report": "tiny has no version '9'",
        "/models/none/versions/1/report": "there is no model 'none'",
    }.items():
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (404, detail)


@pytest.mark.anyio
async def test_pages_are_open_and_reports_take_a_key(store: Path, tmp_path: Path) -> None:
    """One that reads; the page must be there before a key can be given."""
    keys = Keys(tmp_path)
    reads, predicts = keys.add("reads", "read"), keys.add("predicts", "predict")
    async with serving(store, keys_file=keys.file) as client:
        statuses = {
            (path, key): (await client.get(path, headers=bearing(key) if key else {})).status_code
            for path in ("/", "/playground/main.js", REPORT_OF, f"{REPORT_OF}/errors.png")
            for key in ("", reads, predicts)
        }
    for path in ("/", "/playground/main.js"):
        assert {statuses[path, key] for key in ("", reads, predicts)} == {200}
    for path in (REPORT_OF, f"{REPORT_OF}/errors.png"):
        assert [statuses[path, key] for key in ("", reads, predicts)] == [401, 200, 403]
