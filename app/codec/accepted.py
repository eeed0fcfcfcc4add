"""What a client would rather have (RFC 9110, 12.4.2: quality values)."""

import re

_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def qualities(header: bytes, *, unreadable: float) -> dict[str, float]:
    """How much each thing that an Accept or Accept-Encoding header names is wanted, 0 to 1; and `unreadable` where that
    cannot be read.
    """
    found: dict[str, float] = {}
    for item in header.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        found[name] = _quality(parameters, unreadable)
    return found


def _quality(parameters: list[str], unreadable: float) -> float:
    """1 where it is not said."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if _QUALITY.fullmatch(value.strip()) else unreadable
    return 1.0
