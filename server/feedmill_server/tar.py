"""The members of a tar file, strictly: one pass over the headers that never reads a payload.

The rule of this file: whatever the bytes are, `walk` yields every member of the archive or raises `ShardError`. It
never ends early in silence and lets no other exception escape. That is why an archive must end in a zero block with
nothing but padding behind it, and why what cannot be a sample (a link, a device, a sparse file) is an error.

Formats: ustar, its ancestor v7, GNU (long names, base-256 sizes) and pax.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from feedmill_protocol.errors import ShardError

__all__ = ["Member", "Source", "walk"]

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

EXTENSION_BYTES: Final = 1024 * 1024
"""The longest GNU name or pax header. They are read into memory; real ones have a few hundred bytes."""

PADDING_BYTES: Final = 1024 * 1024
"""Zeros at the end. tar fills its last record, 10 KiB by default; more than this is the hole of an unfinished copy."""

FILES: Final = (b"0", b"\0", b"7")
EXTENSIONS: Final = (b"L", b"K", b"x", b"X", b"g")
REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}

VALUES: Final = {b"path": re.compile(rb"[^\0]*"), b"size": re.compile(rb"[0-9]{0,19}")}
"""The pax records that matter, and what they may hold."""

AGAIN: Final = "copy or make it again"

_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class Source(Protocol):
    """What `walk` reads: a memoryview, a mapping, or whatever else has a length and gives slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, span: slice, /) -> bytes | memoryview: ...


class Member(NamedTuple):
    """A regular file of an archive: ``size`` bytes at ``offset``."""

    name: str
    offset: int
    size: int


def walk(data: Source, shard: str) -> Iterator[Member]:
    """Yield the regular files of the archive ``data`` in order; directories are passed over.

    Raises `ShardError`, which names ``shard``, at the first thing that is wrong.
    """
    end = len(data)
    if not end:
        raise ShardError(shard, f"the file is empty; {AGAIN}")
    offset = 0
    common: dict[bytes, bytes] = {}  # what global pax headers say of all members that follow
    own: dict[bytes, bytes] = {}  # what extension headers say of the next member
    while (block := bytes(data[offset : offset + BLOCK])) != ZEROS:
        _check(block, offset, shard)
        kind = block[156:157]
        start = offset + BLOCK
        size = _size(block, offset, shard)
        if kind in EXTENSIONS:
            text = _extension(data, start, size, shard)
            if kind == b"L":
                own[b"path"] = text.partition(b"\0")[0]
            elif kind != b"K":  # K is the target of a link, and links are refused
                (common if kind == b"g" else own).update(_records(text, start, shard))
        else:
            records = common | own
            own = {}
            name = (records.get(b"path") or _name(block)).decode(errors="backslashreplace")
            size = int(records.get(b"size") or size)
            if kind == b"5" or (kind == b"\0" and name.endswith("/")):
                size = 0  # POSIX: a directory has no payload, whatever its size field says
            else:
                _check_file(name, kind, offset, shard, sparse=b"sparse" in records)
                if start + size > end:
                    raise ShardError(
                        shard,
                        f"truncated: member {name} has {size:,} bytes at offset {start:,}, "
                        f"but the file ends at {end:,}; {AGAIN}",
                    )
                yield Member(name, start, size)
        offset = start + -(-size // BLOCK) * BLOCK
    if own:
        raise ShardError(
            shard, f"damaged: the archive ends at offset {offset:,}, before the member announced there; {AGAIN}"
        )
    _check_padding(data, offset, shard)


def _check(block: bytes, offset: int, shard: str) -> None:
    """Refuse what is no header. The checksum is the sum of the block, its own eight bytes taken as spaces."""
    stored = _OCTAL.fullmatch(block, 148, 156)
    if stored and len(block) == BLOCK and int(stored[1], 8) == sum(block) - sum(block[148:156]) + 8 * 0x20:
        return
    if not offset:
        raise ShardError(
            shard, f"not a tar file: it begins with {block[:8]!r}, which is no tar header; give tar or tar.gz files"
        )
    if len(block) < BLOCK:
        raise ShardError(
            shard,
            f"truncated: the file ends at {offset + len(block):,} without an end-of-archive block; {AGAIN}",
        )
    raise ShardError(shard, f"damaged: the header at offset {offset:,} has a wrong checksum; {AGAIN}")


def _size(block: bytes, offset: int, shard: str) -> int:
    field = block[124:136]
    if field[0] == 0x80:  # GNU: the rest is the number, big-endian
        return int.from_bytes(field[1:])
    if octal := _OCTAL.fullmatch(field):
        return int(octal[1], 8)
    raise ShardError(shard, f"damaged: the header at offset {offset:,} has the impossible size {field!r}; {AGAIN}")


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:  # GNU, "ustar  ", keeps times where ustar keeps the prefix
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _extension(data: Source, start: int, size: int, shard: str) -> bytes:
    if size > EXTENSION_BYTES:
        raise ShardError(
            shard,
            f"damaged: the extension header at offset {start:,} has {size:,} of {EXTENSION_BYTES:,} bytes; {AGAIN}",
        )
    text = bytes(data[start : start + size])
    if len(text) < size:
        raise ShardError(shard, f"truncated: the file ends inside the extension header at offset {start:,}; {AGAIN}")
    return text


def _records(text: bytes, start: int, shard: str) -> dict[bytes, bytes]:
    """Return the path and the size that pax records give, "" where they unset them, and whether they speak of holes."""
    kept = {}
    position = 0
    while position < len(text):
        if not (record := _record(text, position)):
            raise ShardError(
                shard, f"damaged: the pax header at offset {start:,} is malformed at byte {position:,}; {AGAIN}"
            )
        key, value, position = record
        if key in VALUES:
            kept[key] = value
        elif key.startswith(b"GNU.sparse."):
            kept[b"sparse"] = b"1"
    return kept


def _record(text: bytes, position: int) -> tuple[bytes, bytes, int] | None:
    """Parse ``<length> <key>=<value>`` and a line feed; return key, value and end."""
    if not (head := _RECORD.match(text, position)):
        return None
    end = position + int(head[1])
    if not head.end() < end <= len(text) or text[end - 1] != 0x0A:
        return None
    key, value = head[2], text[head.end() : end - 1]
    return (key, value, end) if key not in VALUES or VALUES[key].fullmatch(value) else None


def _check_file(name: str, kind: bytes, offset: int, shard: str, *, sparse: bool) -> None:
    if sparse or kind not in FILES:
        what = REFUSED[b"S"] if sparse else REFUSED.get(kind, f"of the unknown type {kind!r}")
        raise ShardError(
            shard,
            f"member {name} (header at offset {offset:,}) is {what}; shards hold regular files alone: "
            "make it with tar's options --dereference --hard-dereference and without --sparse",
        )
    if not name:
        raise ShardError(shard, f"damaged: the member whose header is at offset {offset:,} has no name; {AGAIN}")


def _check_padding(data: Source, offset: int, shard: str) -> None:
    padding = bytes(data[offset : offset + PADDING_BYTES + 1])
    rest = padding.lstrip(b"\0")
    if rest:
        raise ShardError(
            shard,
            f"the archive ends at offset {offset:,}, but other data follow at {offset + len(padding) - len(rest):,}; "
            "if tar files were concatenated, unpack them with 'tar --ignore-zeros' and make one archive",
        )
    if len(padding) > PADDING_BYTES:
        raise ShardError(
            shard,
            f"the archive ends at offset {offset:,} in more than {PADDING_BYTES:,} zeros, the trace of an unfinished "
            f"copy; {AGAIN}",
        )
