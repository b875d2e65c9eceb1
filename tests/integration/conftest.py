"""The shared servers and their data, as fixtures."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

import feedmill
from integration.epochs import TIMEOUT, Reference
from integration.fleet import Data, Fleet, make


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Leave the cores to the servers: threads that wait for each other in torch take longer than the work itself."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Make the data once."""
    return make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def fleet(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Keep the shared servers."""
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("fleet"), data.config, stack)


@pytest.fixture(scope="session")
def reference(fleet: Fleet) -> Reference:
    """Return epoch 0 of a stream, with seed 0, as one server with one worker makes it."""
    known: dict[str, list[feedmill.Batch]] = {}

    def epoch(stream: str) -> list[feedmill.Batch]:
        if stream not in known:
            with feedmill.connect(fleet["one"], stream, timeout=TIMEOUT) as feed:
                known[stream] = list(feed.batches())
        return known[stream]

    return epoch
