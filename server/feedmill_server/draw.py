"""``feedmill draw``: a small dataset, for whoever has none at hand."""

import argparse
from pathlib import Path
from typing import Final

from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import UsageError

from .pictures import shard_paths, write_shards
from .progress import shown

__all__ = ["SAMPLES", "SHARDS", "SIDES", "add_arguments", "run"]

SHARDS: Final = 8
SAMPLES: Final = 128
"""1,024 pictures: enough to learn eight patterns; three seconds to draw."""

SIDES: Final = (160, 240)
"""Small photographs, in pixels: 13 MB of disk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``feedmill draw``."""
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="where to write pictures-000000.tar, … unless all are there"
    )
    parser.add_argument("--shards", metavar="N", type=int, default=SHARDS, help="default: %(default)s")
    parser.add_argument("--samples", metavar="N", type=int, default=SAMPLES, help="of a shard (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draw the shards, unless all of them are there already, and say which. Raises FeedmillError."""
    shards = integer("shards", args.shards, 1, 10_000)
    samples = integer("samples", args.samples, 1, 100_000)
    paths = shard_paths(args.dir, shards)
    if not all(path.is_file() for path in paths):
        with shown("drawing") as advance:
            try:
                write_shards(
                    args.dir,
                    shards=shards,
                    samples=samples,
                    sides=SIDES,
                    progress=lambda done: advance("pictures", done, shards * samples),
                )
            except OSError as error:
                raise UsageError(f"pictures cannot be written to {args.dir}: {error.strerror}") from None
    for path in paths:
        print(path)
    return 0
