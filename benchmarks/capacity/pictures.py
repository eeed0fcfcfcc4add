"""The two pictures of docs/capacity.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.capacity.autoscaler import Followed

_DPI = 80


def loads(
    path: Path, one: Sequence[tuple[float, float, float]], ten: Sequence[tuple[float, float, float]], limit_s: float
) -> None:
    """Of (load, p99 in seconds, answers within the limit), both loads in shares of capacity."""
    figure = Figure(figsize=(9, 3.2), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points, style in (("one, request by request", one, "o-"), ("ten, in steps", ten, "s--")):
        left.plot([load for load, _, _ in points], [1e3 * p99 for _, p99, _ in points], style, markersize=4, label=name)
        right.plot([load for load, _, _ in points], [good for *_, good in points], style, markersize=4, label=name)
    left.axhline(1e3 * limit_s, color="grey", linewidth=1)
    left.set(yscale="log", xlabel="load : capacity", ylabel="p99, ms")
    right.set(xlabel="load : capacity", ylabel="within the limit : capacity", ylim=(0, 1.1))
    left.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def bursts(path: Path, found: Mapping[str, Followed], limit_s: float) -> None:
    """A burst second by second under each autoscaler."""
    figure = Figure(figsize=(9, 6), dpi=_DPI, layout="constrained")
    rates, replicas, latencies = figure.subplots(3, 1, sharex=True)
    for number, (name, one) in enumerate(found.items()):
        colour = f"C{number}"
        if not number:
            rates.plot(one.at_s, one.rate, color="black", linewidth=1, label="asked")
        rates.plot(one.at_s, one.good, color=colour, linewidth=1, label=f"within the limit, {name}")
        replicas.plot(one.at_s, one.ready, color=colour, label=f"ready, {name}")
        latencies.plot(one.at_s, [1e3 * p99 for p99 in one.p99_s], color=colour, linewidth=1)
    latencies.axhline(1e3 * limit_s, color="grey", linewidth=1)
    rates.set(ylabel="requests/s")
    replicas.set(ylabel="replicas")
    latencies.set(yscale="log", ylabel="p99, ms", xlabel="seconds")
    replicas.legend(*rates.get_legend_handles_labels(), loc="upper left", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
