"""What is in a shard, told without decoding more than a line needs: for ``feedmill shards info`` and ``cat``.

The rule of this file: names and texts come from whoever made the shard. What is printed of them has no control
characters, and what cannot be decoded is told like everything else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from feedmill_protocol.printing import printable

from .decode import decoder, image_size, is_image
from .fields import Field, MissingField
from .index import ShardIndex
from .shards import Shard

__all__ = ["Members", "described", "members", "problems", "samples"]

_TEXT: Final = 60
"""Characters of a text that are shown."""

_SMALL: Final = 1024 * 1024
"""Bytes of a member that is decoded to be shown; of larger ones only the size is told."""

_decode: Final = decoder(decode=True)


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a shard that have one extension: how many, their bytes, and the extreme and median sizes."""

    extension: str
    count: int
    nbytes: int
    least: int
    median: int
    most: int


def members(index: ShardIndex) -> list[Members]:
    """Sum up the members of a shard by extension, in the order in which extensions first appear."""
    found = []
    for kind, extension in enumerate(index.extensions):
        sizes = index.sizes[index.kinds == kind]
        least, most, median = int(sizes.min()), int(sizes.max()), int(np.median(sizes))
        found.append(Members(extension, len(sizes), int(sizes.sum()), least, median, most))
    return found


def problems(index: ShardIndex) -> list[str]:
    """Say what a pipeline may stumble over: samples that lack an extension others have, empty members, stray files."""
    said = []
    for extension, count in index.counts().items():
        if missing := len(index) - count:
            said.append(f"{missing:,} of {len(index):,} samples have no {printable(extension)}")
    if empty := int((index.sizes == 0).sum()):
        said.append(f"{empty:,} members are empty")
    if index.ignored:
        said.append(f"{index.ignored:,} members are of no sample and are left out")
    return said


def samples(index: ShardIndex, prefix: str = "") -> Iterator[int]:
    """Yield the numbers of the samples whose keys begin with ``prefix``."""
    return (i for i in range(len(index)) if index.key(i).startswith(prefix))


def described(shard: Shard, i: int, fields: Sequence[Field] = ()) -> dict[str, str]:
    """Describe sample ``i`` in a few words for each of ``fields``, or each member: a value, or kind and size."""
    there = shard.index.members(i)
    if not fields:
        return {extension: _words(shard, extension, place) for extension, place in there.items()}
    return {field.name: _field(shard, there, field) for field in fields}


def _field(shard: Shard, there: Mapping[str, tuple[int, int]], field: Field) -> str:
    try:
        extension, place = field.choose(there)
    except MissingField:
        return "-"
    return _words(shard, extension, place)


def _words(shard: Shard, extension: str, place: tuple[int, int]) -> str:
    offset, size = place
    if size > _SMALL and not is_image(extension):
        return f"{size:,} bytes"
    data = shard.read(offset, size)
    try:
        if is_image(extension):
            width, height = image_size(data)
            return f"{width}x{height} in {size:,} bytes"
        return _value(_decode(extension, data), size)
    except Exception as error:  # noqa: BLE001 # decoders raise what they like
        return f"cannot be decoded: {_short(str(error))} ({size:,} bytes)"


def _value(value: Any, size: int) -> str:
    if isinstance(value, bytes):
        return f"{size:,} bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, np.ndarray) for item in value):  # .ten
        return ", ".join(_value(item, size) for item in value)
    return _short(repr(value))


def _short(text: str) -> str:
    """Return a text as it may be printed, cut where it is long."""
    safe = printable(text)
    return safe if len(safe) <= _TEXT else safe[: _TEXT - 1] + "…"
