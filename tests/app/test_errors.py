"""Errors that cross a process border are the same on the other side."""

import orjson
import pytest

from app import errors
from app.errors import ForetellError, InvalidError, Place, QueueFullError, UnavailableError, unpacked

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ForetellError)]


def made(kind: type[ForetellError]) -> ForetellError:
    if issubclass(kind, InvalidError):
        return kind(Place("window[3]", "too short"), Place("query.steps", "too many"))
    return kind("why", retry_after_s=17) if issubclass(kind, UnavailableError) else kind("why")


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_raised_again_as_it_was(kind: type[ForetellError]) -> None:
    """Its kind, status, words and headers come through as JSON."""
    error = made(kind)
    found = unpacked(orjson.loads(orjson.dumps(error.packed())))
    assert type(found) is kind
    assert (found.detail, str(found), found.headers) == (error.detail, str(error), error.headers)
    assert (found.status, found.slug, found.title) == (kind.status, kind.slug, kind.title)


def test_no_two_kinds_share_a_slug() -> None:
    """By the slug alone the kind is known."""
    assert len({kind.slug for kind in KINDS}) == len(KINDS)


def test_error_of_an_unknown_kind() -> None:
    """One that only another release knows is an internal error with its words."""
    found = unpacked({"slug": "of-tomorrow", "detail": "why", "headers": {}})
    assert type(found) is ForetellError
    assert found.detail == "why"


def test_packed_errors_share_nothing() -> None:
    """Two of a kind do not share their headers."""
    first, second = (unpacked(QueueFullError("full", retry_after_s=s).packed()) for s in (1, 2))
    assert (first.headers, second.headers) == ({"Retry-After": "1"}, {"Retry-After": "2"})
