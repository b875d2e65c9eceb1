"""The verdict in staged situations: a slow server, a slow trainer, a slow network, and neither."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import feedmill
from faults.proxy import FaultProxy
from integration.epochs import TIMEOUT
from integration.processes import Served
from shardmaker import write_tar

SAMPLE = 0.01
"""Seconds that a sample takes the servers here. They sleep, so that a busy machine makes no difference."""

BATCH = 8 * SAMPLE

PIPELINE = f"""
import time, torch
from feedmill_server import Pipeline

def slow(value):
    time.sleep({SAMPLE})
    return torch.full((4096,), value)

slowly = Pipeline("cls", transforms=[slow], batch_size=8)
"""


@pytest.fixture
def start(tmp_path: Path, serve: Callable[..., Served]) -> Callable[[], str]:
    """Return what starts one more server, of one worker, and returns its URL."""
    shard = write_tar(tmp_path / "n.tar", [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(800)])
    (tmp_path / "slow.py").write_text(PIPELINE)
    return lambda: serve(shard, "--pipeline", tmp_path / "slow.py:slowly", "--workers", "1", "--memory", "4MB").url


def train(urls: str | list[str], pace: float, batches: int = 40) -> feedmill.Verdict:
    """Train at a pace, in seconds a batch; return the verdict."""
    with feedmill.connect(urls, timeout=TIMEOUT) as feed:
        for number, _ in enumerate(feed):
            if number == batches:
                break
            time.sleep(pace)
        stats = feed.stats()
    assert stats.in_flight + batches >= stats.batches == sum(stats.by_server.values())
    return stats.verdict


def test_a_slow_server_is_told_from_a_slow_trainer_and_from_a_balance(start: Callable[[], str]) -> None:
    """And so many more servers as it says do feed the trainer, up to one."""
    urls = [start()]
    assert train(urls, 3 * BATCH).limit == "trainer-bound"
    assert train(urls, 1.6 * BATCH).limit == "fed"
    verdict = train(urls, 0.4 * BATCH)
    assert verdict.limit == "decode-bound"
    assert 1 <= verdict.more <= 3  # 1 / 0.4 = 2.5 servers
    urls += [start() for _ in range(verdict.more + 1)]
    assert train(urls, 0.4 * BATCH, batches=100).limit in {"fed", "trainer-bound"}


def test_a_slow_network_is_told_from_a_slow_server(start: Callable[[], str]) -> None:
    """The trainer waits, and the server does, too."""
    with FaultProxy(start()) as proxy:
        proxy.down.delay = BATCH / 2  # for each of five pieces of a batch
        assert train(proxy.url, 0.4 * BATCH).limit == "network-bound"
