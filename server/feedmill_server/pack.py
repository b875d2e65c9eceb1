"""``feedmill pack``: a folder of pictures becomes shards."""

import argparse
import logging
from functools import partial
from typing import Final

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import DataError

from .config import parse_size
from .packing import Bad, check, pack
from .progress import shown
from .tree import Tree

__all__ = ["add_arguments", "run"]

_SAMPLES: Final = 1000
"""Samples of a shard: a hundred megabytes of photographs, and enough shards to shuffle and to share out."""

_SHOWN: Final = 5
"""Pictures that an error names."""

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``feedmill pack``."""
    parser.add_argument("dir", metavar="DIR", help="folder of pictures: DIR/CLASS/picture.jpg, or deeper")
    parser.add_argument("out", metavar="OUT-%06d.tar", help="shards to write; %%06d is their number, from 0")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the order of the pictures (default: 0)")
    parser.add_argument("--no-shuffle", action="store_true", help="leave them sorted by class and path")
    parser.add_argument(
        "--samples", metavar="N", type=int, help=f"samples of a shard (default: {_SAMPLES:,}, unless --bytes is given)"
    )
    parser.add_argument(
        "--bytes", metavar="SIZE", help="bytes of a shard, like 500MB; with --samples, whichever is less"
    )
    parser.add_argument("--check", action="store_true", help="before, look into every picture; name those that are bad")
    parser.add_argument("--skip-bad", action="store_true", help="check, and leave bad pictures out")


def run(args: argparse.Namespace) -> int:
    """Write the shards, or what is missing of them. Raises FeedmillError."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    seed = None if args.no_shuffle else integer("seed", args.seed, 0, limits.INT63)
    max_bytes = None if args.bytes is None else parse_size("bytes", args.bytes)
    samples = args.samples
    if samples is not None:
        samples = integer("samples", samples, 1, limits.SHARD_SAMPLES)
    elif max_bytes is None:
        samples = _SAMPLES
    with shown("listing") as advance:
        tree = Tree.scan(args.dir, partial(advance, "classes"))
    with shown("checking") as advance:
        bad = check(tree, partial(advance, "pictures")) if args.check or args.skip_bad else []
    if bad and not args.skip_bad:
        raise DataError(_say(tree, bad))
    for _, path, reason in bad:
        _log.warning("left out: %s: %s", path, reason)
    with shown("packing") as advance:
        shards = pack(
            tree,
            args.out,
            seed=seed,
            samples=samples,
            max_bytes=max_bytes,
            left_out=bad,
            progress=partial(advance, "pictures"),
        )
    also = f"; {tree.passed_over:,} other files were passed over" if tree.passed_over else ""
    print(f"{len(tree) - len(bad):,} pictures of {len(tree.classes):,} classes{also}")
    print(f"feedmill serve '{shards}' --preset imagenet-train")
    return 0


def _say(tree: Tree, bad: list[Bad]) -> str:
    shown = "; ".join(f"{path}: {reason}" for _, path, reason in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return f"{tree.root}: {len(bad):,} pictures are bad ({shown}{more}); leave them out with --skip-bad, or mend them"
