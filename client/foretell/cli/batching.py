"""Forecasts that come line by line, to rows as they come."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from foretell.answers import Forecast, Result, Step, Summary
from foretell.cli.ending import REFUSED, line_of, plain
from foretell.cli.options import Service, data_of, of_file, of_intervals, of_model, of_service
from foretell.cli.writing import form_of, rows_of, rows_to
from foretell.lines import Coming


@click.command(short_help="Forecast many windows, or many series.")
@of_file
@click.option("--steps", type=int, required=True, help="Rows to forecast of each.")
@of_model
@of_intervals
@click.option("--output", type=click.Path(), help="File to write; by default stdout.")
@click.option(
    "--format", "as_", type=click.Choice(["csv", "jsonl"]), help="By default as the file's name ends, else csv."
)
@of_service(timeout=600.0)
def batch(
    service: Service,
    file: str,
    steps: int,
    model: str | None,
    version: str | None,
    level: str | None,
    band: str | None,
    adaptive: bool,  # noqa: FBT001  click gives it by name
    output: str | None,
    as_: str | None,
) -> None:
    """Forecast each window of FILE, behind all other requests (CSV of many series, lines of JSON or .npy; - is stdin).

    Rows go to stdout or to --output as they come, a row a window and step. A file has the name NAME.part until it is
    whole. Windows without a forecast are told on stderr, and the status is 1 then.
    """
    if as_ is None and form_of(output, None) == "json":
        raise click.UsageError("--output: rows are written as they come; give a name that ends with .jsonl or .csv")
    with (
        rows_to(output, as_) as rows,
        service.client() as client,
        client.batch(
            data_of(file),
            steps,
            model=model,
            version=version,
            level=level,
            band="path" if band == "path" else None,
            adaptive=adaptive,
            silence_s=service.timeout,
        ) as results,
        _Watched(results.head.windows or 0) as watched,
    ):
        for result in results:
            if result.forecast is not None:
                rows.add(_rows(result, result.forecast))
            elif result.error is not None:
                watched.tell(f"{_name(result)}: {line_of(result.error)}")
            watched.count()
    if (summary := _whole(results)).failed:
        sys.stderr.write(f"foretell: {summary.failed} of {summary.windows} windows have no forecast\n")
        raise click.exceptions.Exit(REFUSED)


def _whole(results: Coming[Result, Summary]) -> Summary:
    if results.summary is None:
        raise RuntimeError("a batch that ended well has a summary")
    return results.summary


def _name(result: Result) -> str:
    return f"window {result.window}" if result.series is None else f"series {result.series!r}"


def _rows(result: Result, forecast: Forecast) -> Iterator[dict[str, Any]]:
    """All of the same columns, whether or not the window had a time."""
    named: dict[str, Any] = {"window": result.window} if result.series is None else {"series": result.series}
    for row in rows_of(forecast.columns()):
        yield {**named, "time": None, **row}


class _Watched:
    """How far it is, on stderr where that is a terminal."""

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._done = 0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def count(self) -> None:
        """One more; a hundred times at most it is shown."""
        self._done += 1
        if self._shown and (self._done == self._windows or self._done % max(1, self._windows // 100) == 0):
            sys.stderr.write(f"\r{self._done} of {self._windows} windows")
            sys.stderr.flush()

    def tell(self, message: str) -> None:
        """A line of its own."""
        self._clear()
        sys.stderr.write(f"foretell: {plain(message)}\n")

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")


def show_steps(steps: Coming[Step, Any]) -> None:
    """CSV to stdout, each row as soon as it is there."""
    with steps, rows_to(None, "csv") as rows:
        for step in steps:
            rows.add(step.rows(steps.head))
