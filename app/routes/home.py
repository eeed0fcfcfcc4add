"""GET /: where a person who types the address ends up."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> RedirectResponse:
    """To the OpenAPI page."""
    return RedirectResponse("docs")
