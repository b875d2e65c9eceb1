"""feedmill: one server with its workers, one trainer, tcp loopback. Variants: fused, exact."""

import torch

import feedmill
from benchmarks import contest, service


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
        contest.measure(contest.cycle(feed), given, warm_up=service.FILL)


if __name__ == "__main__":
    main()
