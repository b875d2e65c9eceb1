"""``feedmill stat``: what is in the tensors of a stream, field by field.

The numbers are those that a trainer gets: pictures are finished first.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from feedmill_protocol.errors import UsageError

from .distribution import Distribution
from .histogram_chart import Panel, blocks, check, write
from .sources import add_source_arguments, open_source

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Field", "add_arguments", "describe", "run"]

_BATCHES: Final = 20
"""As many as tensorstat looked at."""

_PIECE: Final = 1 << 20
"""Numbers that are worked on at a time: 8 MB as float64, whatever the batch."""

_SHAPES: Final = 8
"""Shapes of rows that are told one by one; a stream of varying shapes has many."""


class Field:
    """What is known of one field: its ``name``, the dtypes and the shapes that came, and the statistics of its numbers.

    Of complex numbers, the statistics are those of the absolute values; True is 1 and False is 0.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtypes: Counter[str] = Counter()
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.distribution = Distribution()

    def add(self, tensor: torch.Tensor) -> None:
        """Add the tensor of a batch, [N, …]."""
        if not self.dtypes:
            self.distribution = Distribution(whole=not tensor.is_floating_point() and not tensor.is_complex())
        self.dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
        self.shapes[tuple(tensor.shape)] += 1
        for piece in tensor.detach().cpu().reshape(-1).split(_PIECE):
            self.distribution.add(_numbers(piece))

    def panel(self) -> Panel:
        """Return the histogram, for a chart."""
        start, width, counts = self.distribution.histogram.bars()
        moments = self.distribution.moments
        return Panel(f"{self.name}: mean {moments.mean:.4g}, std {moments.std:.4g}", start, width, counts)

    def as_json(self) -> dict[str, Any]:
        """Return everything in plain types; None stands for what no number can tell."""
        moments = self.distribution.moments
        start, width, counts = self.distribution.histogram.bars()
        return {
            "name": self.name,
            "dtypes": dict(self.dtypes),
            "shapes": [[list(shape), count] for shape, count in self.shapes.most_common()],
            "count": self.distribution.count,
            "nan": self.distribution.nan,
            "infinite": self.distribution.infinite,
            "min": _finite(moments.low),
            "max": _finite(moments.high),
            "mean": _finite(moments.mean) if moments.count else None,
            "std": _finite(moments.std),
            "histogram": {"start": start, "width": width, "counts": counts},
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(piece: torch.Tensor) -> NDArray[np.float64]:
    if piece.is_complex():
        piece = piece.abs()
    return piece.to(torch.float64).numpy()


def describe(fields: Sequence[Field]) -> str:
    """Write the fields for people, each with its histogram."""
    return "\n\n".join("\n".join(_lines(field)) for field in fields)


def _lines(field: Field) -> list[str]:
    distribution, moments = field.distribution, field.distribution.moments
    shapes = [
        f"{list(shape)}" + (f" in {n:,} batches" if n > 1 else "") for shape, n in field.shapes.most_common(_SHAPES)
    ]
    more = len(field.shapes) - len(shapes)
    lines = [
        f"{field.name}: {', '.join(field.dtypes)} {', '.join(shapes)}"
        + (f", and {more:,} other shapes" if more else "")
    ]
    if moments.count:
        low, high = (f"{value:.6g}" for value in (moments.low, moments.high))
        lines.append(f"  range  {low} to {high}")
        lines.append(f"  mean   {moments.mean:.6g}, std {moments.std:.6g}, of {distribution.count:,} numbers")
    elif not distribution.count:
        lines.append("  no numbers")
    for name, count in (("NaN", distribution.nan), ("infinite", distribution.infinite)):
        if count:
            lines.append(f"  {name}  {count:,} of {distribution.count:,} ({count / distribution.count:.2%})")
    start, width, counts = distribution.histogram.bars()
    if len(counts) > 1:
        lines += [f"  {line}" for line in blocks(counts)]
        left, right = f"{start:g}", f"{start + width * len(counts):g}"
        lines.append(f"  {left}{right:>{max(len(right) + 1, len(counts) - len(left))}}  in bins of {width:g}")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill stat``."""
    parser.epilog = "Batches are made for this alone: N of them, and one or two that are asked for ahead."
    add_source_arguments(parser)
    parser.add_argument("--batches", type=int, default=_BATCHES, metavar="N", help="look at N (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the histograms as an .svg or .png")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Look at batches, and print."""
    if args.batches < 1:
        raise UsageError(f"--batches {args.batches}: look at 1 at least")
    if args.output is not None:
        check(args.output)  # before minutes are spent
    with open_source(args, finished=True) as source:
        fields: list[Field] = []
        batches = samples = 0
        for seen in islice(source.batches(), args.batches):
            batches, samples = batches + 1, samples + seen.samples
            fields += map(Field, seen.names[len(fields) :])  # tensorcom's batches may have more arrays than the first
            for field, tensor in zip(fields, seen.tensors, strict=False):
                field.add(tensor)
    if args.output is not None:
        write([field.panel() for field in fields], args.output)
    if args.json:
        report = {"batches": batches, "samples": samples, "fields": [field.as_json() for field in fields]}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(f"{samples:,} samples in {batches:,} batches\n\n{describe(fields)}\n")
        if args.output is not None:
            sys.stdout.write(f"\nhistograms are in {args.output}\n")
    return 0
