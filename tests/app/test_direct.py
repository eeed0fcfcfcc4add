"""The endpoints that run without FastAPI: called with what they ask for, and answered and refused as FastAPI would."""

from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Request, Response

from app.main import Application
from app.routes.direct import Shortcuts, shortcuts
from app.schemas import Options
from models.store import Store
from tests.app.serving import application, running
from tests.builders import publish_tiny

BODY = {"window": [[10.0 + row] for row in range(8)]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target",
    [
        "/predict",
        "/predict?version=1&attention=last",
        "/predict?version=7",
        "/predict?attention=some&deadline_ms=x",
        "/predict?modell=tiny",
        "/predict?model=",
        "/forecast?steps=3",
        "/forecast?steps=%33",
        "/forecast?steps=2&steps=3",
        "/forecast?steps=0",
        "/forecast?steps=",
        "/forecast",
        "/forecast?steps=3&attention=" + "x" * 300,
    ],
)
async def test_fastapi_would_answer_alike(tmp_path: Path, target: str) -> None:
    """The same answer and the same refusal, to the word, whichever way a request takes."""
    publish_tiny(Store(tmp_path))
    app = application(tmp_path)
    async with running(app) as client:
        short = await client.post(target, json=BODY)
    app = application(tmp_path)
    async with running(Application(app.api, Shortcuts())) as client:
        long = await client.post(target, json=BODY)

    assert content(short) == content(long)
    assert short.headers.keys() == long.headers.keys()


def content(response: httpx.Response) -> object:
    """All but the request's id."""
    return response.status_code, {**response.json(), "request_id": None}


async def endpoint_with_more(request: Request, options: Options, more: int) -> Response:
    """It would never be given `more`."""
    return Response(str(more))


async def endpoint_with_less(request: Request) -> Response:
    """It would be given more than it takes."""
    return Response()


@pytest.mark.parametrize("endpoint", [endpoint_with_more, endpoint_with_less])
def test_endpoint_that_asks_for_something_else_stops_the_start(endpoint: object) -> None:
    """What would be documented and never given is found when the application is put together."""
    router = APIRouter()
    router.post("/x")(endpoint)  # type: ignore[type-var]  # some endpoint

    with pytest.raises(TypeError, match="must take a request and options"):
        shortcuts([router], lambda app: app)
