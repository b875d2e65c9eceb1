"""The contact sheet of a batch: pictures copied out of its slot, and drawn by whoever wants to see them.

The rule of this file: `copy` runs in the server's own thread and copies a few megabytes at most; all else is `draw`'s.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from feedmill_protocol.tensors import FieldSpec, offsets

from .builds import Build
from .slots import Slot

__all__ = ["Strip", "copy", "draw", "shows"]

_Pixels: TypeAlias = NDArray[Any]

_PICTURES: Final = 24
_COLUMNS: Final = 8
_TILE: Final = 144
"""Pixels of a side of the square that a picture is fitted into: three rows of eight fill a page."""

_GAP: Final = 4

_COPIED: Final = 8 * 1024 * 1024
"""Bytes that are copied at a time: 1 ms. Of pictures that are larger, fewer are shown."""

_SHOWN: Final = frozenset({"uint8", "float16", "float32", "float64"})
_QUALITY: Final = 85


class Strip(NamedTuple):
    """Pictures of a batch: an array of shape [N, H, W, C] with 1 or 3 channels, uint8 or floats of any range."""

    stream: str
    epoch: int
    batch: int
    pixels: _Pixels


def shows(fields: Sequence[FieldSpec]) -> bool:
    """Tell whether one of the fields of a stream is a picture, as far as can be told by shape and dtype."""
    return any(map(_is_picture, fields))


def copy(build: Build[Slot]) -> Strip | None:
    """Copy some pictures of a finished batch; None if it has none, or its slot is somebody else's by now."""
    fields, rows = build.stream.fields, len(build.keys)
    place = next((i for i, field in enumerate(fields) if _is_picture(field)), None)
    if place is None or build.slot is None or not rows:
        return None
    field = fields[place]
    starts, _ = offsets(f.rows(rows) for f in fields)
    height, width = field.shape[1:] if _channels_first(field) else field.shape[:2]
    step = max(1, min(height, width) // (2 * _TILE))  # draw makes them smaller anyway
    count = min(rows, _PICTURES, max(1, _COPIED * step * step // max(1, field.rows(1).nbytes)))
    items = np.frombuffer(build.slot.memory, field.dtype, count * math.prod(field.shape), starts[place])
    if _channels_first(field) and not field.channels_last:
        pixels = items.reshape(count, *field.shape).transpose(0, 2, 3, 1)
    else:
        pixels = items.reshape(count, height, width, -1)
    return Strip(build.stream.name, build.get.epoch, build.get.batch, pixels[:, ::step, ::step].copy())


def draw(strip: Strip) -> bytes:
    """Return a JPEG of all pictures in rows, on a background of grey that is neither theirs nor the page's."""
    count, height, width, channels = strip.pixels.shape
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (size[0] + _GAP) - _GAP, rows * (size[1] + _GAP) - _GAP), "#808080")
    for number, pixels in enumerate(_levels(strip.pixels)):
        picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).convert("RGB")
        row, column = divmod(number, columns)
        tile = picture.resize(size, Image.Resampling.BILINEAR)
        sheet.paste(tile, (column * (size[0] + _GAP), row * (size[1] + _GAP)))
    jpeg = io.BytesIO()
    sheet.save(jpeg, "JPEG", quality=_QUALITY)
    return jpeg.getvalue()


def _is_picture(field: FieldSpec) -> bool:
    return field.dtype in _SHOWN and len(field.shape) == 3 and 0 not in field.shape and _channels(field) in {1, 3}


def _channels(field: FieldSpec) -> int:
    return field.shape[0] if _channels_first(field) else field.shape[2]


def _channels_first(field: FieldSpec) -> bool:
    return field.channels_last or field.shape[0] in {1, 3}


def _levels(pixels: _Pixels) -> NDArray[np.uint8]:
    """Return bytes. Floats in 0..1 are taken as what they are; others, normalised say, are stretched to that."""
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    return (values * 255).round().astype(np.uint8)
