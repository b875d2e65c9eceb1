"""Pictures in a terminal: two pixels in each character, as the colours of its upper and its lower half.

Needs 24-bit colour, which terminals of today have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["half_blocks"]

_RESET: Final = "\x1b[0m"


def half_blocks(images: torch.Tensor, captions: Sequence[str] | None, *, width: int, columns: int) -> list[str]:
    """Return the lines of a contact sheet in at most ``width`` characters, ``columns`` pictures in a row.

    ``images`` are uint8 [N, 3, H, W]. Long captions are cut.
    """
    columns = min(columns, len(images))
    cell = max(1, width // columns - 1)
    small = _fitted(images, cell)
    lines: list[str] = []
    for first in range(0, len(small), columns):
        row = small[first : first + columns]
        drawn = [_picture(pixels) for pixels in row]
        lines += [" ".join(parts) for parts in zip(*drawn, strict=True)]
        if captions is not None:
            lines.append(" ".join(c[: row.shape[3]].ljust(row.shape[3]) for c in captions[first : first + len(row)]))
    return lines


def _fitted(images: torch.Tensor, width: int) -> torch.Tensor:
    """Return the images at most ``width`` pixels wide, with an even number of rows."""
    _, _, height, across = images.shape
    width = min(width, across)
    rows = max(2, 2 * round(height * width / across / 2))
    return functional.interpolate(images.float(), (rows, width), mode="area").round().byte()


def _picture(pixels: torch.Tensor) -> list[str]:
    """Return the lines of one picture, [3, H, W] with an even H."""
    rows = pixels.permute(1, 2, 0).tolist()
    return [
        "".join(_character(upper, lower) for upper, lower in zip(*pair, strict=True)) + _RESET
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]


def _character(upper: Sequence[int], lower: Sequence[int]) -> str:
    (r, g, b), (red, green, blue) = upper, lower
    return f"\x1b[38;2;{r};{g};{b};48;2;{red};{green};{blue}m▀"
