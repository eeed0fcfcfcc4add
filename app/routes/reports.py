"""GET /models/{name}/versions/{version}/report: what training wrote of a version, and its pictures."""

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as Given

from app import published
from app.deps import PartsDep, SettingsDep
from app.errors import NoSuchPageError
from app.forecasts.catalogue import Version
from app.routes.unchanged import is_known
from app.schemas import refusals
from models.store import REPORT, Store

router = APIRouter(tags=["models"])

_KINDS = {".md": "text/markdown", ".png": "image/png", ".json": "application/json", ".csv": "text/csv"}
"""Nothing that a browser would run."""
_LARGEST = 16 * 2**20
_TEXT = "report.md"
_NOT_CHANGED: dict[int | str, dict[str, object]] = {304: {"description": "The client has it already (`If-None-Match`)"}}


def _content(*kinds: str) -> dict[int | str, dict[str, object]]:
    shown = {kind: {"schema": {"type": "string"}} for kind in kinds}
    return {200: {"description": "The file", "content": shown}, **_NOT_CHANGED}


# Not async, both: files are read, which the framework then does in a thread.
@router.get(
    "/models/{name}/versions/{version}/report",
    summary="Show a version's report",
    response_class=Response,
    responses=_content("text/markdown") | refusals(404, 422),
)
def show_report(request: Request, name: str, version: str, parts: PartsDep, settings: SettingsDep) -> Response:
    """What training found: data, scores beside the baselines, coverage. Its pictures are at `report/{file}`."""
    return _answer(request, published.read(settings), parts.catalogue.find(name, version), _TEXT)


@router.get(
    "/models/{name}/versions/{version}/report/{file}",
    summary="Show a file of a version's report",
    response_class=Response,
    responses=_content(*_KINDS.values()) | refusals(404, 422),
)
def show_report_file(
    request: Request,
    name: str,
    version: str,
    file: Annotated[str, Given(description="As the report names it: `errors.png`.")],
    parts: PartsDep,
    settings: SettingsDep,
) -> Response:
    """A picture or a table of it."""
    return _answer(request, published.read(settings), parts.catalogue.find(name, version), file)


def _answer(request: Request, store: Store, version: Version, file: str) -> Response:
    folder = store.archive(version.id.name, version.id.version).parent / REPORT
    content, kind = _read(folder, file, version)
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "ETag": tag,
        # Whoever had a key for it may keep it, nobody on the way.
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


def _read(folder: Path, file: str, version: Version) -> tuple[bytes, str]:
    """A file of a report and its media type: one that a look into the folder finds, whatever the request calls it."""
    try:
        for path in folder.iterdir():
            if path.name == file and path.suffix in _KINDS and path.is_file() and not path.is_symlink():
                with path.open("rb") as opened:
                    content = opened.read(_LARGEST + 1)
                if len(content) <= _LARGEST:
                    return content, _KINDS[path.suffix]
    except OSError:
        pass
    what = "no report" if file == _TEXT else f"no file {file!r} in its report"
    raise NoSuchPageError(f"{version.id.name} version {version.id.version} has {what}")
