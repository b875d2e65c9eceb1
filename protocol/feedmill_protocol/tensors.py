"""Tensors as the wire knows them: a closed table of dtypes, and how the tensors of a batch lie in one block.

A block is the payload of a batch: its tensors in order, little-endian, C order, each at the next multiple of
`limits.ALIGNMENT`, then the sample keys. A server builds it in place, a client receives it in place.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from . import limits

__all__ = ["ITEM_BYTES", "FieldSpec", "TensorSpec", "align", "offsets"]

ITEM_BYTES: Final = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Every dtype that may travel, under torch's name, with its size in bytes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its dtype, a key of `ITEM_BYTES`, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a stream: its name, and dtype and shape of one sample's row.

    ``channels_last`` says that rows of shape [C, H, W] lie in memory as [H, W, C]. ``scale`` and ``bias``, one number
    for each channel or none at all, are what is left to do: ``x * scale + bias``, in float32, is the row that the
    pipeline means. It is done where the row ends up, since bytes travel better than floats.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    channels_last: bool = False
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()

    def rows(self, n: int) -> TensorSpec:
        """Return the tensor that n samples of this field make: ``[n, *shape]``."""
        return TensorSpec(self.dtype, (n, *self.shape))


def align(position: int) -> int:
    """Round up to the next multiple of `limits.ALIGNMENT`."""
    return -(-position // limits.ALIGNMENT) * limits.ALIGNMENT


def offsets(tensors: Iterable[TensorSpec]) -> tuple[list[int], int]:
    """Return where in a block each tensor starts, and where the last one ends (aligned)."""
    starts, position = [], 0
    for tensor in tensors:
        starts.append(position)
        position = align(position + tensor.nbytes)
    return starts, position
