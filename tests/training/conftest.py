"""What all tests of the training share."""

import pytest
import torch

from tests.training import world
from training.data.dataset import prepare
from training.fitting.fit import fit


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small only wait for one another's threads, above all on a machine that others use too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> world.Made:
    """A small network with attention, trained, to be published by whoever wants; nobody changes it."""
    file = world.write(tmp_path_factory.mktemp("data") / "rows.csv", world.rows(160))
    network = {"architecture": "attention_lstm", "config": {"hidden": 8, "layers": 1}}
    recipe = world.recipe(file, network=network)
    dataset = prepare(recipe)
    return recipe, dataset, fit(recipe, dataset, tell=lambda _: None)
