"""Whether a client has already what it asks for."""

from fastapi import Request


def is_known(request: Request, tag: str) -> bool:
    """Whether the client says that it has what is so tagged (RFC 9110, If-None-Match)."""
    given = request.headers.get("if-none-match", "")
    return tag in (each.strip().removeprefix("W/") for each in given.split(","))
