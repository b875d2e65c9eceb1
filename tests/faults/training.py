"""What a trainer does, as a process: note what it is given, when it asked for it and when it came.

It iterates epoch after epoch until its standard input ends, and then finishes the batch it has in hand.
"""

import argparse
import select
import sys
import time
from pathlib import Path

import feedmill
from faults.digests import digest
from faults.records import Record


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("stream")
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefetch", type=int, default=None)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--step", type=float, default=0.0, help="seconds of a training step")
    args = parser.parse_args()
    feed = feedmill.connect(
        args.urls,
        args.stream,
        rank=args.rank,
        world_size=args.ranks,
        seed=args.seed,
        prefetch=args.prefetch,
        timeout=args.timeout,
    )
    with feed, args.path.open("wb", buffering=0) as file:
        while True:
            asked = time.monotonic()
            for batch in feed.batches():
                came = time.monotonic()
                found = digest(batch.keys, batch.tensors)
                file.write(Record(batch.epoch, batch.index, asked, came, found).pack())
                if select.select([sys.stdin], [], [], args.step)[0]:
                    return
                asked = time.monotonic()


if __name__ == "__main__":
    main()
