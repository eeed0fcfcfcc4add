"""What the documentation tells its reader to type works as it stands there, against the real service."""

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.app.serving import ROOT, Process, process
from tests.docs.blocks import Block, Done, blocks, run

KEY = "correct-horse-battery"
"""As the pages have it."""
TUTORIAL = "docs/tutorial.md"
PAGES = (
    "README.md",
    "docs/requests.md",
    "docs/intervals.md",
    "docs/backtest.md",
    "docs/versions.md",
    "docs/client.md",
    "docs/inference-protocol.md",
)


def of_page(page: str) -> list[Block]:
    return list(blocks((ROOT / page).read_text()))


def clone(folder: Path) -> Path:
    """What a reader has after `git clone` and `make dev`, with a store that may be changed."""
    root = folder / "foretell"
    root.mkdir()
    for name in ("data", "training"):
        (root / name).symlink_to(ROOT / name)
    (root / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "artifacts", root / "artifacts", ignore=shutil.ignore_patterns(".*", "audit.jsonl"))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all pages but the tutorial."""
    return clone(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Process]:
    """The shipped models, as `FORETELL_ADMIN_KEY=... make serve` has them."""
    with process(root / "artifacts", ADMIN_KEY=KEY, ACCESS_LOG="false") as service:
        yield service


with_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl, with which the pages ask")


@with_curl
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work(page: str, service: Process, root: Path) -> None:
    """One after the other, as a reader types them; those that are there to be refused are refused."""
    environment = {
        "HOME": str(root.parent),
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "FORETELL_URL": service.url,
        "FORETELL_KEY": KEY,
    }
    text = (ROOT / page).read_text()

    done = run(text, urlsplit(service.url).netloc, root, environment)
    for alias in ("production", "canary"):
        httpx.delete(f"{service.url}/models/weather/aliases/{alias}", headers={"Authorization": f"Bearer {KEY}"})

    check(page, done)


@with_curl
def test_the_tutorial_works_from_an_empty_folder(tmp_path: Path) -> None:
    """From making the CSV to the rollback, and the service ends when it is told to."""
    root = clone(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        "OMP_NUM_THREADS": "1",
        "FORETELL_PORT": address.rpartition(":")[2],
        "FORETELL_DEVICE": "cpu",
        "FORETELL_GRACE_S": "0",
    }
    # The service starts from the same shell, and refuses variables of the client.
    client = f'foretell() {{ FORETELL_URL=http://{address} command foretell "$@"; }}'

    done = run((ROOT / TUTORIAL).read_text(), address, root, environment, client)

    check(TUTORIAL, done, f"{(tmp_path / 'rides' / 'service.log').read_text()[-3000:]}")
    said = "\n".join(done.outputs.values())
    assert "rides production: version 1, 2 for 10 %\nrides production: version 2\nrides production: version 1" in said
    assert len((tmp_path / "rides" / "tomorrow.csv").read_text().splitlines()) == 1 + 24
    report = tmp_path / "rides" / "artifacts" / "rides" / "1" / "report"
    assert {"report.md", "forecast.png", "errors.png"} <= {file.name for file in report.iterdir()}
    assert "SIGTERM" in (tmp_path / "rides" / "service.log").read_text()


def check(page: str, done: Done, more: str = "") -> None:
    """Every block was run, and said what it should."""
    assert done.outputs, f"{page} has no commands"
    last = max(done.outputs)
    assert done.status == 0, f"{page}:{last} ended with {done.status}:\n{done.outputs[last]}\n{more}"
    for block in of_page(page):
        if block.is_run and block.line in done.outputs:
            said = done.outputs[block.line]
            refused = "urn:foretell:problem" in said or '{"error"' in said
            assert refused == (block.remark == "refused"), f"{page}:{block.line} said:\n{said[:2000]}"


@pytest.mark.parametrize("page", [TUTORIAL, *PAGES])
def test_no_command_is_left_out_unsaid(page: str) -> None:
    """What looks like a command is one, and a remark stands before a command."""
    for block in of_page(page):
        place = f"{page}:{block.line}"
        if not block.language:
            asks = [
                line for line in block.text.splitlines() if line.startswith(("curl ", "foretell ", ".venv/", "python "))
            ]
            assert block.is_command or not asks, f"{place} is not run"
        if block.remark:
            assert block.is_command, f"{place} has a remark and is no command"


def test_blocks_are_told_apart() -> None:
    """Fences, indented blocks, commands and what they answer, and remarks, each with its line."""
    page = """Text:

    # what it does
    KEY=x curl -s http://127.0.0.1:8000/models

    {"models": []}

<!-- refused -->

```bash
curl -s http://127.0.0.1:8000/models/none
```

<!-- not run: it takes an hour -->

    python -m training tune x.toml

- a list
    that goes on

```
name,value
```
"""
    found = [(block.line, block.is_command, block.is_run, block.remark) for block in blocks(page)]

    assert found == [
        (3, True, True, ""),
        (11, True, True, "refused"),
        (16, True, False, "not run: it takes an hour"),
        (22, False, False, ""),
    ]


@with_curl
def test_a_refusal_fails_a_page_unless_it_says_so(service: Process, tmp_path: Path) -> None:
    """curl is content with any answer; the test is not."""
    address = urlsplit(service.url).netloc
    page = "```bash\ncurl -s http://127.0.0.1:8000/models/none\n```\n"

    assert run(page, address, tmp_path, {}).status != 0
    done = run(f"<!-- refused -->\n\n{page}", address, tmp_path, {})

    assert done.status == 0
    assert "urn:foretell:problem" in done.outputs[4]
