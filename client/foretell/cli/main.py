"""The commands."""

import asyncio
import errno
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
from click.shell_completion import get_completion_class

from foretell.answers import Backtest, Forecast, Version
from foretell.cli import bench as loads
from foretell.cli.batching import batch, show_steps
from foretell.cli.ending import (
    BROKEN_PIPE,
    INTERRUPTED,
    NOT_NOW,
    REFUSED,
    USAGE,
    line_of,
    plain,
    status_of,
)
from foretell.cli.options import Service, data_of, of_file, of_intervals, of_model, of_output, of_service
from foretell.cli.stored import audit, load, unload
from foretell.cli.writing import rows_of, table, write
from foretell.clients import Client
from foretell.errors import ForetellError, NotNowError, UnreachableError

_HERE = ("127.0.0.1", "localhost", "::1")
_WAIT_S = 0.25
_CHART_ROWS = 16


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="foretell-client", prog_name="foretell")
def cli() -> None:
    """Ask a Foretell service.

    A key, where the service wants one, comes from the variable FORETELL_KEY or from --key-file.

    Exit status: 0 done; 1 refused; 2 wrong usage or a file that cannot be read; 3 no answer; 4 not now (over a quota,
    overloaded, not ready, too late); 130 interrupted; 141 the reader of a pipe went away.
    """


@cli.command(short_help="Forecast what follows a window.")
@of_file
@click.option("--steps", type=int, required=True, help="Rows to forecast.")
@of_model
@of_intervals
@of_output
@click.option("--stream", "streamed", is_flag=True, help="Print each step as soon as it is computed, as CSV.")
@click.option("--plot", is_flag=True, help="Draw it, on stderr.")
@click.option("--target", "targets", multiple=True, help="Draw this one alone; may be repeated.")
@click.option("--history", type=click.IntRange(min=0), help="Rows of the past to draw; by default twice the steps.")
@click.option("--width", type=int, help="Of the drawing; by default the terminal's.")
@of_service()
def forecast(
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
    streamed: bool,  # noqa: FBT001
    plot: bool,  # noqa: FBT001
    targets: Sequence[str],
    history: int | None,
    width: int | None,
) -> None:
    """Forecast what follows FILE (CSV, JSON or .npy; - is stdin).

    Rows go to stdout or to --output, a row a step.
    """
    if streamed and (plot or output is not None or as_ == "json"):
        raise click.UsageError("--stream writes CSV to stdout, and draws nothing")
    data = data_of(file)
    with service.client() as client:
        asked = partial(
            client.stream if streamed else client.forecast,
            data,
            steps,
            model=model,
            version=version,
            level=level,
            band="path" if band == "path" else None,
            adaptive=adaptive,
            attention="none",
        )
        told = asked()
        if not isinstance(told, Forecast):
            show_steps(told)
            return
        said = client.model(told.model, told.version) if plot else None
    write(rows_of(told.columns()), output, as_)
    sys.stdout.flush()
    if said is not None:
        _draw(told, said, data, targets, steps * 2 if history is None else history, width)


def _draw(told: Forecast, version: Version, data: Any, targets: Sequence[str], history: int, width: int | None) -> None:
    from foretell.cli.picture import history_of, picture_of

    unknown = [name for name in targets if name not in told.targets]
    if unknown:
        raise click.UsageError(f"--target {unknown[0]}: there are {', '.join(told.targets)}")
    first = told[0]
    series = first.series[0] if first.series else None
    past = history_of(data, version, series, history)
    if len(told) > 1:
        click.echo(plain(f"the first of {len(told)} windows{f': {series}' if series else ''}"), err=True)
    wide = width or shutil.get_terminal_size().columns
    chosen = targets or told.targets
    text = picture_of(first, past, chosen, width=wide, height=_CHART_ROWS, colours=sys.stderr.isatty())
    sys.stderr.write(text)


@cli.command()
@click.argument("name", required=False)
@click.option("--version", help="Of NAME: its number, an alias or `latest`.")
@of_service()
def models(service: Service, name: str | None, version: str | None) -> None:
    """List the models, or show what NAME takes and gives."""
    if version is not None and name is None:
        raise click.UsageError("--version goes with a NAME")
    with service.client() as client:
        listed = client.models()
        if name is not None:
            _show(client.model(name, version))
            listed = [model for model in listed if model.name == name]
    rows = [
        (
            model.name,
            one.version,
            one.state,
            " ".join(alias for alias, to in model.aliases.items() if to == one.version),
        )
        for model in listed
        for one in model.versions
    ]
    sys.stdout.write(table(("model", "version", "state", "aliases"), rows))


def _show(version: Version) -> None:
    sys.stdout.write(plain(f"{version.name} {version.version}: {version.state}, {version.digest}") + "\n")
    if version.reason:
        sys.stdout.write(plain(version.reason) + "\n")
    spec = version.spec
    if spec is None:
        return
    levels = ", ".join(f"{level:g}" for level in (spec.get("intervals") or {}).get("levels", [])) or "none"
    clock = f"; times in {spec['timezone']}, needed" if spec["clock"] else ""
    said = (
        f"{spec['window']} rows, one each {spec['frequency']}{clock}; {spec['horizon']} steps a pass; levels {levels}"
    )
    sys.stdout.write(plain(said) + "\n")
    rows = [(one["name"], one["role"], one["unit"]) for one in spec["features"]]
    sys.stdout.write(table(("column", "role", "unit"), rows) + "\n")


@cli.command()
@click.argument("name")
@click.argument("version")
@click.option("--alias", default="production", show_default=True)
@click.option(
    "--split", "splits", multiple=True, metavar="VERSION=PERCENT", help="Another one for some of the clients."
)
@click.option("--shadow", type=int, help="A version that is asked the same and answers nobody.")
@click.option("--wait", type=click.FloatRange(0, 600), default=30.0, show_default=True, help="Seconds for it to load.")
@of_service()
def promote(
    service: Service, name: str, version: str, alias: str, splits: Sequence[str], shadow: int | None, wait: float
) -> None:
    """Let an alias of NAME stand for VERSION."""
    split = dict(_share(text) for text in splits)
    with service.client() as client:
        number = int(version) if version.isdecimal() else version
        _told(client.promote(name, number, alias, split=split or None, shadow=shadow, wait_s=wait))


def _share(text: str) -> tuple[int, float]:
    version, _, percent = text.partition("=")
    try:
        return int(version), float(percent)
    except ValueError:
        raise click.UsageError(f"--split {text!r}: VERSION=PERCENT is needed, such as 3=10") from None


@cli.command()
@click.argument("name")
@click.option("--alias", default="production", show_default=True)
@of_service()
def rollback(service: Service, name: str, alias: str) -> None:
    """Take the last step of an alias of NAME back."""
    with service.client() as client:
        _told(client.rollback(name, alias))


def _told(alias: Any) -> None:
    said = [f"{alias.model} {alias.alias}: version {alias.version}"]
    said += [f"{version} for {percent:g} %" for version, percent in alias.split.items()]
    said += [f"shadow {alias.shadow}"] if alias.shadow is not None else []
    said += [f"answered by {alias.serves or 'none'}"] if alias.serves != alias.version else []
    sys.stdout.write(plain(", ".join(said)) + "\n")


@cli.command(short_help="Score a model on a long series.")
@of_file
@click.option("--steps", type=int, required=True, help="Rows ahead to score.")
@click.option("--stride", type=int, default=1, show_default=True, help="Rows from one window to the next.")
@of_model
@click.option("--level", help="Percents, such as 80,95: score the prediction intervals, too.")
@of_output
@of_service(timeout=600.0)
def backtest(
    service: Service,
    file: str,
    steps: int,
    stride: int,
    model: str | None,
    version: str | None,
    level: str | None,
    output: str | None,
    as_: str | None,
) -> None:
    """Score a model on the long series in FILE (CSV or .npy; - is stdin).

    Prints the mean of all steps for each target; with --output or --format a row for each target and step.
    """
    done: Backtest | None = None
    watched = sys.stderr.isatty()
    with service.client() as client:
        for said in client.backtest(
            data_of(file),
            steps,
            stride=stride,
            level=level,
            model=model,
            version=version,
            silence_s=service.timeout,
        ):
            if isinstance(said, Backtest):
                done = said
            elif watched:
                sys.stderr.write(f"\r{said.done} of {said.windows} windows")
    if watched:
        sys.stderr.write("\r\033[K")
    if done is None:
        raise UnreachableError("the backtest ended without a result")
    if output is not None or as_ is not None:
        write(_by_step(done), output, as_)
        return
    sys.stdout.write(f"{plain(done.model)} {done.version}: {done.windows} windows, {done.skipped} skipped\n")
    header, rows = _means(done)
    sys.stdout.write(table(header, rows))


def _by_step(done: Backtest) -> list[dict[str, Any]]:
    rows = []
    for target in done.targets:
        scores = dict(done.scores[target])
        scores |= {f"{name}_mae": found[target]["mae"] for name, found in done.baselines.items()}
        for level, found in done.intervals.items():
            scores |= {f"{name}_{level}": steps for name, steps in found[target].items()}
        for step in range(done.steps):
            cells = {name: _or_none(steps[step]) for name, steps in scores.items()}
            rows.append({"target": target, "step": step + 1, **cells})
    return rows


def _means(done: Backtest) -> tuple[list[str], list[list[object]]]:
    header = ["target", "mae", "rmse", "bias"]
    header += [f"{name} mae" for name in done.baselines] + [f"coverage {level} %" for level in done.intervals]
    rows: list[list[object]] = []
    for target in done.targets:
        scores = done.scores[target]
        cells = [scores["mae"], scores["rmse"], scores["bias"]]
        cells += [found[target]["mae"] for found in done.baselines.values()]
        cells += [found[target]["coverage"] for found in done.intervals.values()]
        rows.append([target, *map(_mean, cells)])
    return header, rows


def _mean(steps: Any) -> float | None:
    known = [number for number in map(_or_none, steps) if number is not None]
    return sum(known) / len(known) if known else None


def _or_none(number: Any) -> float | None:
    return None if number is None or number != number else float(number)


@cli.command(short_help="Load a service and say what came of it.")
@of_model
@click.option("--steps", type=click.IntRange(min=1), help="Rows to forecast; by default one pass.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
@click.option(
    "--warm-up", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds that do not count."
)
@click.option("--connections", type=click.IntRange(1, 1000), default=8, show_default=True, help="Of a closed loop.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second: an open loop instead.")
@of_service()
def bench(
    service: Service,
    model: str | None,
    version: str | None,
    steps: int | None,
    seconds: float,
    warm_up: float,
    connections: int,
    rate: float | None,
) -> None:
    """Load a service with requests made of the model's example, and say what came of it.

    A closed loop asks again as soon as it has an answer; with --rate requests leave when they are due.
    """
    with service.client() as client:
        found = client.model(_name(client, model), version)
    horizon = int((found.spec or {}).get("horizon", 1))
    plan = loads.Plan(steps or horizon, seconds, warm_up, connections, rate)
    tally = asyncio.run(loads.measured(service.url, service.key, service.timeout, found, plan))
    here = any(name in service.url for name in _HERE)
    sys.stdout.write(loads.report_of(tally, found, plan, here=here))
    if tally.failed.total():
        raise click.exceptions.Exit(REFUSED)
    if not tally.right:
        raise click.exceptions.Exit(NOT_NOW)


def _name(client: Client, model: str | None) -> str:
    names = [one.name for one in client.models()]
    if model is None and len(names) != 1:
        raise click.UsageError(f"--model: one of {', '.join(names) or 'none'}")
    return model or names[0]


@cli.command(short_help="Say whether the service may be asked.")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait until it is.")
@of_service(timeout=5.0)
def ready(service: Service, wait: float) -> None:
    """Whether the service may be asked: status 0, else 4, or 3 where nobody answers."""
    end = time.monotonic() + wait
    with service.client(retries=0) as client:
        while True:
            status, said = _readiness(client)
            if status == 0 or time.monotonic() + _WAIT_S > end:
                break
            time.sleep(_WAIT_S)
    (sys.stdout if status == 0 else sys.stderr).write(f"{said}\n")
    raise click.exceptions.Exit(status)


def _readiness(client: Client) -> tuple[int, str]:
    try:
        return (0, "ready") if client.ready() else (NOT_NOW, "foretell: not ready")
    except (UnreachableError, NotNowError) as error:  # a proxy may be up before the service
        return status_of(error), f"foretell: {line_of(error)}"


@cli.command(short_help="Print what makes a shell complete this.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete this command.

    bash: eval "$(foretell completion bash)"
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"{shell} is not known here")
    sys.stdout.write(made(cli, {}, "foretell", "_FORETELL_COMPLETE").source() + "\n")


for command in (batch, load, unload, audit):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status; nothing but a line on stderr where something went wrong."""
    stdout = sys.stdout
    try:
        status = cli.main(arguments, prog_name="foretell", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return USAGE
    except click.ClickException as error:
        where = f" ({error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _said(f"{error.format_message()}{where}", USAGE)
    except click.Abort:
        return INTERRUPTED
    except ForetellError as error:
        return _said(line_of(error), status_of(error))
    except SystemExit:
        if sys.stdout is not stdout:
            return _unread()  # click puts another in its place where the pipe is broken
        raise
    except OSError as error:
        return _unread() if error.errno == errno.EPIPE else _said(f"stdout: {error.strerror or error}", USAGE)
    return status if isinstance(status, int) else 0


def _unread() -> int:
    # Python flushes once more at its end, which must find nobody to complain to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _said(message: str, status: int) -> int:
    sys.stderr.write(f"foretell: {plain(message)}\n")
    return status
