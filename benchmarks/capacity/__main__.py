"""What a forecast costs, and what that comes to: python -m benchmarks.capacity

measure    what requests cost a real service on this machine          -> costs.json
check      a simulated replica beside a real one under the same load
simulate   1 to 1000 replicas from the costs: what they do, what breaks first, what a million forecasts cost
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving.dialects import WrongAnswerError
from benchmarks.serving.load import LoadError
from benchmarks.serving.servers import ServerError

HERE = Path(__file__).parent
Run = Callable[[argparse.Namespace], None]


def main(arguments: list[str] | None = None) -> None:
    """Exit status 1, and a line, where it cannot be done."""
    options = parser().parse_args(arguments)
    run: Run = options.run
    try:
        run(options)
    except (ValueError, OSError, WrongAnswerError, ServerError, LoadError) as error:
        sys.exit(f"benchmarks.capacity: {error}")


def parser() -> argparse.ArgumentParser:
    """Three commands."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True)

    def command(name: str, run: Run, meaning: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=meaning, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        made.set_defaults(run=run)
        made.add_argument("--seed", type=int, default=0)
        return made

    one = command("measure", _measure, "what requests cost a real service")
    one.add_argument("--json", type=Path, default=HERE / "costs.json", help="where the costs are written")
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--seconds", type=float, default=2.0, help="of a cell; whole ones")

    other = command("check", _check, "a simulated replica beside a real one")
    other.add_argument("--costs", type=Path, default=HERE / "costs.json")
    other.add_argument("--mixes", nargs="+", default=["predict=1", "predict=0.9,forecast=0.1"])
    other.add_argument("--seconds", type=float, default=5.0, help="of a rate")
    other.add_argument("--rounds", type=int, default=3, help="of a rate; the least disturbed is shown")

    many = command("simulate", _simulate, "1 to 1000 replicas")
    many.add_argument("--costs", type=Path, default=HERE / "costs.json")
    many.add_argument("--mix", default="predict=0.9,forecast=0.1", help="kinds and their shares")
    many.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 5, 10, 50, 100, 500, 1000])
    many.add_argument("--limit-ms", type=float, default=100.0, help="p99 of a sustainable rate")
    many.add_argument("--balancer", choices=("random", "round_robin", "two_choices"), default="random")
    many.add_argument("--cores", type=int, default=2, help="of a replica")
    many.add_argument("--http-processes", type=int, default=1, help="of a replica")
    many.add_argument("--start-s", type=float, default=30.0, help="until a new replica serves: image, start, models")
    many.add_argument("--deaths", type=float, default=0.0, help="of a replica in an hour, in the burst")
    many.add_argument("--price-per-core-hour", type=float, help="in any currency; without it only core-hours are told")
    many.add_argument("--redis", action="store_true", help="replicas share a cache in which nothing is ever found")
    many.add_argument("--proxy-requests-s", type=float, default=50_000.0, help="an assumption")
    many.add_argument("--store-requests-s", type=float, default=5_500.0, help="an assumption")
    many.add_argument("--series", type=float, default=2e6, help="that a Prometheus takes; an assumption")
    many.add_argument("--pictures", type=Path, help="folder for the pictures")
    many.add_argument(
        "--only", nargs="+", choices=("table", "overload", "load", "burst", "day"), help="parts; all by default"
    )
    return top


# Imported where they are needed: a simulation takes no service, and measuring no SimPy.
def _measure(options: argparse.Namespace) -> None:
    from benchmarks.capacity.measure import measure

    measure(options)


def _check(options: argparse.Namespace) -> None:
    from benchmarks.capacity.check import check

    check(options)


def _simulate(options: argparse.Namespace) -> None:
    from benchmarks.capacity.report import simulate

    simulate(options)


if __name__ == "__main__":
    main()
