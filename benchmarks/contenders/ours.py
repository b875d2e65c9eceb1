"""feedmill: one server with its workers, one trainer, tcp loopback. Variants: fused, exact."""

from typing import Final

import torch

import feedmill
from benchmarks import contest, service

_FILL: Final = 120
"""Batches until a server's default memory has been written to once: from then on it is as it will be for hours."""


def main() -> None:
    """Run it."""
    given = contest.entry()
    torch.set_num_threads(1)
    options = ["--exact"] if given.variant == "exact" else []
    # As written, the pipeline ends in floats, and floats travel.
    dtype = torch.float32 if given.dtype == "float32" else torch.uint8
    with (
        service.serving(given.shards, *options, "--batch-size", str(given.batch), workers=given.workers) as server,
        feedmill.connect(server.url, dtype=dtype, last="drop") as feed,
    ):
        contest.measure(contest.cycle(feed), given, warm_up=_FILL)


if __name__ == "__main__":
    main()
