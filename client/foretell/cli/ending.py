"""How a command ends: its status, and one line on stderr where something went wrong.

0    done
1    the service refuses: the request is wrong, or not allowed, or it failed; a window of a batch has no forecast
2    the command is wrong, or a file cannot be read
3    no answer came, or none of a Foretell service
4    not now: over a quota, overloaded, not ready, too late
130  interrupted
141  nobody reads the output any more
"""

from foretell.errors import DataError, ForetellError, NotNowError, ProblemError, UnreachableError, UnreadableError

REFUSED = 1
USAGE = 2
UNREACHABLE = 3
NOT_NOW = 4
INTERRUPTED = 130
BROKEN_PIPE = 141
_MOST_PLACES = 5


def status_of(error: ForetellError) -> int:
    """The exit status."""
    if isinstance(error, DataError):
        return USAGE
    if isinstance(error, UnreachableError | UnreadableError):
        return UNREACHABLE
    return NOT_NOW if isinstance(error, NotNowError) else REFUSED


def line_of(error: ForetellError) -> str:
    """What is said of it."""
    if not isinstance(error, ProblemError):
        return plain(str(error))
    said = error.detail
    if len(error.places) > _MOST_PLACES:
        shown = [f"{place}: {message}" for place, message in error.places[:_MOST_PLACES]]
        said = f"{'; '.join(shown)}; and {len(error.places) - _MOST_PLACES} more"
    hint = ""
    if error.status == 401:
        hint = "; set FORETELL_KEY, or give --key-file"
    named = f" [request {error.request_id}]" if error.request_id else ""
    return plain(f"{said} ({error.status}{f' {error.slug}' if error.slug else ''}){hint}{named}")


def plain(text: str) -> str:
    """One line, without anything that a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
