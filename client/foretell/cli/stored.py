"""Versions in memory, and who changed what."""

import json
import sys
from typing import Any

import click

from foretell.answers import Version
from foretell.cli.ending import plain
from foretell.cli.options import Service, of_output, of_service
from foretell.cli.writing import form_of, table, write


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--wait", type=click.FloatRange(0, 600), default=30.0, show_default=True, help="Seconds for it to load.")
@of_service()
def load(service: Service, name: str, version: str, wait: float) -> None:
    """Load VERSION of NAME, whatever the policy says, and print its state."""
    with service.client() as client:
        _told(client.load(name, version, wait_s=wait))


@click.command()
@click.argument("name")
@click.argument("version")
@of_service()
def unload(service: Service, name: str, version: str) -> None:
    """Unload VERSION of NAME, until it is loaded again, and print its state."""
    with service.client() as client:
        _told(client.unload(name, version))


def _told(version: Version) -> None:
    said = f"{version.name} {version.version}: {version.state}"
    sys.stdout.write(plain(f"{said} ({version.reason})" if version.reason else said) + "\n")


@click.command()
@click.option("--last", type=click.IntRange(min=1), default=100, show_default=True, help="How many changes.")
@of_output
@of_service()
def audit(service: Service, last: int, output: str | None, as_: str | None) -> None:
    """Print the last changes of the store, the newest first."""
    with service.client() as client:
        changes = client.audit(last)
    if output is not None or as_ is not None:
        nested = form_of(output, as_) == "json"
        rows: list[dict[str, Any]] = [
            {
                "time": one.time,
                "by": one.by,
                "action": one.action,
                "details": one.details if nested else _details(one.details),
            }
            for one in changes
        ]
        write(rows, output, as_)
        return
    cells = [(one.time.isoformat(timespec="seconds"), one.by, one.action, _details(one.details)) for one in changes]
    sys.stdout.write(table(("time", "by", "action", "details"), cells))


def _details(details: dict[str, Any]) -> str:
    return " ".join(f"{name}={said if isinstance(said, str) else json.dumps(said)}" for name, said in details.items())
