"""``feedmill show``: a batch as a contact sheet, in a file, a window or the terminal.

Several picture fields of a sample (image-to-image) are shown side by side.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feedmill_protocol.errors import UsageError

from .contact_sheet import contact_sheet, draw
from .half_blocks import half_blocks
from .pictures import captions, is_label, is_picture, levels, side_by_side
from .sources import Seen, add_source_arguments, open_source

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import torch

__all__ = ["Exhibit", "add_arguments", "exhibit", "run"]

_COUNT, _COLUMNS = 32, 8
"""A sheet of four rows."""

_CELL: Final = 32
"""Characters for a picture in the terminal, where there is room: enough to tell a cat from a dog."""

_OUTPUT: Final = Path("feedmill-show.png")


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """What of a batch is shown: ``images``, uint8 [N, 3, H, W], a caption for each, and the fields they come from."""

    images: torch.Tensor
    captions: list[str] | None
    fields: str

    def __str__(self) -> str:
        count = len(self.images)
        return f"{count} picture{'s' * (count > 1)} of {self.fields}"


def exhibit(seen: Seen, classes: Sequence[str], count: int) -> Exhibit:
    """Choose what to show of a batch: all its pictures, up to ``count`` samples, captioned by labels or else by keys.

    Raises `UsageError` where it has no pictures.
    """
    named = [(name, tensor[:count]) for name, tensor in zip(seen.names, seen.tensors, strict=True) if tensor.ndim]
    pictures = [(name, tensor) for name, tensor in named if is_picture(tensor)]
    if not pictures:
        shapes = ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in named)
        raise UsageError(f"the batch has no pictures, only {shapes or 'nothing'}; see its numbers with 'feedmill stat'")
    samples = len(pictures[0][1])
    pictures = [(name, tensor) for name, tensor in pictures if len(tensor) == samples]
    labels = [(name, tensor) for name, tensor in named if len(tensor) == samples and is_label(tensor)]
    words = captions([tensor for _, tensor in labels], classes) if labels else [*seen.keys[:count]]
    fields = " beside ".join(name for name, _ in pictures)
    return Exhibit(
        side_by_side([levels(tensor.cpu()) for _, tensor in pictures]),
        words or None,
        fields + (f" with {', '.join(name for name, _ in labels)}" if labels else ""),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill show``."""
    parser.epilog = "The batch is made for this alone: of a feed, no larger than --count."
    add_source_arguments(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"write a PNG (default: {_OUTPUT})")
    where.add_argument("--window", action="store_true", help="open it in the desktop's picture viewer")
    where.add_argument("--terminal", action="store_true", help="draw it here, two pixels to a character")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the labels, one on a line, from 0")
    parser.add_argument("--count", type=int, metavar="N", help=f"samples at most (default: {_COUNT}; here: two rows)")
    parser.add_argument("--columns", type=int, metavar="N", help=f"in a row (default: {_COLUMNS}; here: what fits)")
    parser.add_argument("--seed", type=int, metavar="N", help="of a feed's order and augmentation (default: 0)")
    parser.add_argument(
        "--no-shuffle", action="store_true", default=None, help="take the first samples of the first shard"
    )


def run(args: argparse.Namespace) -> int:
    """Take a batch, draw it, and say where."""
    width = shutil.get_terminal_size().columns
    columns, count = args.columns, args.count
    if columns is None:
        columns = min(_COLUMNS, max(1, width // _CELL)) if args.terminal else _COLUMNS
    if count is None:
        count = 2 * columns if args.terminal else _COUNT
    if columns < 1 or count < 1:
        raise UsageError(f"--columns {columns} and --count {count}: show 1 at least")
    if args.window and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError("--window: there is no desktop (neither DISPLAY nor WAYLAND_DISPLAY); use -o or --terminal")
    classes = [] if args.classes is None else _read_classes(args.classes)
    with open_source(args, batch_size=count) as source:
        shown = exhibit(next(source.batches()), classes, count)
    if args.terminal:
        lines = half_blocks(shown.images, shown.captions, width=width, columns=columns)
        sys.stdout.write("\n".join([*lines, str(shown)]) + "\n")
    elif args.window:
        _open_window(shown, columns)
    else:
        path = args.output or _OUTPUT
        contact_sheet(shown.images, shown.captions, path, columns=columns)
        sys.stdout.write(f"{path}: {shown}\n")
    return 0


def _read_classes(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:  # splitlines() would also split at what a class's name may have
            return [line.removesuffix("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--classes {path}: {reason}; give a text file with one name on each line") from None


def _open_window(shown: Exhibit, columns: int) -> None:
    sheet = draw(shown.images, shown.captions, columns=columns)
    from PIL import ImageShow  # noqa: PLC0415 (the thin client comes without it; draw has said so)

    if not ImageShow.show(sheet, title="feedmill"):
        raise UsageError("--window: no program to view pictures is found; use -o or --terminal")
