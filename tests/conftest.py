"""What all tests share."""

import gc
import os
from itertools import chain, groupby, zip_longest

import pytest
from hypothesis import HealthCheck, settings

# Threads that share an operation on tiny tensors only wait for each other, on busy cores for seconds; read by torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing here asks the world, and what is served over TLS is trusted by name: for each request outside a client httpx
# would read the certificates of all authorities, which takes 25 ms of processor time where the request takes one.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

# The machines that run this are shared: how long an example takes says nothing about the code.
settings.register_profile("foretell", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("foretell"))  # see tests/fuzz
settings.load_profile("foretell")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio; for the whole session, so that the tests of a module may share a server."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start whole services, long and full of waiting, in turn with the others: none is left for the end."""
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    waiting = [tests for tests in files if starts_services(tests[0])]
    others = [tests for tests in files if not starts_services(tests[0])]
    items[:] = chain.from_iterable(chain.from_iterable(zip_longest(waiting, others, fillvalue=[])))


def pytest_collection_finish() -> None:
    """What has been imported stays: to look through it for garbage, again and again, took a twelfth of the time."""
    gc.collect()
    gc.freeze()
    # To the little that is left it would come all the more often.
    gc.set_threshold(10_000, 20, 20)


def starts_services(item: pytest.Item) -> bool:
    """Whether its file has the means to."""
    return getattr(getattr(item, "module", None), "process", None) is not None
