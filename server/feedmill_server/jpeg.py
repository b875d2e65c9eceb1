"""JPEG back ends: where the time of a server goes.

A back end decodes a region of a JPEG to RGB. ``turbo`` (libjpeg-turbo 3, by ctypes) decodes no more than the region
needs; ``simplejpeg`` and ``pillow`` decode the whole picture and cut. All three are builds of libjpeg-turbo with its
accurate DCT and smooth upsampling. What the first two refuse (CMYK, 12 bits, damage) goes to Pillow, which decodes it
or says what is wrong: there is one judge of what an image is.
"""

import ctypes
import ctypes.util
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch

from feedmill_protocol.errors import PipelineError

from .decode import SCANS, decode_image, image_size, require_scans

__all__ = ["BACKENDS", "Backend", "Region", "choose"]


class Region(NamedTuple):
    """A box of pixels."""

    top: int
    left: int
    height: int
    width: int


class Refused(Exception):
    """A back end does not decode this; Pillow may."""


class Backend(Protocol):
    """Decodes JPEGs. One for each worker: a back end keeps state between calls, and is not thread-safe."""

    name: str

    def size(self, data: bytes) -> tuple[int, int]:
        """Return width and height. Raises Refused."""

    def decode(self, data: bytes, region: Region) -> torch.Tensor:
        """Return a region in RGB: uint8 [height, width, 3]. Raises Refused."""


class Pillow:
    """The back end that is always there."""

    name = "pillow"

    def size(self, data: bytes) -> tuple[int, int]:
        """See `Backend.size`; raises what Pillow raises."""
        return image_size(data)

    def decode(self, data: bytes, region: Region) -> torch.Tensor:
        """See `Backend.decode`; raises what Pillow raises."""
        return _cut(np.array(decode_image(data, "RGB", "pil")), region)


class SimpleJpeg:
    """The simplejpeg package: wheels for every platform, whole pictures only."""

    name = "simplejpeg"

    def __init__(self) -> None:
        import simplejpeg  # noqa: PLC0415 # optional

        self._library = simplejpeg

    def size(self, data: bytes) -> tuple[int, int]:
        """See `Backend.size`."""
        try:
            height, width, colors, _ = self._library.decode_jpeg_header(data)
        except ValueError as error:
            raise Refused(str(error)) from None
        if colors not in {"YCbCr", "Gray", "RGB"}:
            raise Refused(f"colours are {colors}")
        return width, height

    def decode(self, data: bytes, region: Region) -> torch.Tensor:
        """See `Backend.decode`; raises ValueError for too many scans."""
        require_scans(data)
        try:
            return _cut(self._library.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False), region)
        except ValueError as error:
            raise Refused(str(error)) from None


def _cut(picture: np.ndarray[Any, np.dtype[np.uint8]], region: Region) -> torch.Tensor:
    top, left, height, width = region
    return torch.from_numpy(picture[top : top + height, left : left + width])


class _Box(ctypes.Structure):
    """tjregion of turbojpeg.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class Turbo:
    """libjpeg-turbo 3 or later: decodes the rows and columns of a region alone."""

    name = "turbo"

    # enum TJINIT, TJPARAM, TJSAMP, TJCS and TJPF of turbojpeg.h
    _DECOMPRESS: Final = 1
    _STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORSPACE, _SCAN_LIMIT = 0, 4, 5, 6, 7, 8, 13
    _RGB, _YCBCR, _GRAY = 0, 1, 2
    _PIXELS_RGB: Final = 0

    _MCU_WIDTH: Final = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}
    """Pixels of a coding unit for each kind of chroma subsampling; a region must begin at a multiple."""

    _MARGIN: Final = 1
    """Pixels around a region that smooth upsampling looks at; with them, a region is equal to the cut-out picture."""

    _LEAST: Final = 4
    """Columns decoded at least: chroma that is less than two samples wide is not smoothed."""

    _END: Final = b"\xff\xd9"
    _TAIL: Final = 4096
    """Where the end marker is looked for. Without it the file is cut short, which a region near its top would not tell,
    or has a long tail of something else, which is rare enough to be Pillow's business."""

    def __init__(self) -> None:
        self._library = _load_turbo()
        self._handle = None
        self._at: bytes | None = None  # whose header was the last that was read

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.tj3Destroy(handle)

    def size(self, data: bytes) -> tuple[int, int]:
        """See `Backend.size`."""
        # A new decoder for each picture, in 2 µs: one that was used keeps the tables of the last picture for a next one
        # that has none, and may be left in the middle of a header.
        self.__del__()
        self._at = None
        self._handle = self._library.tj3Init(self._DECOMPRESS)
        for parameter, value in ((self._STOP_ON_WARNING, 1), (self._SCAN_LIMIT, SCANS)):
            self._check(self._library.tj3Set(self._handle, parameter, value))
        self._check(self._library.tj3DecompressHeader(self._handle, data, len(data)))
        if self._get(self._PRECISION) != 8 or self._get(self._COLORSPACE) not in {self._RGB, self._YCBCR, self._GRAY}:
            raise Refused("not 8 bits of RGB, YCbCr or grey")
        self._at = data
        return self._get(self._WIDTH), self._get(self._HEIGHT)

    def decode(self, data: bytes, region: Region) -> torch.Tensor:
        """See `Backend.decode`."""
        if data.find(self._END, -self._TAIL) < 0:
            raise Refused("no end marker")
        if self._at is not data:
            self.size(data)
        self._at = None  # it decodes once
        width, height = self._get(self._WIDTH), self._get(self._HEIGHT)
        unit = self._MCU_WIDTH.get(self._get(self._SUBSAMPLING))
        if unit is None:
            raise Refused("unusual chroma subsampling")
        top = max(0, region.top - self._MARGIN)
        bottom = min(height, region.top + region.height + self._MARGIN)
        right = min(width, max(region.left + region.width + self._MARGIN, self._LEAST))
        left = max(0, min(region.left - self._MARGIN, right - self._LEAST)) // unit * unit
        picture = torch.empty((bottom - top, right - left, 3), dtype=torch.uint8)
        self._check(self._library.tj3SetCroppingRegion(self._handle, _Box(left, top, right - left, bottom - top)))
        pixels = picture.data_ptr()
        self._check(self._library.tj3Decompress8(self._handle, data, len(data), pixels, 0, self._PIXELS_RGB))
        y, x = region.top - top, region.left - left
        return picture[y : y + region.height, x : x + region.width]

    def _get(self, parameter: int) -> int:
        return int(self._library.tj3Get(self._handle, parameter))

    def _check(self, status: int) -> None:
        if status:
            raise Refused(self._library.tj3GetErrorStr(self._handle).decode(errors="replace"))


def _load_turbo() -> ctypes.CDLL:
    """Find a libturbojpeg that can crop: in the `turbojpeg` wheel, or on the system. Raises OSError."""
    for path in _turbo_paths():
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
            for name, result, arguments in (
                ("tj3Init", handle, [ctypes.c_int]),
                ("tj3Destroy", None, [handle]),
                ("tj3Get", ctypes.c_int, [handle, ctypes.c_int]),
                ("tj3Set", ctypes.c_int, [handle, ctypes.c_int, ctypes.c_int]),
                ("tj3GetErrorStr", text, [handle]),
                ("tj3DecompressHeader", ctypes.c_int, [handle, text, size]),
                ("tj3SetCroppingRegion", ctypes.c_int, [handle, _Box]),
                ("tj3Decompress8", ctypes.c_int, [handle, text, size, handle, ctypes.c_int, ctypes.c_int]),
            ):
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    raise OSError("there is no libturbojpeg 3 here; pip install turbojpeg")


def _turbo_paths() -> Iterator[str]:
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("turbojpeg") or ():
            if file.name.startswith("libturbojpeg"):
                yield str(file.locate())
    if found := ctypes.util.find_library("turbojpeg"):
        yield found


BACKENDS: Final[dict[str, Callable[[], Backend]]] = {"turbo": Turbo, "simplejpeg": SimpleJpeg, "pillow": Pillow}
"""Back ends by name, the fastest first."""


def choose(name: str = "") -> Backend:
    """Return a back end: the one that is named, or the fastest that is there. Raises PipelineError."""
    for candidate in [name] if name else BACKENDS:
        try:
            return BACKENDS[candidate]()
        except KeyError:
            raise PipelineError(f"there is no JPEG decoder {name!r}; there are {', '.join(BACKENDS)}") from None
        except (OSError, ImportError) as error:
            if name:
                raise PipelineError(f"the JPEG decoder {name!r} cannot be used: {error}") from None
    raise PipelineError("there is no JPEG decoder")
