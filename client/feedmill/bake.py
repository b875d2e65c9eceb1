"""``feedmill bake``: augmentation offline. Epochs of a pipeline become new shards, which a server then only reads.

An ordinary feed of a private server, in the order of the plan. So what a shard has is a pure function of the data,
the pipeline, the seed and the size of shards: one that is there is finished, and whoever goes on makes those that are
missing. Every epoch begins a shard.
"""

from __future__ import annotations

import logging
import shlex
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import UsageError
from feedmill_server.baked import FORMATS, describe, forms
from feedmill_server.config import PRESETS, parse_size
from feedmill_server.progress import shown
from feedmill_server.writing import END_BYTES, ShardWriter, tar_size

from . import local

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from feedmill_server.baked import Form
    from feedmill_server.writing import Sample

    from . import Feed

__all__ = ["Span", "add_arguments", "bake", "run"]

_SAMPLES: Final = 1000
"""Samples of a shard: 150 MB of arrays of 224²."""


class Span(NamedTuple):
    """A shard to be: its number, its epoch, and which samples of that epoch's sequence it has."""

    number: int
    epoch: int
    start: int
    stop: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``feedmill bake``."""
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tar files; braces and globs are expanded")
    parser.add_argument("out", metavar="OUT-%06d.tar", help="shards to write; %%06d is their number, from 0")
    parser.add_argument("--preset", metavar="NAME", help=f"a pipeline that comes with feedmill: {' or '.join(PRESETS)}")
    parser.add_argument("--pipeline", metavar="FILE.py:NAME", help="a pipeline of your own; or module:NAME")
    parser.add_argument("--exact", action="store_true", help="run its transforms as written, slower")
    parser.add_argument("--epochs", metavar="N", type=int, default=1, help="how often each sample is made (default: 1)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of order and augmentation (default: 0)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--samples", metavar="N", type=int, help=f"samples of a shard (default: {_SAMPLES:,})")
    size.add_argument("--bytes", metavar="SIZE", help="bytes of a shard of arrays, like 500MB")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="npy",
        help="arrays of NumPy or tensorcom, or pictures encoded again (default: npy)",
    )
    parser.add_argument("--quality", metavar="N", type=int, default=90, help="of JPEGs, 1 to 100 (default: 90)")
    parser.add_argument("--workers", metavar="N", type=int, help="worker processes (default: one for each core)")
    parser.add_argument("--batch-size", metavar="N", type=int, help="of the baked stream (default: the pipeline's)")


def run(args: argparse.Namespace) -> int:
    """Write the shards, or what is missing of them. Raises FeedmillError."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    epochs = integer("epochs", args.epochs, 1, limits.INT63)
    quality = integer("quality", args.quality, 1, 100)
    samples = None if args.samples is None else integer("samples", args.samples, 1, limits.SHARD_SAMPLES)
    max_bytes = None if args.bytes is None else parse_size("bytes", args.bytes)
    if max_bytes is not None and args.format == "jpg":
        raise UsageError(f"bytes={args.bytes!r}: the size of JPEGs is not known before; give --samples")
    writer = ShardWriter(args.out)
    if bool(args.preset) == bool(args.pipeline):
        raise UsageError("give either --preset NAME or --pipeline FILE.py:NAME")
    with local(
        args.preset or args.pipeline,
        args.shards,
        workers=args.workers,
        exact=args.exact,
        seed=args.seed,
        batch_size=args.batch_size,
        dtype=torch.uint8,  # unfinished: the baked stream's clients finish it
        rank=0,
        world_size=1,
    ) as feed:
        stored = forms(feed.fields, args.format, quality)
        if samples is None:
            samples = _SAMPLES if max_bytes is None else max(1, (max_bytes - END_BYTES) // _sample_bytes(stored))
        terms = feed.state_dict()
        made = {
            "made_by": "feedmill bake",
            **describe(stored, feed.plan.batch_size),
            "catalog": terms["catalog"],
            "fingerprint": terms["fingerprint"],
            "seed": args.seed,
            "epochs": epochs,
            "samples": samples,
            "quality": quality if args.format == "jpg" else None,
        }
        with writer.making(made), shown("baking") as advance:
            shards = bake(feed, writer, stored, epochs, samples, partial(advance, "samples"))
    print(f"{epochs * feed.samples:,} samples of {epochs:,} epochs")
    print(f"feedmill serve '{writer.braces(shards)}' --pipeline {shlex.quote(str(writer.description))}")
    return 0


def bake(
    feed: Feed,
    writer: ShardWriter,
    stored: Sequence[Form],
    epochs: int,
    samples: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write so many epochs of a feed of unfinished rows to shards of ``samples``; return how many shards they are.

    ``progress(done, total)`` is called with the samples in finished shards. Raises what feed and writer raise.
    """
    spans = _spans(epochs, feed.samples, samples)
    sequence: Iterator[Sample] = iter(())
    following = -1  # the shard that the sequence would go on with
    for number, epoch, start, stop in spans:
        if not writer.has(number):
            if number != following or start == 0:
                sequence = _sequence(feed, stored, epoch, start)
            writer.write(number, islice(sequence, stop - start))
            following = number + 1
        writer.index(number, stop - start)
        progress(epoch * feed.samples + stop, epochs * feed.samples)
    return len(spans)


def _spans(epochs: int, total: int, samples: int) -> list[Span]:
    places = [
        (epoch, start, min(start + samples, total)) for epoch in range(epochs) for start in range(0, total, samples)
    ]
    return [Span(number, *place) for number, place in enumerate(places)]


def _sequence(feed: Feed, stored: Sequence[Form], epoch: int, start: int) -> Iterator[Sample]:
    """Yield the samples of an epoch from number ``start`` on."""
    batches, skip = divmod(start, feed.plan.batch_size)
    here = {"epoch": epoch, "batches": batches, "samples": start - skip}
    feed.load_state_dict(feed.state_dict() | here)
    number = epoch * feed.samples + start - skip
    for batch in feed.batches():
        for key, *rows in zip(batch.keys, *batch.tensors, strict=True):
            if skip:
                skip -= 1
            else:
                # The number keeps samples apart whose shards used the same key.
                yield f"{number:09d}/{key}", {f.extension: f.encode(row) for f, row in zip(stored, rows, strict=True)}
            number += 1


def _sample_bytes(stored: Sequence[Form]) -> int:
    """Return what a sample takes of a shard."""
    rows = (torch.zeros(form.spec.shape, dtype=getattr(torch, form.spec.dtype)) for form in stored)
    return sum(tar_size(form.extension, len(form.encode(row))) for form, row in zip(stored, rows, strict=True))
