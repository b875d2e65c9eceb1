"""Draws a batch of images as one picture, each with a caption: the quickest way to see what a trainer sees.

The thin client comes without Pillow, so this module imports it only when it draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from feedmill_protocol.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image, ImageFont

__all__ = ["contact_sheet", "draw"]

_MARGIN: Final = 8
"""Pixels around each image."""

_TEXT: Final = 13
"""Height of captions in pixels; the line takes half as much again."""

_READABLE: Final = 112
"""Narrower images are enlarged to at least this many pixels, so that a caption of a word or two fits."""

_PAPER: Final = "#ffffff"
_INK: Final = "#30343b"


def contact_sheet(
    images: torch.Tensor,
    captions: Sequence[str] | None,
    path: Path,
    *,
    columns: int = 8,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Write what `draw` makes of the rest to the PNG file `path`. Raises `UsageError` as it does, and for the file."""
    sheet = draw(images, captions, columns=columns, mean=mean, std=std)
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise UsageError(f"cannot write the contact sheet {path}: {error.strerror or error}") from error


def draw(
    images: torch.Tensor,
    captions: Sequence[str] | None,
    *,
    columns: int = 8,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Image.Image:
    """Draw `images`, `columns` in a row, each above its caption.

    `images` is [N, C, H, W] with one or three channels, on any device and in any memory format. uint8 is shown as
    it is; floats are multiplied by `std`, added to `mean`, and shown with 0 as black and 1 as white. Small images
    are enlarged by a whole factor, long captions are cut. Needs Pillow; raises `UsageError` where it is missing, and
    where the arguments do not fit together.
    """
    _check(images, captions, columns, mean, std)
    try:
        from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 (the thin client comes without it)
    except ImportError as error:
        raise UsageError(
            "a contact sheet is drawn with Pillow, which is not installed; pip install 'feedmill[server]'"
        ) from error
    count, _, height, width = images.shape
    factor = -(-_READABLE // width)
    font = ImageFont.load_default(_TEXT)
    line = _TEXT * 3 // 2 if captions is not None else 0
    cell = (width * factor + _MARGIN, height * factor + line + _MARGIN)
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, pixels in enumerate(_levels(images, mean, std).numpy()):
        left, top = _MARGIN + number % columns * cell[0], _MARGIN + number // columns * cell[1]
        image = Image.fromarray(pixels)
        sheet.paste(image.resize((width * factor, height * factor), Image.Resampling.BICUBIC), (left, top))
        if captions is not None:
            caption = _shortened(captions[number], width * factor, font)
            pen.text((left, top + height * factor + 2), caption, _INK, font)
    return sheet


def _check(
    images: torch.Tensor,
    captions: Sequence[str] | None,
    columns: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    shape = list(images.shape)
    if len(shape) != 4 or 0 in shape or shape[1] not in (1, 3):
        raise UsageError(f"images of shape {shape} are no [N, C, H, W] with one or three channels")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"images of {images.dtype} cannot be shown; convert them to uint8 or float32")
    if captions is not None and len(captions) != shape[0]:
        raise UsageError(f"{len(captions)} captions do not fit {shape[0]} images; give one for each")
    if columns < 1:
        raise UsageError(f"columns={columns} must be at least 1")
    if not len(mean) == len(std) == 3:
        raise UsageError(f"mean={tuple(mean)} and std={tuple(std)} must have three values each")


def _levels(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return uint8 [N, H, W, 3] on the CPU."""
    images = images.detach().cpu()
    if images.is_floating_point():
        images = images.float().expand(-1, 3, -1, -1)
        images = images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        images = (images * 255).round().clamp(0, 255).byte()
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


def _shortened(caption: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut `caption` so that it is at most `width` pixels wide."""
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "…") > width:
        caption = caption[:-1]
    return caption.rstrip() + "…"
