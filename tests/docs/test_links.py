"""Links between pages lead somewhere: files exist, anchors are headings, and every page of docs can be reached."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.app.serving import ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:")
PICTURE_BYTES = 80_000


def pages(root: Path) -> list[Path]:
    """The repository's Markdown: what ships, not what somebody has lying about."""
    folders = ("docs", "client", "training", "benchmarks", "data", "deploy")
    found = [*root.glob("*.md"), *(page for folder in folders for page in (root / folder).rglob("*.md"))]
    return sorted(page for page in found if not {"node_modules", ".venv"} & set(page.parts))


def without_code(text: str) -> str:
    """A page less its fenced blocks and what stands in backticks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`", text)


def links(page: Path) -> Iterator[str]:
    """Where a page's links go that stay in the repository."""
    for target in _LINK.findall(without_code(page.read_text("utf-8"))):
        if not _ELSEWHERE.match(target):
            yield unquote(target)


def anchors(page: Path) -> set[str]:
    """What its headings are called in addresses, as GitHub does it: small letters, hyphens, no punctuation."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        numbered = (f"{name}-{number}" if number else name for number in range(len(found) + 1))
        found.add(next(candidate for candidate in numbered if candidate not in found))
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def test_links_lead_somewhere() -> None:
    """In every page of the repository."""
    wrong = {str(page.relative_to(ROOT)): found for page in pages(ROOT) if (found := broken(page))}

    assert wrong == {}


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to each page of docs, in at most one step more for decisions."""
    index = ROOT / "docs" / "README.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    decisions = ROOT / "docs" / "decisions" / "README.md"
    reached |= {(decisions.parent / link).resolve() for link in links(decisions)}

    missing = {page for page in (ROOT / "docs").rglob("*.md") if page.resolve() not in reached}

    assert {str(page.relative_to(ROOT)) for page in missing} == {"docs/README.md"}


def test_pictures_are_small_and_shown() -> None:
    """Whoever clones gets all of them."""
    pictures = [picture for picture in (ROOT / "docs" / "pictures").iterdir() if picture.name[0] != "."]
    shown = {(page.parent / link).resolve() for page in pages(ROOT) for link in links(page) if link.endswith(".png")}

    assert [picture.name for picture in pictures if picture.stat().st_size > PICTURE_BYTES] == []
    assert [picture.name for picture in pictures if picture.resolve() not in shown] == []


@pytest.mark.parametrize("link", ["none.md", "there.md#none", "#none", "there.md#in-code"])
def test_a_link_to_nowhere_is_found(tmp_path: Path, link: str) -> None:
    """A missing file, a missing heading here or there, and a heading that is only code."""
    (tmp_path / "there.md").write_text(
        "# What `is` there?\n\n```\n# in code\n```\n\n## [A](b.md), again\n## A, again\n"
    )
    (tmp_path / "page.md").write_text(
        f"# Page\n[a]({link}) [b](there.md#what-is-there) [c](#page) [d](https://example.org/x) "
        "[e](there.md#a-again) [f](there.md#a-again-1) `[g](none.md)`\n"
    )

    assert broken(tmp_path / "page.md") == [link]
