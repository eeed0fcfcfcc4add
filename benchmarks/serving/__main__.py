"""Foretell beside other servers of the same model, in the same run: python -m benchmarks.serving

Every server loads the very same archive, is asked for every window before anything is timed, and has samples of its
answers checked while it is: a wrong one ends the run. Servers take turns in each cell of each round; those that are
not measured are stopped (SIGSTOP). Numbers are medians of the rounds; compare them within one run only.

Peers are installed into environments of their own on the first run. wrk has to be there.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.serving import environments, load, servers
from benchmarks.serving.dialects import WrongAnswerError

PEERS = ("fastapi", "litserve", "mosec", "mlserver", "pytriton")
NAMES = ("predict", "forecast", "mix", "open", "batch", "binary", "resources", "limits", "split")


def main() -> None:
    """Exit status 1 for a wrong answer or a server that does not start."""
    options = parse()
    # Ended from outside, the servers have to end as well: the way out leads through every `finally`.
    signal.signal(signal.SIGTERM, _leave)
    try:
        load.require_wrk()
        for name in options.peers:
            environments.prepare(name, options.environments)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            run(options, Path(folder))
    except (WrongAnswerError, servers.ServerError, environments.InstallError, load.LoadError) as error:
        sys.exit(f"benchmarks.serving: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks.serving: stopped")


def run(options: argparse.Namespace, folder: Path) -> None:
    """All chosen sections, printed one by one as they are done."""
    from benchmarks.serving import bench, sections, tasks, workload

    published = workload.publish(folder / "store")
    (folder / "run").mkdir()
    settings = bench.Options(
        rounds=options.rounds,
        seconds=options.seconds,
        warm_up=options.warm_up,
        connections=options.connections,
        mix_rate=options.mix_rate,
        poisson=options.arrivals == "poisson",
    )
    chosen = bench.Bench(settings, kinds(options), published, tasks.Tasks(published), folder / "run")
    print(f"# Serving\n\n{about(options)}\n")
    raw: dict[str, Any] = {"about": about(options), "sections": {}}
    for name in options.sections:
        result = sections.SECTIONS[name](chosen)
        print(f"## {result.title}\n")
        for part in [*(table.markdown() for table in result.tables), *result.notes]:
            print(f"{part}\n", flush=True)
        raw["sections"][name] = {"title": result.title, "rows": result.rows, "notes": result.notes}
        if options.json:
            # After each section: an hour's work should not hang on the last one.
            options.json.write_text(json.dumps(raw, indent=1))


def kinds(options: argparse.Namespace) -> list[servers.Kind]:
    """The servers that were chosen, Foretell's variants first."""
    ours = [servers.foretell(name, variables, options.checkout) for name, variables in options.foretell]
    peers = servers.peers(options.environments)
    return [*ours, *(peers[name] for name in options.peers)]


def about(options: argparse.Namespace) -> str:
    """What was measured where."""
    peers = ", ".join(environments.versions(name, options.environments) for name in options.peers)
    variants = "; ".join(" ".join([name, *(f"{k}={v}" for k, v in given.items())]) for name, given in options.foretell)
    return (
        f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}; {options.rounds} rounds of "
        f"{options.seconds:g} s. Foretell: {variants or 'left out'}. Peers: {peers or 'none'}."
    )


def processor() -> str:
    """The processor's own name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, help="default: all; none for Foretell alone"
    )
    parser.add_argument("--sections", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of a cell; whole ones for wrk; default: %(default)s"
    )
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each cell; default: %(default)s")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[1, 8, 32, 128], help="of the closed loops; default: 1 8 32 128"
    )
    parser.add_argument("--mix-rate", type=float, default=30.0, help="requests/s of the mix; default: %(default)s")
    parser.add_argument("--arrivals", choices=("constant", "poisson"), default="constant", help="of the open loops")
    parser.add_argument(
        "--foretell",
        type=variant,
        action="append",
        metavar="NAME[:VARIABLE=VALUE,...]",
        help="a variant of Foretell with settings of its own; may be repeated; default: one named foretell",
    )
    parser.add_argument("--no-foretell", action="store_true", help="the peers alone")
    parser.add_argument("--checkout", type=Path, default=servers.ROOT, help="whose `app` to serve; default: this one")
    parser.add_argument("--environments", type=Path, default=environments.DEFAULT, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the raw rows there")
    options = parser.parse_args(arguments)
    if options.no_foretell:
        options.foretell = []
    elif not options.foretell:
        options.foretell = [(servers.FORETELL, {})]
    if not options.foretell and not options.peers:
        parser.error("nothing to measure")
    options.checkout = options.checkout.resolve()
    options.environments = options.environments.expanduser().resolve()
    return options


def variant(text: str) -> tuple[str, dict[str, str]]:
    """`split:FORETELL_HTTP_PROCESSES=1` -> its name and settings."""
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    if not name or not all(key and sign for key, sign, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME[:VARIABLE=VALUE,...]")
    return name, {key: value for key, _, value in pairs}


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
