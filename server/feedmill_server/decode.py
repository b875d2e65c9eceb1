"""Decoders: from the bytes of a member to a Python object, chosen by the member's extension.

Images become what ``decode=`` of the pipeline says; everything else has one natural form. Nothing here can run code
that the data brings along: no pickle, no `torch.load`.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from feedmill_protocol import tenbin
from feedmill_protocol.errors import UsageError

__all__ = [
    "SCANS",
    "Decode",
    "Decoder",
    "decode_image",
    "decoder",
    "image_size",
    "is_image",
    "require_scans",
    "require_size",
]

Decoder = Callable[[str, bytes], Any]
Decode = str | bool | Decoder | Mapping[str, Any]

_IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm", "webp", "bmp"})

_FORMATS: Final = ("JPEG", "PNG", "PPM", "WEBP", "BMP")
"""Pillow opens these alone: fewer parsers face the data. The content decides, not the extension."""

_PIXELS: Final = 100_000_000
"""Images of more pixels are refused: 300 MB decoded, many times any training photograph."""

SCANS: Final = 500
"""JPEGs of more scans are refused. A progressive one has about ten; a hostile one has thousands, each of which may cost
as much as a whole picture."""

_KINDS: Final[dict[str, tuple[str, str]]] = {
    "pil": ("RGB", "pil"),
    "pill": ("L", "pil"),
    "pilrgba": ("RGBA", "pil"),
    "rgb": ("RGB", "float"),
    "rgb8": ("RGB", "uint8"),
    "l": ("L", "float"),
    "l8": ("L", "uint8"),
    "rgba": ("RGBA", "float"),
    "rgba8": ("RGBA", "uint8"),
}
IMAGE_KINDS: Final = _KINDS | {
    f"torch{kind}": (mode, f"torch {form}") for kind, (mode, form) in _KINDS.items() if form != "pil"
}
"""What ``decode="rgb8"`` and its like ask for: Pillow's mode, and a Pillow image or an HWC (or HW) array of uint8, or
of float32 in 0..1; "torchrgb8" and its like make CHW tensors."""


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image. Raises what `decode_image` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _open(data).size


def require_size(width: int, height: int) -> None:
    """Raise ValueError for an image that is too large to decode."""
    if width * height > _PIXELS:
        raise ValueError(f"the image has {width}x{height} pixels, more than {_PIXELS:,}")


def require_scans(data: bytes) -> None:
    """Raise ValueError for a JPEG that has too many scans to decode."""
    codes = np.frombuffer(data, np.uint8)  # ten times as fast as bytes.count
    scans = np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA))
    if scans > SCANS:
        raise ValueError(f"the image has {scans:,} scans, more than {SCANS}")


def decode_image(data: bytes, mode: str, form: str) -> Any:
    """Decode an image of any of the accepted formats. Raises ValueError or OSError with the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata oddities; the size is checked here
        image = _open(data)
        require_size(*image.size)
        if image.format in {"JPEG", "MPO"}:
            require_scans(data)
        image.load()
        converted = image.convert(mode)
    if form == "pil":
        return converted
    array = np.array(converted)
    if not form.endswith("uint8"):
        array = array.astype(np.float32) / np.float32(255)
    if form.startswith("torch"):
        import torch  # noqa: PLC0415 # seconds; a server's own process, which decodes nothing, does without

        return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    return array


def is_image(extension: str) -> bool:
    """Tell whether members of this extension are images; "seg.png" is one too."""
    return extension.rpartition(".")[2] in _IMAGE_EXTENSIONS


def _integer(data: bytes) -> int:
    return int(data)


def _text(data: bytes) -> str:
    return data.decode()


def _array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)  # noqa: TID251


def _arrays(data: bytes) -> Any:
    """Return the array of a ``.ten`` member, or the tuple of its arrays if it has several."""
    arrays, _ = tenbin.loads(data)
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


_NATURAL: Final[dict[str, Callable[[bytes], Any]]] = {
    "cls": _integer,
    "cls2": _integer,
    "count": _integer,
    "index": _integer,
    "inx": _integer,
    "id": _integer,
    "txt": _text,
    "text": _text,
    "transcript": _text,
    "json": json.loads,
    "jsn": json.loads,
    "npy": _array,
    "ten": _arrays,
}


def decoder(decode: Decode, *, images: str = "PIL") -> Decoder:
    """Return the decoder that ``decode=`` asks for: a function of extension and bytes.

    A kind of image ("PIL", "rgb8", …; case does not matter; True is what ``images`` says), False for the bytes as they
    are, a callable, or a dict of these by extension (for the rest, what True gives). Raises UsageError.
    """
    if callable(decode):
        return decode
    if isinstance(decode, Mapping):
        chosen = {extension.lower().lstrip("."): decoder(value, images=images) for extension, value in decode.items()}
        rest = decoder(images)
        return lambda extension, data: chosen.get(extension, rest)(extension, data)
    if decode is False:
        return lambda _, data: data
    kind = (images if decode is True else str(decode)).lower()
    if kind not in IMAGE_KINDS:
        raise UsageError(
            f"decode={decode!r}: expected an image kind ({', '.join(IMAGE_KINDS)}), True, False, a callable, "
            "or a dict of these by extension"
        )
    mode, form = IMAGE_KINDS[kind]

    def decode_member(extension: str, data: bytes) -> Any:
        if is_image(extension):
            return decode_image(data, mode, form)
        natural = _NATURAL.get(extension.rpartition(".")[2])
        return natural(data) if natural else data

    return decode_member
