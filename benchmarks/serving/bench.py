"""One run: which servers, how long, and the measuring that sections share. Round-robin over servers in every cell."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import load, verify
from benchmarks.serving.dialects import Task
from benchmarks.serving.servers import Kind, Server, running
from benchmarks.serving.tasks import Tasks
from benchmarks.serving.workload import Published

Row = dict[str, Any]
WARM_UP_CONNECTIONS = 32
EVERY = 200


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    warm_up: float
    connections: list[int]
    mix_rate: float
    poisson: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a table: a server and what it is asked."""

    label: str
    server: Server
    task: Task
    every: int = EVERY
    """Every how many answers one is checked; 0 for a server that computes nothing."""

    @property
    def ours(self) -> bool:
        return self.server.kind.ours


class Bench:
    """The parts of a run that every section needs."""

    def __init__(
        self, options: Options, kinds: Sequence[Kind], published: Published, tasks: Tasks, folder: Path
    ) -> None:
        self.options = options
        self.kinds = list(kinds)
        self.published = published
        self.tasks = tasks
        self.folder = folder

    @property
    def ours(self) -> list[Kind]:
        return [kind for kind in self.kinds if kind.ours]

    @contextlib.contextmanager
    def servers(self, kinds: Sequence[Kind], endpoints: str) -> Iterator[list[Server]]:
        """All of them running and off the cores; a server is thawed for as long as it is measured."""
        with contextlib.ExitStack() as stack:
            found = []
            for kind in kinds:
                say(f"starting {kind.name}")
                server, _ = stack.enter_context(self.server(kind, endpoints))
                server.rest()
                found.append(server)
            yield found

    @contextlib.contextmanager
    def server(self, kind: Kind, endpoints: str) -> Iterator[tuple[Server, float]]:
        """One server, running, and the seconds from its start to its first right answer."""
        task = self.tasks.predict(kind.dialect) if "predict" in endpoints else self.tasks.forecast_of(kind)
        with running(kind, self.published, self.folder / kind.name, endpoints, task) as found:
            yield found

    def verify(self, entries: Sequence[Entry]) -> None:
        """Every window, before anything is timed."""
        for entry in entries:
            if entry.every > 0:
                say(f"verifying {entry.label}")
                with awake(entry.server):
                    verify.all_windows(entry.label, entry.server.port, entry.task)

    def closed(self, entries: Sequence[Entry], cells: Sequence[int]) -> list[Row]:
        """Closed loop: for each cell (a number of connections) and round every entry in turn."""
        return self._in_turn(entries, cells, self.closed_once)

    def closed_once(self, entry: Entry, connections: int) -> Row:
        """One measurement of a server that is awake."""
        measured = load.closed(
            entry.server,
            entry.task,
            self.folder,
            connections=connections,
            seconds=self.options.seconds,
            every=entry.every,
        )
        return asdict(measured)

    def warm_up(self, entry: Entry, connections: int) -> None:
        """What a server has just been frozen for should not be seen in its numbers."""
        if self.options.warm_up > 0:
            load.closed(
                entry.server,
                entry.task,
                self.folder,
                connections=min(connections, WARM_UP_CONNECTIONS),
                seconds=self.options.warm_up,
                every=0,
            )

    def opened(
        self, entries: Sequence[Entry], cells: Sequence[Any], streams: Callable[[Entry, Any], list[load.Arrivals]]
    ) -> list[Row]:
        """Open loop: what `streams` says for an entry and a cell; a row for each stream, none where it says none."""

        def once(entry: Entry, cell: Any) -> list[Row]:  # noqa: ANN401  whatever the section made
            arrivals = streams(entry, cell)
            if not arrivals:
                return []
            options = self.options
            return load.opened(entry.server, arrivals, self.folder, seconds=options.seconds, poisson=options.poisson)

        return self._in_turn(entries, cells, once)

    def _in_turn(
        self, entries: Sequence[Entry], cells: Sequence[Any], measure: Callable[[Entry, Any], Row | list[Row]]
    ) -> list[Row]:
        rows: list[Row] = []
        for number in range(self.options.rounds):
            for cell in cells:
                # Another one begins each time, so that nobody always follows the same neighbour.
                first = number % len(entries)
                for entry in [*entries[first:], *entries[:first]]:
                    say(f"round {number + 1}/{self.options.rounds}, {cell}, {entry.label}")
                    with awake(entry.server):
                        self.warm_up(entry, cell if isinstance(cell, int) else 1)
                        measured = measure(entry, cell)
                    about = {"label": entry.label, "ours": entry.ours, "cell": cell, "round": number}
                    rows += [about | row for row in (measured if isinstance(measured, list) else [measured])]
        return rows


@contextlib.contextmanager
def awake(server: Server) -> Iterator[None]:
    """On the cores for as long as it lasts."""
    server.wake()
    try:
        yield
    finally:
        server.rest()


def medians(rows: Sequence[Row]) -> Row:
    """Of each number over the rounds; texts as in the first."""
    found: Row = {}
    for name, value in rows[0].items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = statistics.median(row[name] for row in rows) if is_number else value
    return found


def say(what: str) -> None:
    """Progress, apart from the report."""
    print(what, file=sys.stderr, flush=True)
