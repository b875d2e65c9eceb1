"""Shards, indexed and opened for random access.

The rule of this file: an index belongs to one state of a file, told by its size and modification time. A stored index
of another state counts for nothing, and a shard that changes while it is in use is an error, never other samples under
the same names.
"""

import hashlib
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from feedmill_protocol.errors import ShardError

from .cache import replacing, user_cache
from .index import ShardIndex
from .inflate import INFLATED_BYTES, InflatedCache, is_gzip
from .listing import names
from .tar import walk

__all__ = ["Shard", "ShardStore", "Stamp"]

OPEN_SHARDS: Final = 256
"""Each keeps a descriptor, and a process may usually have 1024. The stores of a server share this."""

_STAMP: Final = struct.Struct("<qq")

_log = logging.getLogger(__name__)


class Stamp(NamedTuple):
    """Tells one state of a file from another."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> Self:
        """Return the present state of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns)


class Shard:
    """An open shard: its ``name``, its ``index``, and the ``descriptor`` of the plain tar, which it closes.

    Bytes are read, not mapped: of a file that was cut short, or of a disk that fails, a mapping kills its process.
    """

    def __init__(self, name: str, index: ShardIndex, descriptor: int, stamp: Stamp) -> None:
        self.name = name
        self.index = index
        self.closed = False
        self._descriptor = descriptor
        self._stamp = stamp

    def __repr__(self) -> str:
        return f"<Shard {self.name}, {'closed' if self.closed else 'open'}: {self.index!r}>"

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``. Raises ShardError if they cannot be read, or the file has changed."""
        if not 0 <= offset <= offset + size <= self._stamp.size:
            raise ShardError(
                self.name,
                f"{size:,} bytes at offset {offset:,} are not within its {self._stamp.size:,} bytes; "
                "delete its stored index, and make the shard again if that does not help",
            )
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
                data += more
            stamp = Stamp.of(self._descriptor)
        except OSError as error:
            raise ShardError(
                self.name, f"{size:,} bytes at offset {offset:,} cannot be read: {error.strerror}; check its disk"
            ) from error
        if stamp != self._stamp or len(data) < size:
            raise _changed(self.name)
        return data

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill the buffers one after the other with what begins at ``offset``. Raises what `read` raises."""
        size = sum(buffer.nbytes for buffer in buffers)
        try:
            whole = os.preadv(self._descriptor, buffers, offset) == size and Stamp.of(self._descriptor) == self._stamp
        except OSError:
            whole = False
        if not whole:  # cut short, which a network disk may do, or something is wrong: `read` knows what
            data = memoryview(self.read(offset, size))
            for buffer in buffers:
                buffer[:] = data[: buffer.nbytes]
                data = data[buffer.nbytes :]

    def close(self) -> None:
        """Let go of the file."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardStore:
    """The shards at ``paths``, known by their place in that list and called ``names``.

    Indexes are stored in ``cache``; without one, in a folder ``.feedmill`` beside each shard, or where that cannot be
    written in the user's cache. Gzip shards are inflated into the same ``cache``, up to ``inflated_bytes`` of them.
    ``stamps``, taken from another store of the same paths, are the states in which that one saw the shards. At most
    ``open_shards`` are open at a time. To inflate or scan a shard may take minutes; ``alive`` is called again and again
    meanwhile.

    `index` and `stored` may be called from several threads, `open` from one.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        cache: Path | None = None,
        inflated_bytes: int = INFLATED_BYTES,
        stamps: Sequence[Stamp | None] | None = None,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        self.paths = tuple(paths)
        self.names = tuple(names(paths))
        self.alive: Callable[[], object] = lambda: None
        self._stamps: list[Stamp | None] = list(stamps or [None] * len(paths))
        self._cache = cache
        self._inflated = InflatedCache((cache or user_cache()) / "inflated", inflated_bytes)
        self._open: dict[int, Shard] = {}
        self._open_shards = open_shards
        self._warned = False

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"<ShardStore: {len(self)} shards, {len(self._open)} of them open>"

    @property
    def stamps(self) -> tuple[Stamp | None, ...]:
        """The state of each shard, None for those that were not used yet."""
        return tuple(self._stamps)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of each shard that was used."""
        return tuple(stamp.size for stamp in self._stamps if stamp)

    def index(self, i: int) -> ShardIndex:
        """Return the index of shard ``i``, from the cache or from a walk through its headers.

        Raises `ShardError` for a shard that cannot be read, is damaged, or is not what it was.
        """
        with self._source(i) as source:
            return self._index(i, source)

    def stored(self, i: int) -> Path | None:
        """Return where the index of shard ``i``, as it is now, is stored; None where it is not."""
        with self._source(i) as source:
            stamp = Stamp.of(source.fileno())
        return next((place for place in self._places(i) if _load(place, stamp)), None)

    def open(self, i: int) -> Shard:
        """Return shard ``i``, open. The store closes it, at the latest when so many others have been opened since.

        Raises what `index` raises.
        """
        shard = self._open.pop(i, None)
        if shard is None or shard.closed:
            with self._source(i) as source:
                index = self._index(i, source)
                with self._plain(i, source) as plain:
                    stamp = self._stamp(i, source) if plain is source else Stamp.of(plain.fileno())
                    shard = Shard(self.names[i], index, os.dup(plain.fileno()), stamp)
        self._open[i] = shard
        while len(self._open) > self._open_shards:
            self._open.pop(next(iter(self._open))).close()
        return shard

    def close(self) -> None:
        """Close all shards. The store may be used again."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _source(self, i: int) -> Iterator[BinaryIO]:
        path = self.paths[i]
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a named pipe would block
                raise ShardError(self.names[i], f"{path} is no file; give the shards in a folder as '{path}/*.tar'")
            with path.open("rb", buffering=0) as source:
                yield source
        except OSError as error:
            remedy = "let the server's user read it" if isinstance(error, PermissionError) else "check path and disk"
            raise ShardError(self.names[i], f"{path} cannot be read: {error.strerror}; {remedy}") from error

    def _plain(self, i: int, source: BinaryIO) -> AbstractContextManager[BinaryIO]:
        if not is_gzip(source):
            return nullcontext(source)
        return self._inflated.open(source, self.names[i], self.alive)

    def _index(self, i: int, source: BinaryIO) -> ShardIndex:
        stamp = self._stamp(i, source)
        places = self._places(i)
        for place in places:
            if index := _load(place, stamp):
                break
        else:
            with self._plain(i, source) as plain:
                index = ShardIndex.build(walk(_Slices(plain, self.alive), self.names[i]), self.names[i])
            self._stamp(i, source)  # it may have been written to meanwhile
            self._save(index, stamp, places)
        return index

    def _stamp(self, i: int, source: BinaryIO) -> Stamp:
        stamp = Stamp.of(source.fileno())
        if self._stamps[i] is None:
            self._stamps[i] = stamp
        elif self._stamps[i] != stamp:
            raise _changed(self.names[i])
        return stamp

    def _places(self, i: int) -> list[Path]:
        path = self.paths[i]
        identity = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        if self._cache:
            return [self._cache / "indexes" / identity]
        return [path.parent / ".feedmill" / f"{path.name}.index", user_cache() / "indexes" / identity]

    def _save(self, index: ShardIndex, stamp: Stamp, places: Sequence[Path]) -> None:
        for place in places:
            try:
                with replacing(place) as file:
                    file.write(_STAMP.pack(*stamp) + index.to_bytes())
            except OSError as error:
                failure = f"{place}: {error.strerror}"
            else:
                return
        if not self._warned:
            self._warned = True
            _log.warning("indexes cannot be stored (%s); shards will be scanned at every start", failure)


def _changed(shard: str) -> ShardError:
    return ShardError(
        shard, "changed since it was indexed; leave shards alone while they are served, and restart the servers"
    )


class _Slices:
    """A file to walk through: positional reads, during which other threads run, and which survive its shrinking."""

    def __init__(self, file: BinaryIO, alive: Callable[[], object]) -> None:
        self._descriptor = file.fileno()
        self._alive = alive
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        self._alive()
        return os.pread(self._descriptor, span.stop - span.start, span.start)


def _load(place: Path, stamp: Stamp) -> ShardIndex | None:
    try:
        data = place.read_bytes()
        if data[: _STAMP.size] == _STAMP.pack(*stamp):
            return ShardIndex.from_bytes(data[_STAMP.size :])
        _log.debug("the index %s is of another state of its shard", place)
    except (OSError, ValueError) as error:
        _log.debug("the index %s cannot be used: %s", place, error)
    return None
