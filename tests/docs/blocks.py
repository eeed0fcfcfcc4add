"""The code blocks of the documentation, and a shell that runs those of a page one after the other.

Commands are fenced blocks of `bash` or `python`, and blocks without a language (fenced, or indented by four spaces)
that begin like a command. A comment in front of a block says what is to be known about it:

    <!-- refused -->             what it asks for is refused by the service, on purpose
    <!-- not run: the reason --> nobody runs it here
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]

_PROGRAMS = ("curl", "export", "make", "pip", "foretell", "python", "python3", "docker", "kubectl", "sudo", "eval")
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S*\s+)*(?:[A-Za-z_]+=|(?:\.venv/bin/)?(?:{'|'.join(_PROGRAMS)})\b)")
_FENCE = re.compile(r"```(\w*)\s*$")
_REMARK = re.compile(r"<!-- (refused|not run: .+) -->$")
_BEGIN = "@@@ block at line "


@dataclass(frozen=True)
class Block:
    """What stands in a page, from the line after its fence on, counted from 1."""

    line: int
    language: str
    text: str
    remark: str

    @property
    def is_run(self) -> bool:
        """Whether it is a command for anybody to follow, here too."""
        return self.is_command and not self.remark.startswith("not run")

    @property
    def is_command(self) -> bool:
        """By its language, or else by how it begins."""
        if self.language:
            return self.language in ("bash", "python")
        lines = (line.strip() for line in self.text.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return bool(_COMMAND.match(first))


def blocks(page: str) -> Iterator[Block]:
    """All of a page, as Markdown has them."""
    lines = page.splitlines()
    remark, at = "", 0
    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            end = lines.index("```", at + 1)
            yield Block(at + 2, fence[1], "\n".join(lines[at + 1 : end]), remark)
            remark, at = "", end
        elif line.startswith("    ") and (not at or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(at + 1, "", "\n".join(part[4:] for part in lines[at:end]).rstrip(), remark)
            remark, at = "", end - 1
        elif line.strip():
            found = _REMARK.match(line)
            remark = found[1] if found else ""
        at += 1


@dataclass(frozen=True)
class Done:
    """What became of a page's blocks."""

    status: int
    outputs: Mapping[int, str]
    """What each wrote, stderr included, by its line; the last one is the one that failed, where one did."""


def run(page: str, address: str, folder: Path, environment: Mapping[str, str], before: str = "") -> Done:
    """Run the commands of a page, and others `before` them, in one shell that begins in `folder`, until one fails.

    They ask the service at `address` (host and port). A refusal of it, which curl takes for an answer, is a failure.
    """
    asked = [block for block in blocks(page) if block.is_run]
    script = ["set -eo pipefail", before, *(_script(block, address) for block in asked)]
    with subprocess.Popen(
        ["/bin/bash", "-c", "\n".join(script)],
        cwd=folder,
        env={**_outside(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as shell:
        try:
            written, _ = shell.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            raise
    parts = re.split(rf"^{_BEGIN}(\d+)\n", written.decode(), flags=re.MULTILINE)
    return Done(shell.returncode, {int(line): text for line, text in zip(parts[1::2], parts[2::2], strict=True)})


def _script(block: Block, address: str) -> str:
    text = re.sub(r"\b(?:127\.0\.0\.1|localhost):8000\b", address, block.text)
    if block.language == "python":
        text = f"python <<'PYTHON'\n{text}\nPYTHON"
    # What fails quietly by itself (-sf) is waited for.
    strict = "" if block.remark == "refused" else 'case "$1" in -sf) ;; *) set -- --fail-with-body "$@" ;; esac; '
    return f'echo; echo {shlex.quote(_BEGIN + str(block.line))}\ncurl() {{ {strict}command curl "$@"; }}\n{text}'


def _outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FORETELL_")}
