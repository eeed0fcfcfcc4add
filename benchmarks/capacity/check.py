"""A replica as simulated beside a real one: python -m benchmarks.capacity check --costs costs.json

The same open loop goes to both, with Poisson arrivals at shares of the most that the simulated one does; the generator
shares the cores in both. What it costs is taken from the same run.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from benchmarks.capacity import events
from benchmarks.capacity.costs import Costs, Service, mix_of
from benchmarks.capacity.measure import busy_s, processes, published, service, tasks_by_kind, used, with_client
from benchmarks.serving import load
from benchmarks.serving.bench import say
from benchmarks.serving.report import Table, number
from benchmarks.serving.servers import Server

CONNECTIONS = 256
SHARES = (0.3, 0.5, 0.7, 0.9, 1.2)
_WARM_UP_S = 1.0
_PATIENCE_S = 10.0
"""The generator waits so long for the last answers."""
_QUANTITIES = ("answers/s", "p50, ms", "p99, ms", "rows a pass", "HTTP process, µs each", "engine, µs each")


@dataclass(frozen=True, slots=True)
class Row:
    """At one rate: (simulated, measured) of each quantity."""

    asked: float
    others: float
    """Cores that neither the service nor the generator had; nobody simulates them."""
    pairs: dict[str, tuple[float, float]]


def check(options: argparse.Namespace) -> None:
    """Print predicted beside measured for each mix."""
    costs = Costs.load(options.costs)
    with published() as (tasks, folder, store):
        of_kind = tasks_by_kind(tasks)
        with service(store, folder / "checked", of_kind["predict"]) as (server, _):
            for text in options.mixes:
                mix = mix_of(text, costs)
                streams = {name: load.Arrivals(name, of_kind[name], 1.0, CONNECTIONS, every=20) for name in mix}
                rows = _rows(costs, mix, server, streams, folder, options)
                print(f"\n{text}\n\n{table(rows).markdown()}\n", flush=True)


def _rows(
    costs: Costs,
    mix: dict[str, float],
    server: Server,
    streams: dict[str, load.Arrivals],
    folder: Path,
    options: argparse.Namespace,
) -> list[Row]:
    def asked(rate: float, seconds: float) -> tuple[float, dict[str, tuple[float, float]], float]:
        at = [
            load.Arrivals(name, stream.task, rate * mix[name], stream.connections, stream.every)
            for name, stream in streams.items()
        ]
        first = used(server)
        before, busy, began = used(server), busy_s(), time.monotonic()
        found = load.opened(server, at, folder, seconds=seconds, poisson=True)
        others_s = busy_s() - busy - found[0]["server_cpu_s"] - found[0]["client_cpu_s"]
        others = max(0.0, others_s / (time.monotonic() - began))
        # Less what asking for it takes.
        spent = used(server) - before
        spent = dataclasses.replace(spent, http_s=spent.http_s - (before - first).http_s)
        count = sum(one["requests"] - one["unanswered"] for one in found)
        # The streams are of one generator, which tells the same of each.
        generator_s = found[0]["client_cpu_s"] / count
        answers = sum(one["achieved"] for one in found)
        # By the stream that has most of the requests: quantiles of several cannot be added up.
        main = max(found, key=lambda one: one["requests"])
        real = {
            "answers/s": answers,
            "p50, ms": main["p50_ms"],
            "p99, ms": main["p99_ms"],
            "rows a pass": spent.rows / max(1.0, spent.passes),
            "HTTP process, µs each": 1e6 * spent.http_s / count,
            "engine, µs each": 1e6 * spent.engine_s / count,
        }
        shared = with_client(costs, dict.fromkeys(mix, generator_s))
        simulated = events.simulate(
            shared,
            events.Load(rate, mix, connections=CONNECTIONS * len(mix), shares_cores=True),
            Service(),
            seconds=seconds,
            warm_up=0.0,
            drain_s=_PATIENCE_S,
            seed=options.seed,
        )
        kind = max(mix, key=lambda name: mix[name])
        expected = {
            "answers/s": simulated.rate,
            "p50, ms": 1e3 * simulated.quantile_s(0.5, kind),
            "p99, ms": 1e3 * simulated.quantile_s(0.99, kind),
            "rows a pass": simulated.batch_rows,
            "HTTP process, µs each": 1e6 * simulated.http_s / max(1, simulated.answered),
            "engine, µs each": 1e6 * simulated.engine_s / max(1, simulated.answered),
        }
        return others, {name: (expected[name], real[name]) for name in _QUANTITIES}, generator_s

    say("the generator's cost")
    *_, generator_s = asked(_START, _WARM_UP_S)
    top = most(with_client(costs, dict.fromkeys(mix, generator_s)), mix)
    rows = []
    for share in SHARES:
        say(f"{share:g} of {top:.0f} requests/s")
        asked(share * top, _WARM_UP_S)
        server.tree.settle()
        # The one in which others had least of the machine.
        others, pairs, _ = min((asked(share * top, options.seconds) for _ in range(options.rounds)), key=itemgetter(0))
        server.tree.settle()
        rows.append(Row(share * top, others, pairs))
    assert processes(server), "the service has ended"
    return rows


_START = 500.0


def most(costs: Costs, mix: dict[str, float]) -> float:
    """Requests a second that a simulated replica answers, with as many waiting as there are connections."""
    load_of = events.Load(50_000.0, mix, connections=CONNECTIONS * len(mix), shares_cores=True)
    return events.simulate(costs, load_of, Service(), seconds=3.0, warm_up=1.0).rate


def table(rows: list[Row]) -> Table:
    """Simulated, measured and their ratio for each quantity."""
    lines = [
        [
            number(round(row.asked)),
            f"{row.others:.2f}",
            *(
                f"{number(simulated)} / {number(measured)} ({simulated / measured:.2f})"
                for simulated, measured in row.pairs.values()
            ),
        ]
        for row in rows
    ]
    return Table("", ["asked/s", "others, cores", *_QUANTITIES], lines)
