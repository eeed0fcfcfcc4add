"""Options that many commands have, and the client that they make."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from foretell.clients import URL, Client
from foretell.errors import DataError
from foretell.given import Data, file_of

F = TypeVar("F", bound=Callable[..., Any])

KEY = "FORETELL_KEY"


@dataclass(frozen=True, slots=True)
class Service:
    """Which one, and who asks."""

    url: str
    key: str | None
    timeout: float

    def client(self, retries: int = 3) -> Client:
        """One that is to be closed."""
        return Client(self.url, self.key, timeout=self.timeout, retries=retries)


def of_service(timeout: float = 30.0) -> Callable[[F], F]:
    """Options that say which service is asked; the command gets `service`."""

    def add(command: F) -> F:
        @wraps(command)
        def with_service(url: str, key_file: str | None, timeout: float, **given: Any) -> Any:
            return command(service=Service(url, _key(key_file), timeout), **given)

        for option in (
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                default=timeout,
                show_default=True,
                help="Seconds that an answer (of what comes in lines, each line) may take.",
            ),
            click.option(
                "--key-file",
                type=click.Path(),
                envvar="FORETELL_KEY_FILE",
                help=f"File with the key in its first line; else {KEY} is taken. [env: FORETELL_KEY_FILE]",
            ),
            click.option("--url", default=URL, envvar="FORETELL_URL", help=f"The service. [env: FORETELL_URL; {URL}]"),
        ):
            option(with_service)
        return with_service  # type: ignore[return-value]

    return add


def _key(file: str | None) -> str | None:
    """Never an option: what stands on a command line every process of the machine can read."""
    if file is None:
        return os.environ.get(KEY) or None
    lines = file_of(file).decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].strip():
        raise DataError(f"{file}: no key in its first line")
    return lines[0].strip()


def of_model(command: F) -> F:
    """Which model is asked."""
    command = click.option("--version", help="Number, alias or `latest`.")(command)
    return click.option("--model", help="Its name; needed where several are served.")(command)


def of_file(command: F) -> F:
    """What is sent."""
    return click.argument("file", type=click.Path(allow_dash=True))(command)


def of_intervals(command: F) -> F:
    """Which intervals are asked for."""
    command = click.option("--adaptive", is_flag=True, help="Intervals that have learnt from actuals.")(command)
    command = click.option(
        "--band", type=click.Choice(["step", "path"]), help="Whether a level holds for each step, or for the path."
    )(command)
    return click.option("--level", help="Percents, such as 80,95: prediction intervals.")(command)


def of_output(command: F) -> F:
    """Where rows go, and as what."""
    command = click.option(
        "--format", "as_", type=click.Choice(["csv", "json"]), help="By default as the file's name ends, else csv."
    )(command)
    return click.option("--output", type=click.Path(), help="File to write; by default stdout.")(command)


def data_of(name: str) -> Data:
    """What is in a file, or comes from stdin."""
    return sys.stdin.buffer.read() if name == "-" else Path(name)
