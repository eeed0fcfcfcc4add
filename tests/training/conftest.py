"""What all tests of the training share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small only wait for one another's threads, above all on a machine that others use too."""
    torch.set_num_threads(1)
