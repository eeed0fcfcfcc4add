"""What all tests share."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Threads that share an operation on tiny tensors only wait for each other, on busy cores for seconds; read by torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The machines that run this are shared: how long an example takes says nothing about the code.
settings.register_profile("foretell", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("foretell"))  # see tests/fuzz
settings.load_profile("foretell")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio; for the whole session, so that the tests of a module may share a server."""
    return "asyncio"
