"""Reads the Dockerfile, as far as ours goes, and says what of a folder is sent to be built.

for stage in stages(Path("Dockerfile").read_text()): ...
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


class DockerfileError(Exception):
    """Something that is not understood here, with its line."""


@dataclass(frozen=True)
class Instruction:
    """One of them, with its line's number."""

    line: int
    name: str
    rest: str

    @property
    def arguments(self) -> list[str]:
        """The words after the name, or the list where it is one."""
        return list(json.loads(self.rest)) if self.rest.startswith("[") else shlex.split(self.rest)


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Those of a name, in order."""
        return [one for one in self.instructions if one.name == name]

    def environment(self) -> dict[str, str]:
        """What ENV says, all together."""
        return dict(word.split("=", 1) for one in self.all("ENV") for word in one.arguments)


def instructions(text: str) -> Iterator[Instruction]:
    """All of them; a line that ends with a backslash goes on in the next one that is no comment."""
    begun, whole = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not whole and not line.strip()):
            continue
        begun = begun if whole else number
        whole += line.rstrip()
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        name, _, rest = whole.strip().partition(" ")
        if "<<" in rest:
            raise DockerfileError(f"line {begun}: here-documents are not understood")
        yield Instruction(begun, name.upper(), rest.strip())
        whole = ""


def stages(text: str, **given: str) -> list[Stage]:
    """All stages; `given` are build arguments for what stands in FROM."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for one in instructions(text):
        if one.name == "ARG" and not found:
            name, _, default = one.rest.partition("=")
            arguments[name] = given.get(name, default)
        elif one.name == "FROM":
            base, *named = one.rest.split()
            base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
            found.append(Stage(base, named[1] if named else str(len(found))))
        elif not found:
            raise DockerfileError(f"line {one.line}: {one.name} before FROM")
        else:
            found[-1].instructions.append(one)
    return found


class Ignored:
    """A .dockerignore: the last pattern that fits a path, or a folder that it is in, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(_regex(pattern.removeprefix("!")), pattern.startswith("!")) for pattern in patterns]

    def __call__(self, path: str) -> bool:
        """Whether a path below the folder that is sent, with slashes, is left out."""
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        out = False
        for regex, again in self._rules:
            if any(regex.fullmatch(folder) for folder in above):
                out = not again
        return out


def _regex(pattern: str) -> re.Pattern[str]:
    found = ""
    for part in re.split(r"(\*\*/|\*|\?)", pattern.strip("/")):
        found += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(found)


def sent(root: Path, source: str, ignored: Ignored) -> list[Path]:
    """The files of a folder that COPY of `source` takes."""
    path = root / source
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    return [file for file in files if not ignored(file.relative_to(root).as_posix())]
