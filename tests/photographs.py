"""Pictures for tests: of every kind that JPEG knows, damaged in every way, and the real ones where they are."""

import io
import os
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from feedmill_server.pictures import CLASSES, draw

REAL: Final = Path(os.environ.get("FEEDMILL_TEST_SHARDS", Path(__file__).parents[2] / "shared" / "data"))
"""Where the real photographs may be, as five shards of ImageNet."""

SOI, EOI, SOF0, SOF1, SOF2, SOS = (bytes([0xFF, kind]) for kind in (0xD8, 0xD9, 0xC0, 0xC1, 0xC2, 0xDA))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw a picture with edges, areas and grain; a small one is noise, in which no error hides."""
    random = np.random.default_rng(seed)
    if min(width, height) < 32:
        return noise(width, height, seed)
    return draw(seed % len(CLASSES), width, height, random)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of independent pixels: the hardest there is."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:  # noqa: A002
    """Return an image as Pillow encodes it."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def subsampled(image: Image.Image, kind: str) -> bytes:
    """Return a JPEG of a kind of chroma subsampling that Pillow does not write."""
    return bytes(simplejpeg.encode_jpeg(np.array(image), 90, colorsubsampling=kind))


def reference(data: bytes) -> Any:
    """Return what Pillow makes of an image: int16 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB")).astype(np.int16)


KINDS: Final[dict[str, Callable[[Image.Image], bytes]]] = {
    "4:4:4": lambda image: encoded(image, subsampling="4:4:4", quality=92),
    "4:2:2": lambda image: encoded(image, subsampling="4:2:2"),
    "4:2:0": lambda image: encoded(image, subsampling="4:2:0"),
    "4:4:0": lambda image: subsampled(image, "440"),
    "4:1:1": lambda image: subsampled(image, "411"),
    "two blocks wide": lambda image: _with_factors(encoded(image.resize((272, 200)), keep_rgb=True), 0x21),
    "grey": lambda image: encoded(image.convert("L")),
    "RGB": lambda image: encoded(image, keep_rgb=True),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "YCCK": lambda image: _ycck(encoded(image.convert("CMYK"))),
    "progressive 4:4:4": lambda image: encoded(image, progressive=True, subsampling="4:4:4"),
    "progressive 4:2:0": lambda image: encoded(image, progressive=True),
    "progressive grey": lambda image: encoded(image.convert("L"), progressive=True),
    "restart markers": lambda image: encoded(image, restart_marker_blocks=3),
    "coarse": lambda image: encoded(image, quality=3),
    "rotated": lambda image: encoded(image, exif=_rotation(6)),
    "with a thumbnail": lambda image: _with_comment(encoded(image), encoded(image.resize((16, 16)))),
    "with a tail": lambda image: encoded(image) + b"tail" * 5000,
    "PNG": lambda image: encoded(image, "PNG"),
    "PNG with a palette": lambda image: encoded(image.convert("P"), "PNG"),
    "PNG with alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "WebP": lambda image: encoded(image, "WEBP"),
}
"""How pictures come, whatever their members are called."""


def _rotation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _with_factors(data: bytes, factors: int) -> bytes:
    """Give all components of an RGB JPEG the same larger sampling factors: the same blocks in another order."""
    frame = data.index(SOF0) + 10
    changed = bytearray(data)
    changed[frame + 1 : frame + 9 : 3] = bytes([factors] * 3)
    return bytes(changed)


def _ycck(cmyk: bytes) -> bytes:
    """Say in Adobe's marker that the components are YCCK; they are not, but it is read so."""
    adobe = cmyk.index(b"Adobe")
    return cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :]


def _with_comment(data: bytes, comment: bytes) -> bytes:
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]


def resized(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header lies about its size."""
    frame = data.index(SOF0)
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def of_12_bits(data: bytes) -> bytes:
    """Return a JPEG whose header says that samples have 12 bits."""
    frame = data.index(SOF0)
    return data[:frame] + SOF1 + data[frame + 2 : frame + 4] + b"\x0c" + data[frame + 5 :]


def of_many_scans(data: bytes, scans: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    last = data.rindex(SOS)
    return data[:last] + data[last:-2] * scans + EOI


@cache
def real() -> tuple[bytes, ...]:
    """Return the real photographs; skip the test where they are not."""
    shards = sorted(REAL.glob("imagenet-*.tar"))
    if not shards:
        pytest.skip(f"{REAL} does not have the real photographs")
    found = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None and member.name.endswith((".jpg", ".jpeg")):
                    found.append(file.read())
    return tuple(found)
