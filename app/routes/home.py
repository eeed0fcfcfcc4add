"""GET /: the playground, and the files of which it consists.

They are read once, when the service starts; a request names one of a table and never a file.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from app.errors import NoSuchPageError
from app.routes.unchanged import is_known

router = APIRouter(include_in_schema=False)

_PAGE = "index.html"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file as it is answered."""

    content: bytes
    media_type: str
    tag: str


@router.get("/")
async def home(request: Request) -> Response:
    """The page."""
    return _answer(request, _PAGE)


@router.get("/playground/{file}")
async def asset(request: Request, file: str) -> Response:
    """A script or style of the page."""
    return _answer(request, file)


def _answer(request: Request, file: str) -> Response:
    found = ASSETS.get(file)
    if found is None:
        raise NoSuchPageError(f"there is nothing at {request.url.path}")
    # Asked for again on every visit, since another release has others, and mostly answered by its tag alone.
    headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
    if is_known(request, found.tag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def _assets(folder: Path) -> Mapping[str, Asset]:
    """By name: what pages may be made of; licences stay where they are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _KINDS:
            content = path.read_bytes()
            found[path.name] = Asset(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


ASSETS = _assets(Path(__file__).parents[1] / "pages")
