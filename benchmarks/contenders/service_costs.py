"""feedmill: how soon it is there, and how much memory it holds."""

import time
from pathlib import Path
from typing import Final

import torch

import feedmill
from benchmarks import contest, processes, service
from feedmill_protocol.tensors import offsets

_MEMORY: Final = 128 * 2**20
"""Of the server: small, so that a few batches have written to all of it."""

_BATCHES: Final = 40

_ARRIVAL: Final = 2.0
"""Seconds until all that was asked for ahead has come."""

_WORKERS: Final = (1, 5)
"""The difference of these two servers is four workers."""


def main() -> None:
    """Run it. The first server leaves the index cached for those that are timed."""
    given = contest.entry()
    torch.set_num_threads(1)
    client = _client_batches(given)  # first: what others leave to the allocator would be used again
    held = [_server_bytes(given, workers) for workers in _WORKERS]
    ready, first = _latencies(given)
    contest.say(
        worker_mb=(held[1] - held[0]) / (_WORKERS[1] - _WORKERS[0]) / 1e6,
        ready_s=ready,
        first_batch_s=first,
        client_batches=client,
    )


def _server_bytes(given: contest.Entry, workers: int) -> int:
    """Return what all processes of a server hold when it has worked for a while."""
    with (
        service.serving(given.shards, "--memory", str(_MEMORY), workers=workers) as server,
        feedmill.connect(server.url, dtype=torch.uint8) as feed,
    ):
        _consume(feed, _BATCHES)
        return processes.pss_bytes(processes.descendants(server.pid))


def _latencies(given: contest.Entry) -> tuple[float, float]:
    """Return seconds from the start of a server to its being ready, and from there to the first batch."""
    started = time.perf_counter()
    with service.serving(given.shards, workers=given.workers) as server:
        ready = time.perf_counter()
        with feedmill.connect(server.url) as feed:
            next(iter(feed))
        return ready - started, time.perf_counter() - ready


def _client_batches(given: contest.Entry) -> float:
    """Return how many batches of memory a client takes beyond those that it is asked to prefetch."""
    prefetch = 4
    with service.serving(given.shards, workers=given.workers) as server:
        float(torch.ones(8).sum())  # so that torch has started what it starts
        before = _private_bytes()
        feed = feedmill.connect(server.url, dtype=torch.uint8, prefetch=prefetch)
        _consume(feed, _BATCHES)
        time.sleep(_ARRIVAL)
        after = _private_bytes()
        feed.close()
        _, batch = offsets(field.rows(given.batch) for field in feed.fields)
        return (after - before) / batch - prefetch


def _consume(feed: feedmill.Feed, batches: int) -> None:
    stream = contest.cycle(feed)
    for _ in range(batches):
        float(next(stream)[0][0, 0, 0, 0])


def _private_bytes() -> int:
    """Return the anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


if __name__ == "__main__":
    main()
