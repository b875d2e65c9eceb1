"""Which samples a shard has, and where their members lie.

The rule of this file: WebDataset's conventions, strictly. The key of a member is its path up to the first dot of its
base name; the rest, in lower case, is its extension. Members that follow each other under one key are a sample. What
readers would disagree about (an extension twice, a key that comes back) is an error.
"""

import hashlib
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from feedmill_protocol import limits
from feedmill_protocol.errors import ShardError
from feedmill_protocol.messages import shorten

from .tar import Member

__all__ = ["ShardIndex"]

VERSION: Final = 1
CHECKSUM_BYTES: Final = 4

KEY_BYTES: Final = limits.KEYS_BYTES // limits.BATCH_SAMPLES - 1
"""The longest key: 1,023 bytes of UTF-8, so that the keys of any batch, with a NUL behind each, can be sent."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ShardIndex:
    """The n samples of a shard and their m members.

    Sample i has the members ``starts[i]`` to ``starts[i + 1]`` (int64, n + 1). Member j is ``sizes[j]`` bytes at
    ``offsets[j]`` (int64, m) with the extension ``extensions[kinds[j]]`` (int32, m). ``ignored`` counts the members
    that are of no sample.
    """

    extensions: tuple[str, ...]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    kinds: NDArray[np.int32]
    ignored: int
    keys: bytes
    """UTF-8, each key with a NUL behind it: a list of strings would take more memory than all the rest."""
    key_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"<ShardIndex: {len(self)} samples of {' '.join(self.extensions)}; {self.ignored} members ignored>"

    def key(self, i: int) -> str:
        """Return the key of sample ``i``."""
        i = range(len(self))[i]
        return self.keys[self.key_starts[i] : self.key_starts[i + 1] - 1].decode()

    def members(self, i: int) -> dict[str, tuple[int, int]]:
        """Return the members of sample ``i``: for each extension, the offset and size in the shard."""
        i = range(len(self))[i]
        span = slice(self.starts[i], self.starts[i + 1])
        extensions = (self.extensions[kind] for kind in self.kinds[span])
        places = zip(self.offsets[span].tolist(), self.sizes[span].tolist(), strict=True)
        return dict(zip(extensions, places, strict=True))

    def counts(self) -> dict[str, int]:
        """Return the number of samples that have each extension."""
        counts = np.bincount(self.kinds, minlength=len(self.extensions)).tolist()
        return dict(zip(self.extensions, counts, strict=True))

    @classmethod
    def build(cls, members: Iterable[Member], shard: str) -> Self:
        """Group ``members`` into samples.

        Members without a key or an extension (``LICENSE``, ``.DS_Store``, ``._x.jpg``) and those whose base name
        begins with ``__`` are ignored. Raises `ShardError`, which names ``shard``, where the rest makes no samples.
        """
        kinds: dict[str, int] = {}
        keys: dict[str, None] = {}
        starts, offsets, sizes, member_kinds = array("q"), array("q"), array("q"), array("i")
        current, present, ignored = "", set[int](), 0
        for name, offset, size in members:
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem or not extension or base.startswith("__"):
                ignored += 1
                continue
            key = folder + slash + stem
            if key != current:
                _check_key(key, keys, shard)
                keys[key] = None
                starts.append(len(offsets))
                current, present = key, set()
            kind = kinds.setdefault(extension.lower(), len(kinds))
            if kind in present:
                raise ShardError(
                    shard,
                    f"sample {key} has two members with the extension {extension.lower()}, the second at offset "
                    f"{offset:,}; give samples different keys, and members of a sample different extensions",
                )
            present.add(kind)
            offsets.append(offset)
            sizes.append(size)
            member_kinds.append(kind)
        if not keys:
            raise ShardError(
                shard,
                f"has no sample: none of its {ignored:,} members is named like 0001.jpg, with a key and an extension",
            )
        starts.append(len(offsets))
        blob = "".join(f"{key}\0" for key in keys).encode()
        return cls(
            extensions=tuple(kinds),
            starts=np.frombuffer(starts.tobytes(), np.int64),
            offsets=np.frombuffer(offsets.tobytes(), np.int64),
            sizes=np.frombuffer(sizes.tobytes(), np.int64),
            kinds=np.frombuffer(member_kinds.tobytes(), np.int32),
            ignored=ignored,
            keys=blob,
            key_starts=_key_starts(blob),
        )

    def digest(self) -> bytes:
        """Return what tells this index from any other: equal for equal shards, wherever the index comes from."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Pack the index for `from_bytes`: a CRC-32, and a msgpack map of little-endian arrays."""
        body: bytes = msgpack.packb(
            {
                "version": VERSION,
                "extensions": self.extensions,
                "starts": self.starts.astype("<i8").tobytes(),
                "offsets": self.offsets.astype("<i8").tobytes(),
                "sizes": self.sizes.astype("<i8").tobytes(),
                "kinds": self.kinds.astype("<i4").tobytes(),
                "ignored": self.ignored,
                "keys": self.keys,
            }
        )
        return zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little") + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Unpack what `to_bytes` packed. Raises ValueError for anything else: the caller then builds the index anew."""
        body = data[CHECKSUM_BYTES:]
        if data[:CHECKSUM_BYTES] != zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little"):
            raise ValueError("the checksum of the index is wrong")
        match msgpack.unpackb(body):
            case {
                "version": 1,
                "extensions": [*extensions],
                "starts": bytes(starts),
                "offsets": bytes(offsets),
                "sizes": bytes(sizes),
                "kinds": bytes(kinds),
                "ignored": int(ignored),
                "keys": bytes(keys),
            }:
                index = cls(
                    extensions=tuple(extensions),
                    starts=np.frombuffer(starts, "<i8"),
                    offsets=np.frombuffer(offsets, "<i8"),
                    sizes=np.frombuffer(sizes, "<i8"),
                    kinds=np.frombuffer(kinds, "<i4"),
                    ignored=ignored,
                    keys=keys,
                    key_starts=_key_starts(keys),
                )
            case _:
                raise ValueError("the index is of another version, or none")
        if not index._is_sound():
            raise ValueError("the index contradicts itself")
        return index

    def _is_sound(self) -> bool:
        n, m = len(self), len(self.offsets)
        self.keys.decode()  # raises UnicodeDecodeError, a ValueError
        return bool(
            n > 0
            and len(self.sizes) == len(self.kinds) == m
            and len(self.key_starts) == n + 1
            and self.key_starts[-1] == len(self.keys)
            and (np.diff(self.key_starts) <= KEY_BYTES + 1).all()
            and self.starts[0] == 0
            and self.starts[-1] == m
            and (np.diff(self.starts) > 0).all()
            and (self.offsets >= 0).all()
            and (self.sizes >= 0).all()
            and (self.kinds >= 0).all()
            and (self.kinds < len(self.extensions)).all()
            and all(isinstance(extension, str) for extension in self.extensions)
        )


def _check_key(key: str, keys: dict[str, None], shard: str) -> None:
    if key in keys:
        raise ShardError(
            shard,
            f"the members of sample {key} do not follow each other; make the shard with sorted names, "
            "for example with tar's option --sort=name",
        )
    if (size := len(key.encode())) > KEY_BYTES:
        raise ShardError(
            shard,
            f"the key of sample {shorten(key, limits.KEY_BYTES)} has {size:,} bytes, of at most {KEY_BYTES:,}; "
            "make the shard with shorter names",
        )
    if len(keys) == limits.SHARD_SAMPLES:
        raise ShardError(shard, f"has more than {limits.SHARD_SAMPLES:,} samples; split it")


def _key_starts(keys: bytes) -> NDArray[np.int64]:
    ends = np.flatnonzero(np.frombuffer(keys, np.uint8) == 0)
    return np.concatenate(([0], ends + 1), dtype=np.int64)
