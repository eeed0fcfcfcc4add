"""The service's figures as Ray's: shown by every node's agent, each with its replica.

`/metrics` behind a proxy answers for whichever replica was asked.
"""

from typing import cast

from prometheus_client.parser import text_string_to_metric_families
from ray.serve.metrics import Gauge


class Gauges:
    """One for every series' name; all of them gauges, which for Prometheus is only a word."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def tell(self, exposition: bytes) -> None:
        """Have Ray show what an exposition says, from now on and until the next."""
        for family in text_string_to_metric_families(exposition.decode()):
            for sample in family.samples:
                if sample.name not in self._gauges:
                    # Ray's annotation is of a single name, its code takes any number.
                    names = cast(tuple[str], tuple(sample.labels))
                    self._gauges[sample.name] = Gauge(sample.name, family.documentation, tag_keys=names)
                self._gauges[sample.name].set(sample.value, tags=sample.labels)
