"""Replicas behind a load balancer: a new release replaces an old one and no client sees it."""

import signal
from contextlib import closing
from pathlib import Path

import pytest

from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import process
from tests.builders import publish_tiny
from tests.chaos.client import load
from tests.chaos.faults import MissingError
from tests.chaos.questions import Oracle, forecasts
from tests.chaos.replicas import Replicas, nginx


def test_rolling_restart(tmp_path: Path) -> None:
    """Two replicas behind nginx are ended by SIGTERM and started again, in turn: every request is answered rightly."""
    publish_tiny(Store(tmp_path / "store"), **BOUNDED)
    asked = forecasts(Oracle(tmp_path / "store"))
    with closing(Replicas(tmp_path / "store", 2, HTTP_PROCESSES=1, GRACE_S=1, CACHE_BYTES=0)) as replicas:
        try:
            with nginx(tmp_path, replicas.ports) as address, load(address, asked) as asking:
                statuses = [replicas.restart(number) for number in (0, 1)]
                asking.wait_for_right(100)
        except MissingError as missing:
            pytest.skip(f"this machine has no {missing}")
        report = asking.report()

    assert statuses == [0, 0]
    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)


def test_sigterm_without_a_load_balancer(tmp_path: Path) -> None:
    """Clients that stay to the end: whatever they have sent is answered, and then nobody listens."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    asked = forecasts(Oracle(tmp_path))
    with process(tmp_path, HTTP_PROCESSES=2, GRACE_S=1, CACHE_BYTES=0) as service:
        with load(service.address, asked, connections=8) as asking:
            service.signal(signal.SIGTERM)
            status = service.wait()
        report = asking.report()

    assert status == 0
    assert set(report.verdicts) <= {"right", "refused", "unreachable"}, report.faults
