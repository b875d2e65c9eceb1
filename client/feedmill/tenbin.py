"""``.ten`` files, tensorcom's: lists of arrays, each with a short text if need be.

``tenbin.save("batch.ten", images, labels)`` and ``images, labels = tenbin.load("batch.ten")``, as in tensorcom.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from feedmill_protocol import tenbin
from feedmill_protocol.errors import DataError, ProtocolError, UsageError

__all__ = ["as_array", "load", "save"]


def as_array(value: Any) -> tenbin.Array:
    """Return an array as it is, and a tensor, wherever it is, as an array. Raises UsageError for anything else."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return value.numpy(force=True)  # type: ignore[no-any-return]
    except (AttributeError, TypeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise UsageError(f"{kind} is no array ({error}); give arrays or tensors of one of NumPy's dtypes") from None


def save(path: str | PathLike[str], *arrays: Any, infos: Sequence[str] | None = None) -> None:
    """Write arrays or tensors to a file, with ``infos``: texts of at most eight ASCII characters, one for each.

    Raises UsageError for what tenbin cannot hold (more than nine dimensions, bfloat16, what is no number), OSError.
    """
    Path(path).write_bytes(tenbin.dumps([as_array(array) for array in arrays], infos))


@overload
def load(path: str | PathLike[str], *, infos: Literal[False] = False) -> list[tenbin.Array]: ...
@overload
def load(path: str | PathLike[str], *, infos: Literal[True]) -> tuple[list[tenbin.Array], list[str]]: ...


def load(
    path: str | PathLike[str], *, infos: bool = False
) -> list[tenbin.Array] | tuple[list[tenbin.Array], list[str]]:
    """Return the arrays of a file, and with ``infos=True`` also their infos.

    They share one memory, and may be written to. Raises UsageError for no such file, DataError for a damaged one.
    """
    try:
        data = bytearray(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        arrays, texts = tenbin.loads(data)
    except ProtocolError as error:
        raise DataError(f"{path} is no .ten file, or damaged: {error}") from None
    return (arrays, texts) if infos else arrays
