"""Records of batches, in a file that one process writes and another reads."""

import struct
from pathlib import Path
from typing import Final, NamedTuple

from faults.digests import DIGEST_BYTES

__all__ = ["RECORD_BYTES", "Record", "read"]

_FORM: Final = struct.Struct(f"<QQdd{DIGEST_BYTES}s")

RECORD_BYTES: Final = _FORM.size


class Record(NamedTuple):
    """A batch as it came: seconds are of the clock that all processes share."""

    epoch: int
    batch: int
    asked: float
    came: float
    digest: bytes

    def pack(self) -> bytes:
        """Return its form in a file."""
        return _FORM.pack(*self)


def read(path: Path) -> list[Record]:
    """Return the records of a file, whose last one may still be being written."""
    data = path.read_bytes()
    return [Record(*fields) for fields in _FORM.iter_unpack(data[: len(data) // RECORD_BYTES * RECORD_BYTES])]
