"""The pages of docs/reference are what the code says now."""

from pathlib import Path

import pytest

from app.access.needs import NEEDS
from app.settings import Settings
from docs.generate import FOLDER, PAGES
from training import commands


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make docs` writes it anew."""
    for variable in Settings.model_fields:
        monkeypatch.delenv(f"FORETELL_{variable.upper()}", raising=False)

    assert (FOLDER / name).read_text("utf-8") == PAGES[name](), "make docs"


def test_no_page_is_of_something_else() -> None:
    """What nobody writes any more is gone."""
    assert {file.name for file in FOLDER.iterdir()} == {*PAGES}


def test_everything_is_there() -> None:
    """Every setting, every endpoint of the table of scopes that is documented, and every command."""
    text = {name: page() for name, page in PAGES.items()}

    assert all(f"| `FORETELL_{name.upper()}` |" in text["settings.md"] for name in Settings.model_fields)
    for (method, path), need in NEEDS.items():
        assert f"| `{method} {path}` | `{need}` |" in text["http.md"] or need == "open" or path == "/v2/"
    for file in Path(commands.__path__[0]).glob("[a-z]*.py"):
        assert f"\n## {file.stem.replace('_', '-')}\n" in text["training.md"]
    assert (
        "| `foretell_requests_total` | counter | `method`, `route`, `status` | Requests answered. |"
        in text["metrics.md"]
    )
    assert "| `foretell_ready` | gauge |" in text["metrics.md"]
