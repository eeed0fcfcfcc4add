"""The service under faults, under overload and through restarts, with a client that knows every right answer.

    python -m benchmarks.soak --minutes 60                         mixed load, faults at random
    python -m benchmarks.soak faults --repeat 5                    each by itself: the table in docs/reliability.md
    python -m benchmarks.soak overload --minutes 5 --factor 5      more than it can do
    python -m benchmarks.soak rolling                              two replicas behind nginx, restarted in turn
    python -m benchmarks.soak versions                             versions that change under full load

Ends with status 1 where an answer was wrong, late, lost, or did not come.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak import each, overload, rolling, soak, versions

Run = Callable[[argparse.Namespace, Path], int]


def main() -> None:
    """The command line."""
    given = sys.argv[1:]
    # The soak itself needs no name.
    options = parser().parse_args(given if given[:1] and not given[0].startswith("--") else ["soak", *given])
    run: Run = options.run
    # As with Ctrl-C, no service is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        sys.exit(run(options, Path(folder)))


def parser() -> argparse.ArgumentParser:
    """Four commands."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True)

    def command(name: str, run: Run, meaning: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=meaning, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        made.set_defaults(run=run)
        made.add_argument("--json", type=Path, help="file for the figures")
        return made

    long = command("soak", soak.soak, "mixed load, faults at random (the default)")
    long.add_argument("--minutes", type=float, default=60)
    long.add_argument("--seed", type=int, default=0)
    long.add_argument("--rate", type=float, default=100, help="requests a second")
    long.add_argument("--connections", type=int, default=48)
    long.add_argument("--between", type=float, nargs=2, default=(10, 40), help="seconds from fault to fault, beside it")
    long.add_argument("--csv", type=Path, default=Path("soak.csv"), help="memory, files and threads, every 5 s")
    long.add_argument("--versions", action="store_true", help="publish, load, unload and re-alias versions meanwhile")

    table = command("faults", each.measure, "each fault by itself, several times")
    table.add_argument("--repeat", type=int, default=5)
    table.add_argument("--rate", type=float, default=100)
    table.add_argument("--only", nargs="+", choices=each.NAMES, metavar="FAULT", help=", ".join(each.NAMES))

    much = command("overload", overload.overload, "more than it can do")
    much.add_argument("--minutes", type=float, default=5)
    much.add_argument("--factor", type=float, default=5)
    much.add_argument("--steps", type=int, default=200, help="of each forecast: what makes it dear")
    much.add_argument("--http-processes", type=int, default=1)
    much.add_argument("--connections", type=int, default=64, help="of the closed loop")
    much.add_argument("--open-connections", type=int, default=2000)
    much.add_argument("--deadline-ms", type=int, default=5000)
    much.add_argument("--apart", action="store_true", help="the engine on a core of its own, all others on the others")

    turns = command("rolling", rolling.rolling, "two replicas behind nginx, restarted in turn")
    turns.add_argument("--rounds", type=int, default=3)
    turns.add_argument("--rate", type=float, default=100)
    turns.add_argument("--grace-s", type=float, default=2)

    live = command("versions", versions.versions, "versions published, promoted, rolled back, unloaded under full load")
    live.add_argument("--rounds", type=int, default=5)
    live.add_argument("--seconds", type=int, default=10, help="of each half of a round")
    live.add_argument("--connections", type=int, default=32)
    live.add_argument("--pause-s", type=float, default=1.5, help="between changes; an unloaded version lingers for 1 s")
    live.add_argument("--http-processes", type=int, default=1)
    return top


if __name__ == "__main__":
    main()
