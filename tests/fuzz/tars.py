"""Fuzzing of shards: whatever a file holds, it is refused or indexed, and what is indexed lies within the file."""

import os
import random
import zlib
from functools import cache
from typing import Final

from feedmill_protocol.errors import ShardError
from feedmill_server.index import ShardIndex
from feedmill_server.shards import Shard, Stamp
from feedmill_server.tar import walk
from fuzz.mutations import mutate
from shardmaker import FORMATS, tar_bytes

__all__ = ["index", "load"]

BLOCK: Final = 512

_LONG: Final = "folder/" * 12 + "n" * 120
_MEMBERS: Final = (
    [("0001.jpg", b"j" * 700), ("0001.cls", b"7"), ("0002.jpg", b"k" * 512), ("0002.cls", b"")],
    [(f"{_LONG}.jpg", b"x" * 30), (f"{_LONG}.cls", b"1"), ("ä/ö.cls", b"2")],
    [("LICENSE", b"free"), ("a/1.seg.png", b"p" * 100), ("a/1.PNG", b"q"), ("a/2.png", b"")],
)

_FIELDS: Final = {
    "name": (0, 100),
    "mode": (100, 108),
    "size": (124, 136),
    "kind": (156, 157),
    "magic": (257, 265),
    "prefix": (345, 500),
}

_CONTENTS: Final = (
    b"0",
    b"5",
    b"L",
    b"K",
    b"x",
    b"g",
    b"S",
    b"1",
    b"",
    b"00000000001\0",
    b"00000001000\0",
    b"77777777777\0",
    b"-0000000001\0",
    b"\x80" + bytes(10) + b"\x09",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"0001.jpg",
    b"0002.cls",
    b"__x.jpg",
    b".hidden.jpg",
    b"a/b.c.d",
    b"/",
    b"\xff\xfe.jpg",
    b"ustar\x0000",
    b"ustar  \0",
    b"14 path=g.jpg\n",
    b"9 size=1\n",
    b"22 GNU.sparse.major=1\n",
    b"12 size=9999\n",
    b"99999999 path=x\n",
)


@cache
def seeds() -> list[bytes]:
    """Return valid shards in all formats."""
    long = _MEMBERS[1]  # too long for ustar
    return [tar_bytes(m, format=form) for m in _MEMBERS for form in FORMATS if form != "ustar" or m is not long]


def _forge(data: bytes, draw: random.Random) -> bytes:
    """Put something else into a field of a header, or into a block, and make its checksum right again."""
    changed = bytearray(data)
    at = draw.randrange(max(1, len(data) // BLOCK)) * BLOCK
    start, end = _FIELDS[draw.choice(list(_FIELDS))]
    content = draw.choice(_CONTENTS)[: end - start]
    changed[at + start : at + end] = content.ljust(end - start, b"\0")
    if draw.random() < 0.2:
        changed[at : at + BLOCK] = draw.choice(_CONTENTS).ljust(BLOCK, b"\0")
    elif draw.random() < 0.9:
        block = changed[at : at + BLOCK]
        changed[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 0x20)
    return bytes(changed)


def _shuffled(data: bytes, draw: random.Random) -> bytes:
    """Move, repeat and drop whole blocks, some of them another shard's."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    other = draw.choice(seeds())
    at = draw.randrange(len(blocks))
    match draw.randrange(4):
        case 0:
            del blocks[at]
        case 1:
            blocks.insert(draw.randrange(len(blocks)), blocks[at])
        case 2:
            begin = draw.randrange(len(other) // BLOCK) * BLOCK
            blocks[at:at] = [other[begin : begin + draw.choice((1, 2, 4)) * BLOCK]]
        case _:
            blocks = blocks[at:] + blocks[:at]
    return b"".join(blocks)


def _open(found: ShardIndex, data: bytes) -> Shard:
    """Return a shard of these bytes, as a store would open it."""
    descriptor = os.memfd_create("s.tar")
    os.write(descriptor, data)
    return Shard("s.tar", found, descriptor, Stamp.of(descriptor))


def index(draw: random.Random) -> str:
    """Index a mutated shard, and read every member."""
    data = draw.choice(seeds()).rstrip(b"\0") + bytes(1024)
    data += bytes(-len(data) % BLOCK)
    for _ in range(draw.choice((1, 1, 2, 4))):
        match draw.randrange(4):
            case 0:
                data = mutate(data, seeds(), draw)
            case 1:
                data = _shuffled(data, draw) if data else data
            case _:
                data = _forge(data, draw)
    try:
        found = ShardIndex.build(walk(memoryview(data), "s.tar"), "s.tar")
    except ShardError as error:
        return "refused" if error.shard == "s.tar" and error.reason else "refused without a word"
    with _open(found, data) as shard:
        for sample in range(len(found)):
            assert found.key(sample)
            for offset, size in found.members(sample).values():
                assert len(shard.read(offset, size)) == size
                assert offset >= BLOCK
    again = ShardIndex.from_bytes(found.to_bytes())
    assert again.digest() == found.digest()
    return "indexed"


def load(draw: random.Random) -> str:
    """Load a mutated index, as a damaged disk would give it, with its checksum right: it is refused, or sound."""
    data = draw.choice(seeds())
    body = ShardIndex.build(walk(memoryview(data), "s.tar"), "s.tar").to_bytes()[4:]
    body = mutate(body, [body], draw)
    try:
        found = ShardIndex.from_bytes(zlib.crc32(body).to_bytes(4, "little") + body)
    except ValueError:
        return "refused"
    with _open(found, data) as shard:
        for sample in range(len(found)):
            found.key(sample)
            for offset, size in found.members(sample).values():
                try:
                    assert len(shard.read(offset, size)) == size
                except ShardError:
                    return "refused when read"
    return "loaded"
