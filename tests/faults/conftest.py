"""The servers under fire, as fixtures. They are shared; whoever strikes one need not mend it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
import torch

from faults import pipelines
from faults.mill import Mill
from faults.oracle import write_shards

_SEEDS = count(1)

STREAMS = {"tiny": "TINY", "wide": "WIDE", "slow": "SLOW"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Leave the cores to the servers."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a configuration of 240 samples in four shards: 60 batches that are tiny or slow, 15 that are wide."""
    folder = tmp_path_factory.mktemp("numbers")
    shards = [str(path) for path in write_shards(folder, 4, 60)]
    path = folder / "feedmill.toml"
    path.write_text(
        "\n".join(
            f"[streams.{stream}]\nshards = {shards}\npipeline = '{pipelines.__file__}:{name}'\n"
            for stream, name in STREAMS.items()
        )
    )
    return path


@pytest.fixture(scope="session")
def _mills(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Mill]]:
    """Keep two servers."""
    folder = tmp_path_factory.mktemp("mills")

    def start(_number: int) -> Mill:
        return Mill(folder, "--config", config, "--workers", "2", "--memory", "64MiB", shared=True)

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        started = list(pool.map(start, range(2)))
        for mill in started:
            stack.callback(mill.stop)
        yield started


@pytest.fixture
def mills(_mills: list[Mill]) -> Iterator[list[Mill]]:
    """Return two servers of two workers each."""
    yield _mills
    for mill in _mills:
        if mill.served.process.poll() is not None:
            mill.again()
        mill.mend(2)


@pytest.fixture
def seed() -> int:
    """Return a seed that no other test has: what a server has cached already, no fault can harm."""
    return next(_SEEDS)


@pytest.fixture
def narrow(config: Path, tmp_path: Path) -> Iterator[Mill]:
    """Return a server that has memory for one wide batch: whoever keeps one keeps all others from theirs."""
    mill = Mill(tmp_path, "--config", config, "--workers", "1", "--memory", "1100KB")
    yield mill
    mill.stop()
