"""The verdict in staged situations: a slow server, a slow trainer, a slow network, and a balance.

Servers sleep instead of decoding, so that a busy machine with few cores makes little difference. What is expected is
far from where the verdict would change.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import feedmill
from faults.proxy import FaultProxy
from integration import processes
from integration.epochs import TIMEOUT
from integration.namespaces import FAR, Cable
from shardmaker import write_tar

SAMPLE = 0.04
"""Seconds that a sample takes a server. Few, long sleeps: what is between them takes processor time."""

BATCH = 2 * SAMPLE

BYTES = 2 * 16384 * 8
"""Of a batch: rows of int64."""

PIPELINE = f"""
import time, torch
from feedmill_server import Pipeline

def slow(value):
    time.sleep({SAMPLE})
    return torch.full((16384,), value)

slowly = Pipeline("cls", transforms=[slow], batch_size=2)
"""

FED = 0.12
"""The share of its time that a trainer waits, which parts those that are fed from others here: by arithmetic they wait
for 0, and 0.2 at least."""

WARM_UP = 8
"""Batches."""

TRIES = 3
"""On a machine that others use, a rate of one moment may not be that of the next."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """Return what makes a server one that sleeps, with one worker."""
    folder = tmp_path_factory.mktemp("verdict")
    shard = write_tar(folder / "n.tar", [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(400)])
    (folder / "slow.py").write_text(PIPELINE)
    return shard, "--pipeline", folder / "slow.py:slowly", "--workers", "1", "--memory", "4MB"


@pytest.fixture(scope="module")
def urls(options: tuple[str | Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Start five servers."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:

        def start(_: int) -> str:
            served = processes.start(folder, *options)
            processes.SHARED.add(served.process.pid)
            stack.callback(processes.stop, served)
            return served.url

        with ThreadPoolExecutor(2) as starters:
            yield [*starters.map(start, range(5))]


def train(urls: str | list[str], pace: float, batches: int = 32) -> tuple[feedmill.Verdict, float]:
    """Train at a pace, in seconds a batch; return the verdict, and the share of the time that was spent waiting.

    The first batches do not count: they are waited for while nothing is there yet.
    """
    with feedmill.connect(urls, timeout=TIMEOUT) as feed:
        begun = feed.stats()
        for number, _ in enumerate(feed):
            if number == WARM_UP:
                begun = feed.stats()
            elif number == batches:
                break
            time.sleep(pace)
        stats = feed.stats()
    assert stats.in_flight + batches >= stats.batches == sum(stats.by_server.values())
    return stats.verdict, (stats.waited - begun.waited) / (stats.elapsed - begun.elapsed)


def test_a_slow_server_is_told_from_a_slow_trainer_and_from_a_balance(urls: list[str]) -> None:
    """One server, and trainers that take a fifth of what it makes, two thirds, and more than twice as much."""
    assert train(urls[0], 5 * BATCH, batches=17)[0].limit == "trainer-bound"
    assert train(urls[0], 1.5 * BATCH)[0].limit == "fed"
    assert train(urls[0], 0.4 * BATCH)[0].limit == "decode-bound"


@pytest.mark.parametrize("servers", [1.5, 2.5, 3.5])
def test_so_many_more_servers_as_it_says_feed_the_trainer(urls: list[str], servers: float) -> None:
    """Up to one: with one more than that it is fed, with two fewer it is not. The trainer takes what so many make."""
    tries: list[str] = []
    while not _is_right(urls, BATCH / servers, tries):
        assert len(tries) < TRIES, tries


def _is_right(urls: list[str], pace: float, tries: list[str]) -> bool:
    """Follow a verdict on one server, and tell whether it was right."""
    verdict, waited = train(urls[:1], pace)
    assert verdict.limit == "decode-bound"
    more = train(urls[: 1 + verdict.more + 1], pace)[1]
    if verdict.more < 2:
        fewer = 1.0  # than one server is none
    elif verdict.more == 2:
        fewer = waited
    else:
        fewer = train(urls[: 1 + verdict.more - 2], pace)[1]
    tries.append(f"{verdict}; with one more than that it waits {more:.0%} of its time, with two fewer {fewer:.0%}")
    return more < FED < fewer


def test_a_slow_way_is_told_from_a_slow_server(urls: list[str]) -> None:
    """The trainer waits, and the server does, too."""
    with FaultProxy(urls[0]) as proxy:
        proxy.down.delay = BATCH  # for each of five pieces of a batch
        assert train(proxy.url, 0.4 * BATCH, batches=17)[0].limit == "network-bound"


def test_a_limited_network_is_told_from_a_slow_server(options: tuple[str | Path, ...], tmp_path: Path) -> None:
    """By the kernel's own token bucket, between two network namespaces: a quarter of what it makes, then more."""
    with Cable() as cable, ExitStack() as stack:
        served = processes.start(tmp_path, *options, "--bind", f"tcp://{FAR}:7880", "--insecure", within=cable.far)
        stack.callback(processes.stop, served)
        cable.limit(f"{8 * BYTES / BATCH / 4:.0f}bit")
        assert cable.near(lambda: train(served.url, 0.4 * BATCH, batches=17))[0].limit == "network-bound"
        cable.limit("1gbit")
        assert cable.near(lambda: train(served.url, 0.4 * BATCH))[0].limit == "decode-bound"
