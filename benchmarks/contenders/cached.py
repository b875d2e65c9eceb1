"""feedmill, from a server's cache: batches that another trainer had before. The wire alone, plain or encrypted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

import feedmill
from benchmarks import contest, service
from feedmill.keys import generate

_CACHED: Final = 80
"""Batches: three quarters of a server's default memory, at 9.6 MB each."""


def main() -> None:
    """Run it."""
    given = contest.entry(times=20)  # it is that much faster than decoding
    torch.set_num_threads(1)
    keys = Path(given.cache, "keys") if given.variant == "keys" else None
    options = ["--batch-size", str(given.batch)]
    if keys is not None:
        options += ["--keys", str(keys)]
        if not keys.exists():
            generate(keys)
    with service.serving(given.shards, *options, workers=given.workers) as server:
        with feedmill.connect(server.url, dtype=torch.uint8, last="drop", keys=keys) as first:
            epochs = -(-_CACHED // len(first))
            for _ in range(epochs):
                for _batch in first:
                    pass
        with feedmill.connect(server.url, dtype=torch.uint8, last="drop", keys=keys) as second:
            contest.measure(_again(second, epochs - 1), given, warm_up=_CACHED)


def _again(feed: feedmill.Feed, epochs: int) -> Iterator[Sequence[Any]]:
    """Yield the batches of the first epochs, over and over. The one behind them is cached too: it is asked ahead."""
    while True:
        feed.set_epoch(0)
        for _ in range(epochs):
            yield from feed


if __name__ == "__main__":
    main()
