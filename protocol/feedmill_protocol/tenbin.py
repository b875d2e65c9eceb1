"""Tenbin, tensorcom's encoding of arrays: as the frames of a message, and as the bytes of a ``.ten`` file.

An array is two frames: a header of int64s (dtype code, eight characters of info, rank, shape), then its elements in C
order. In a file, or a message of one frame, each of these is a chunk: magic, length, content, and zeros up to the next
multiple of 64. Everything is little-endian. The rule of this file: tensorcom 0.1.0 reads what is written here as far as
it knows the dtype, and what comes in is read strictly or refused with ProtocolError.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from . import limits
from .errors import ProtocolError, UsageError
from .tensors import align

__all__ = ["Array", "Frame", "decode", "dumps", "encode", "loads"]

Array: TypeAlias = npt.NDArray[Any]
Frame: TypeAlias = bytes | bytearray | memoryview

CODES: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u8", "u4", "b1", "c8", "c16")
"""NumPy's own codes of kind and size. tensorcom reads and writes all but the last four. NumPy, and so tenbin, has none
for bfloat16."""

RANK: Final = 9
INFO_BYTES: Final = 8

MAGIC: Final = b"~TenBin~"
_CHUNK: Final = struct.Struct("<8sq")
_HEADER: Final = struct.Struct("<8s8sq")


def encode(arrays: Sequence[Array], infos: Sequence[str] | None = None) -> list[Frame]:
    """Return the frames of arrays, two for each; elements are not copied where they lie in C order.

    ``infos`` are short texts that travel with the arrays: one for each, at most eight ASCII characters. Raises
    UsageError for what tenbin cannot hold.
    """
    if not arrays:
        raise UsageError("there are no arrays; tenbin holds one at least")
    if infos is None:
        infos = [""] * len(arrays)
    if len(infos) != len(arrays):
        raise UsageError(f"infos={list(infos)!r}: expected one for each of {len(arrays)} arrays")
    frames: list[Frame] = []
    for array, info in zip(arrays, infos, strict=True):
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in CODES:
            raise UsageError(f"tenbin has no dtype {array.dtype}; convert to one of {', '.join(CODES)}")
        if array.ndim > RANK:
            raise UsageError(f"an array of {array.ndim} dimensions, where tenbin has {RANK} at most; reshape it")
        if not info.isascii() or len(info) > INFO_BYTES:
            raise UsageError(f"info {info!r}: expected at most {INFO_BYTES} ASCII characters")
        header = _HEADER.pack(code.encode(), info.encode(), array.ndim)
        elements = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        frames.append(header + np.array(array.shape, "<i8").tobytes())
        frames.append(elements.reshape(-1).view(np.uint8).data)
    return frames


def decode(frames: Sequence[Frame]) -> tuple[list[Array], list[str]]:
    """Return the arrays of frames, and their infos. Arrays are writable, and views where the frames allow it.

    Raises ProtocolError.
    """
    if not frames or len(frames) % 2:
        raise ProtocolError(f"tenbin: {len(frames)} frames; there is one array at least, and each has two")
    arrays, infos = [], []
    for index, (header, data) in enumerate(zip(frames[::2], frames[1::2], strict=True)):
        dtype, shape, info = _header(memoryview(header), f"tenbin: array {index}")
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise ProtocolError(f"tenbin: array {index}: {len(data)} bytes, where {dtype}{list(shape)} has {expected}")
        array = np.frombuffer(data, dtype).reshape(shape)
        arrays.append(array if array.flags.writeable and array.flags.aligned else array.copy())
        infos.append(info)
    return arrays, infos


def _header(header: memoryview, path: str) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    if len(header) < _HEADER.size:
        raise ProtocolError(f"{path}: a header of {len(header)} bytes, of at least {_HEADER.size}")
    found, info, rank = _HEADER.unpack_from(header)
    code = found.rstrip(b"\0").decode("latin-1")
    if code not in CODES:
        raise ProtocolError(f"{path}: expected a dtype of {', '.join(CODES)}, got {code!r}")
    if not 0 <= rank <= RANK:
        raise ProtocolError(f"{path}: expected a rank in 0..{RANK}, got {rank}")
    if len(header) != _HEADER.size + 8 * rank:
        raise ProtocolError(f"{path}: a header of {len(header)} bytes does not fit rank {rank}")
    shape = struct.unpack_from(f"<{rank}q", header, _HEADER.size)
    dtype = np.dtype("<" + code)
    # Zeros count as ones: NumPy refuses huge dimensions beside a zero.
    if any(n < 0 for n in shape) or math.prod(max(n, 1) for n in shape) * dtype.itemsize > limits.BLOCK_BYTES:
        raise ProtocolError(f"{path}: shape {list(shape)} is negative, or exceeds {limits.BLOCK_BYTES} bytes")
    if not info.isascii():
        raise ProtocolError(f"{path}: its info is not ASCII")
    return dtype, shape, info.rstrip(b"\0").decode()


def dumps(arrays: Sequence[Array], infos: Sequence[str] | None = None) -> bytes:
    """Return arrays as the bytes of a ``.ten`` file. Raises UsageError as `encode` does."""
    pieces: list[Frame] = []
    for frame in encode(arrays, infos):
        pieces += [_CHUNK.pack(MAGIC, len(frame)), frame, bytes(align(len(frame)) - len(frame))]
    return b"".join(pieces)


def loads(data: Frame) -> tuple[list[Array], list[str]]:
    """Return the arrays of a ``.ten`` file's bytes, and their infos; views of ``data`` where it is writable.

    Raises ProtocolError.
    """
    return decode(list(_chunks(memoryview(data))))


def _chunks(data: memoryview) -> Iterator[memoryview]:
    position = 0
    while position < len(data):
        path = f"tenbin: at byte {position}"
        if len(data) - position < _CHUNK.size:
            raise ProtocolError(f"{path}: {len(data) - position} bytes are left over")
        magic, length = _CHUNK.unpack_from(data, position)
        if magic != MAGIC:
            raise ProtocolError(f"{path}: expected {MAGIC!r}, got {magic!r}")
        start = position + _CHUNK.size
        position = start + align(length)
        if length < 0 or position > len(data):
            raise ProtocolError(f"{path}: a chunk of {length} bytes, with {len(data) - start} left")
        yield data[start : start + length]
