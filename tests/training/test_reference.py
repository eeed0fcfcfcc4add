"""The page of all recipe keys is what the models say."""

from pathlib import Path

import pytest

from models import networks
from training.__main__ import main
from training.recipe.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_in_docs_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m training options > docs/recipes.md` keeps it true."""
    assert main(["options"]) == 0

    assert capsys.readouterr().out == PAGE.read_text("utf-8")


def test_every_table_and_network_is_there_with_its_bounds() -> None:
    """Nested tables, tables of which there may be several, choices, bounds and defaults."""
    text = page()

    for heading in ("## [data.gaps]", "## [[data.features]]", "## [training.augment]", "## [search]"):
        assert heading in text
    assert all(f"### {name}\n" in text for name in networks.names())
    assert '| `scaling` | `standard`, `min_max`, `robust`, `none` | `"standard"` |' in text
    assert "| `train` | number > 0, < 1 | `0.7` |" in text
    assert "| `files` | list | needed |" in text
