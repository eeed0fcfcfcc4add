"""Which days are holidays where, by the library `holidays`: a country, `US`, or a part of one, `US-NY`."""

import difflib
import warnings
from datetime import date
from functools import cache

import holidays

_EPOCH = date(1970, 1, 1)
_YEARS = range(1970, 2101)
"""What the library can compute, as far as the graph knows of clocks."""


def refuse_unknown(whose: str) -> None:
    """ValueError naming the nearest for a country, or a part of one, that the library does not know."""
    known = holidays.list_supported_countries(include_aliases=True)
    country, dash, part = whose.partition("-")
    if country not in known:
        raise ValueError(f"unknown country {country!r}{_near(country, list(known))} (a code of ISO 3166, such as 'US')")
    if dash and part not in known[country]:
        parts = ", ".join(known[country]) or "none"
        raise ValueError(f"{country} has no part {part!r}{_near(part, known[country])} (there are: {parts})")


@cache
def days_of(whose: str) -> tuple[int, ...]:
    """Its public holidays of the years 1970 to 2100, in days since 1970-01-01."""
    country, _, part = whose.partition("-")
    with warnings.catch_warnings():
        # Some calendars are fixed from year to year, and the library knows fewer days of the others.
        warnings.simplefilter("ignore")
        found = holidays.country_holidays(country, subdiv=part or None, years=_YEARS)
    return tuple(sorted((day - _EPOCH).days for day in found))


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
