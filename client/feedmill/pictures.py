"""What can be shown of a batch: which of its tensors are pictures, which are labels, and how both are made visible.

Streams name their fields but do not say what they mean, so shapes and dtypes decide. Pictures are [N, C, H, W],
[N, H, W, C] or [N, H, W]; labels are [N] or [N, 1], or [N, K] with a distribution over K classes in each row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from feedmill_protocol.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["captions", "is_label", "is_picture", "levels", "side_by_side"]

_CHANNELS: Final = (1, 3, 4)

_SIDE: Final = 8
"""Pixels: what is smaller is no picture, and [N, 3, 1, 1] certainly not."""

_SLACK: Final = 0.05
"""How far floats may go beyond 0..1 and still be shown as they are: what a bicubic resize overshoots."""

_GAP: Final = 2
"""White pixels between pictures that belong together."""


def is_picture(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a batch of pictures."""
    if tensor.is_complex() or 0 in tensor.shape:
        return False
    if tensor.ndim == 3:
        return min(tensor.shape[1:]) >= _SIDE
    return tensor.ndim == 4 and _channels_first(tensor) is not None


def _channels_first(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return [N, C, H, W], whatever a 4-dimensional tensor has its channels at; None where it has none."""
    for candidate in (tensor, tensor.permute(0, 3, 1, 2)):
        if candidate.shape[1] in _CHANNELS and min(candidate.shape[2:]) >= _SIDE:
            return candidate
    return None


def is_label(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds a label, or a distribution over labels, for each sample."""
    if tensor.is_complex() or not 1 <= tensor.ndim <= 2 or 0 in tensor.shape:
        return False
    return tensor.ndim == 1 or tensor.shape[1] == 1 or _is_distribution(tensor)


def _is_distribution(tensor: torch.Tensor) -> bool:
    rows = tensor.double()
    return bool((rows >= 0).all() and torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-2))  # 1e-2: bfloat16


def levels(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures as uint8 [N, 3, H, W], without an alpha channel.

    uint8 stays as it is, floats in 0..1 become 0..255. Others are stretched, each channel from its least value in the
    batch to its greatest: that undoes a normalisation, of a batch that has black and white somewhere.
    """
    images = pictures[:, None] if pictures.ndim == 3 else _channels_first(pictures)
    if images is None:
        raise UsageError(f"a tensor of shape {list(pictures.shape)} holds no pictures")
    images = images[:, :3]
    if images.dtype != torch.uint8:
        images = _bytes(images.double())
    return images.expand(-1, 3, -1, -1)


def _bytes(images: torch.Tensor) -> torch.Tensor:
    finite = torch.where(images.isfinite(), images, torch.nan)
    low, high = (
        torch.nan_to_num(finite, nan=worst).amax((0, 2, 3), keepdim=True) * sign
        for finite, worst, sign in ((-finite, -math.inf, -1), (finite, -math.inf, 1))
    )
    if not (low.min() >= -_SLACK and high.max() <= 1 + _SLACK):
        images = (images - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    return (torch.nan_to_num(images, nan=0.0) * 255).round().clamp(0, 255).byte()


def side_by_side(fields: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join uint8 [N, 3, H, W] of several fields to one picture for each sample, on white where they are lower."""
    height = max(images.shape[2] for images in fields)
    pieces: list[torch.Tensor] = []
    for images in fields:
        below = height - images.shape[2]
        right = _GAP if images is not fields[-1] else 0
        pieces.append(torch.nn.functional.pad(images, (0, right, 0, below), value=255))
    return torch.cat(pieces, 3)


def captions(labels: Sequence[torch.Tensor], classes: Sequence[str]) -> list[str]:
    """Return a caption for each sample from its labels: names of ``classes`` where there are any, or numbers."""
    columns = [_column(label, classes) for label in labels]
    return [", ".join(words) for words in zip(*columns, strict=True)]


def _column(label: torch.Tensor, classes: Sequence[str]) -> list[str]:
    if label.ndim == 2:
        label = label[:, 0] if label.shape[1] == 1 else label.argmax(1)
    return [_word(value, classes) for value in label.tolist()]


def _word(value: float, classes: Sequence[str]) -> str:
    if isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
