"""feedmill, from a server's cache: batches that another trainer had before. The wire alone."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

import feedmill
from benchmarks import contest, service

_CACHED: Final = 80
"""Batches: three quarters of a server's default memory, at 9.6 MB each."""


def main() -> None:
    """Run it."""
    given = contest.entry(times=20)  # it is that much faster than decoding
    torch.set_num_threads(1)
    with service.serving(given.shards, "--batch-size", str(given.batch), workers=given.workers) as server:
        with feedmill.connect(server.url, dtype=torch.uint8, last="drop") as first:
            epochs = -(-_CACHED // len(first))
            for _ in range(epochs):
                for _batch in first:
                    pass
        with feedmill.connect(server.url, dtype=torch.uint8, last="drop") as second:
            contest.measure(_again(second, epochs - 1), given, warm_up=_CACHED)


def _again(feed: feedmill.Feed, epochs: int) -> Iterator[Sequence[Any]]:
    """Yield the batches of the first epochs, over and over. The one behind them is cached too: it is asked ahead."""
    while True:
        feed.set_epoch(0)
        for _ in range(epochs):
            yield from feed


if __name__ == "__main__":
    main()
