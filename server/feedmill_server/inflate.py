"""Gzip shards, inflated once into a disk cache, and from then on read like any other tar.

The rule of this file: `open` returns a descriptor, never a path. Another process may evict the file at any moment, and
a file that is open outlives that.
"""

import gzip
import hashlib
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from feedmill_protocol.errors import ShardError

from .cache import replacing, sweep

__all__ = ["INFLATED_BYTES", "InflatedCache", "is_gzip"]

INFLATED_BYTES: Final = 64 * 1024**3
"""What inflated shards may take of a disk unless told otherwise: 64 shards of 1 GiB."""

COPY_BYTES: Final = 1024 * 1024


def is_gzip(source: BinaryIO) -> bool:
    """Tell a gzip file by its first bytes; its name does not matter."""
    return os.pread(source.fileno(), 2, 0) == b"\x1f\x8b"


class InflatedCache:
    """The folder ``directory`` of inflated shards, the least recently used of which give way beyond ``max_bytes``.

    The shard that is being opened stays, however large. Processes may share the folder.
    """

    def __init__(self, directory: Path, max_bytes: int = INFLATED_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"InflatedCache({str(self._directory)!r}, max_bytes={self._max_bytes})"

    def open(self, source: BinaryIO, shard: str, alive: Callable[[], object] = lambda: None) -> BinaryIO:
        """Open the plain tar of the gzip file ``source``, inflating it first where that has not been done.

        ``source`` was opened by name; its path, size and modification time are what the cache knows it by. Raises
        `ShardError`, which names ``shard``, where ``source`` is damaged or the cache cannot be written. Calls ``alive``
        for every megabyte that it inflates.
        """
        status = os.fstat(source.fileno())
        path = os.fsencode(Path(source.name).absolute())
        identity = b"%s\0%d\0%d" % (path, status.st_size, status.st_mtime_ns)
        target = self._directory / f"{hashlib.sha256(identity).hexdigest()}.tar"
        try:
            return self._find(target) or self._inflate(source, target, alive)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ShardError(
                shard, f"its gzip stream is truncated or damaged: {error}; copy or make it again"
            ) from None
        except OSError as error:
            raise ShardError(
                shard,
                f"cannot be inflated into {self._directory}: {error.strerror}; "
                "make room there, choose another cache folder, or give plain tar files",
            ) from error

    def _find(self, target: Path) -> BinaryIO | None:
        try:
            plain = target.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # somebody else's cache: theirs to keep in order
            # Only when it was used: who has it open goes by when it was modified.
            os.utime(plain.fileno(), ns=(time.time_ns(), os.fstat(plain.fileno()).st_mtime_ns))
        return plain

    def _inflate(self, source: BinaryIO, target: Path, alive: Callable[[], object]) -> BinaryIO:
        with replacing(target) as file:
            source.seek(0)
            with gzip.GzipFile(fileobj=source) as stream:
                while piece := stream.read(COPY_BYTES):
                    file.write(piece)
                    alive()
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a file of zeros under the name
            plain = Path(file.name).open("rb", buffering=0)  # noqa: SIM115  # the caller closes it
        sweep(self._directory)
        self._evict(target)
        return plain

    def _evict(self, kept: Path) -> None:
        found = []
        for path in self._directory.glob("*.tar"):
            with suppress(OSError):  # another process evicts too
                status = path.stat()
                found.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self._max_bytes and path != kept:
                with suppress(OSError):
                    path.unlink()
                total -= size
