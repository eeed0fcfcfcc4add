"""look for better values of a recipe, as its [search] section says, and write the best recipe out"""

import argparse
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

from training.commands import say, show, takes_recipe

if TYPE_CHECKING:
    from training.recipe import Recipe
    from training.searching.findings import Findings

_LOOK_S = 0.5
_INTERRUPTED = 130


def arguments(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    parser.add_argument("--trials", type=_count, help="of the whole study, in place of the recipe's search.trials")
    parser.add_argument("--timeout", type=_count, metavar="S", help="begin no trial after so many seconds")
    parser.add_argument("--jobs", type=_count, default=1, help="processes on this machine (default: 1)")
    parser.add_argument(
        "--storage",
        help="where the study is kept: a file (default: NAME.study.journal), redis://… or a database's URL",
    )
    parser.add_argument("--study", help="its name there (default: the recipe's name)")
    parser.add_argument("--output", type=Path, help="where the best recipe is written (default: NAME.best.toml)")


def run(given: argparse.Namespace, console: Console) -> None:
    from training.recipe import load
    from training.searching.findings import Findings
    from training.searching.search import join, options, slots
    from training.searching.study import shown

    recipe = _overridden(load(given.recipe), given)
    search = options(recipe)
    place, name = given.storage or f"{recipe.name}.study.journal", given.study or recipe.name
    wanted, _ = slots(search)
    findings = Findings(join(recipe, search, place, name), wanted)
    say(console, f"study {name!r} in {shown(place)}: {findings.done()} of {wanted} trials done")
    stopped = False
    # So that whoever ends the process, such as a cluster, leaves a study as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with console.status("reading the data", spinner="line") as status:
            follow = _follower(findings, console, status)
            if given.jobs == 1:
                _alone(recipe, findings, follow)
            else:
                _together(recipe, place, name, given.jobs, follow)
    except KeyboardInterrupt:
        stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
    _conclude(given, recipe, findings, console)
    if stopped:
        say(console, "stopped; the same command goes on from here")
        raise SystemExit(_INTERRUPTED)


def _overridden(recipe: "Recipe", given: argparse.Namespace) -> "Recipe":
    said = {"trials": given.trials, "timeout_s": given.timeout}
    changed = {key: value for key, value in said.items() if value is not None}
    search = recipe.search and recipe.search.model_copy(update=changed)
    return recipe.model_copy(update={"search": search})


def _follower(findings: "Findings", console: Console, status: Status) -> Callable[[], None]:
    def follow() -> None:
        for line in findings.news():
            say(console, line)
        status.update(findings.status())

    return follow


def _alone(recipe: "Recipe", findings: "Findings", follow: Callable[[], None]) -> None:
    from training.searching.search import options, slots
    from training.searching.study import Slots
    from training.searching.worker import Worker

    search = options(recipe)
    worker = Worker(recipe, search, Slots(findings.study, *slots(search)), follow)
    # Files that cannot be read are better known now than as the reason why each trial fails.
    worker.dataset(recipe)
    end = time.monotonic() + (search.timeout_s or math.inf)
    worker.work(lambda: time.monotonic() > end)


def _together(recipe: "Recipe", place: str, name: str, jobs: int, follow: Callable[[], None]) -> None:
    from training.data.dataset import prepare
    from training.errors import TrainingError
    from training.searching.search import options
    from training.searching.worker import Crew

    prepare(recipe)
    with Crew(recipe, place, name, jobs, options(recipe).timeout_s or math.inf).at_work() as workers:
        while any(worker.is_alive() for worker in workers):
            follow()
            time.sleep(_LOOK_S)
        follow()
        codes = [worker.exitcode for worker in workers]
    if all(codes):
        raise TrainingError(f"every process ended early, with exit codes {', '.join(map(str, codes))}")


def _conclude(given: argparse.Namespace, recipe: "Recipe", findings: "Findings", console: Console) -> None:
    from training.errors import TrainingError
    from training.recipe.rewrite import with_values
    from training.searching.findings import tried
    from training.searching.search import values_of

    best = findings.best()
    if best is None:
        if reasons := findings.reasons():
            raise TrainingError(f"no trial came to an end; the last failed with: {reasons[-1]}")
        return
    if shares := findings.importances():
        show(console, [["parameter", "importance"], *shares])
    values = values_of(recipe, best)
    text = with_values(given.recipe.read_text("utf-8"), values, recipe.having(values))
    output = given.output or Path(f"{recipe.name}.best.toml")
    error = f"trial {best.number}, error {best.value:.6g}"
    output.write_text(f"# Found by `python -m training tune`: {error}.\n{text}", "utf-8")
    say(console, f"{findings.done()} of {findings.wanted} trials done; the best is {error}: {tried(best.params)}")
    say(console, f"python -m training train {output}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
