"""Messages to bytes and back. A message is a header, a seal, and a payload.

The header is a msgpack map: `v`, `type`, and the fields of the message. The seal is the checksums of the other two.
The payload is one run of bytes whose length the header gives away (`Message.payload_bytes`); the sender cuts it into
frames wherever it likes, the receiver puts them back together, in place if it has a place. What raises here raises
ProtocolError and nothing else; Damaged, one of those, says that what came is not what was sent.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final, get_args

import msgpack
import xxhash

from . import limits
from .errors import Damaged, ProtocolError, VersionMismatch
from .messages import Message
from .schema import Check, checks

__all__ = ["checksum", "cut", "decode", "encode", "join", "seal", "unseal", "verify"]

_TYPES: Final[dict[str, type[Any]]] = {cls.type: cls for cls in get_args(Message)}
_CHECKS: Final[dict[str, dict[str, Check]]] = {name: checks(cls) for name, cls in _TYPES.items()}
_REQUIRED: Final[dict[str, frozenset[str]]] = {
    name: frozenset(f.name for f in fields(cls) if f.default is MISSING) for name, cls in _TYPES.items()
}

_SEAL: Final = struct.Struct("<QQ")


def encode(message: Message) -> bytes:
    """Return the header frame of a message."""
    header = {"v": limits.PROTOCOL_VERSION, "type": message.type}
    for name in _CHECKS[message.type]:
        header[name] = getattr(message, name)
    return msgpack.packb(header, default=_as_array)  # type: ignore[no-any-return] # msgpack has no stubs


def _as_array(record: Any) -> tuple[object, ...]:
    return tuple(getattr(record, f.name) for f in fields(record))


def decode(header: bytes | memoryview) -> Message:
    """Return the message of a header frame. Raises VersionMismatch or another ProtocolError."""
    if len(header) > limits.HEADER_BYTES:
        raise ProtocolError(f"header: {len(header)} bytes exceed {limits.HEADER_BYTES}")
    try:
        found = msgpack.unpackb(header, use_list=False, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"header: not msgpack ({type(error).__name__})") from None
    if type(found) is not dict:
        raise ProtocolError(f"header: expected a map, got {type(found).__name__}")
    version, kind = found.get("v"), found.get("type")
    if type(version) is not int:
        raise ProtocolError("header.v: expected the protocol version, an integer")
    if version != limits.PROTOCOL_VERSION:
        raise VersionMismatch(version, limits.PROTOCOL_VERSION)
    if type(kind) is not str or kind not in _TYPES:
        raise ProtocolError(f"header.type: expected one of {', '.join(_TYPES)}")
    if missing := _REQUIRED[kind] - found.keys():
        raise ProtocolError(f"{kind}: {', '.join(sorted(missing))} is missing")
    message = _TYPES[kind](
        **{name: check(found[name], f"{kind}.{name}") for name, check in _CHECKS[kind].items() if name in found}
    )
    if message.payload_bytes > limits.BLOCK_BYTES:
        raise ProtocolError(f"{kind}: a payload of {message.payload_bytes} bytes exceeds {limits.BLOCK_BYTES}")
    return message  # type: ignore[no-any-return]


Checksum: Final = xxhash.xxh3_64
"""`checksum` of a payload that comes piece by piece."""


def checksum(*payload: bytes | memoryview) -> int:
    """Return the XXH3-64 of a payload, which may be in pieces. It tells damage, not malice."""
    hasher = Checksum()
    for piece in payload:
        hasher.update(piece)
    return hasher.intdigest()


def seal(message: Message, payload_checksum: int = checksum()) -> list[bytes]:
    """Return header and seal, the frames that go before a payload."""
    header = encode(message)
    return [header, _SEAL.pack(checksum(header), payload_checksum)]


def unseal(header: bytes | memoryview, seal: bytes | memoryview) -> tuple[Message, int]:
    """Return the message of a header, and the checksum that its payload must have.

    Raises Damaged, VersionMismatch or another ProtocolError.
    """
    if len(seal) != _SEAL.size:
        raise Damaged(f"seal: {len(seal)} bytes, not {_SEAL.size}")
    header_checksum, payload_checksum = _SEAL.unpack(seal)
    if checksum(header) != header_checksum:
        raise Damaged("header: its checksum is wrong")
    return decode(header), payload_checksum


def verify(message: Message, payload: bytes | memoryview, payload_checksum: int) -> None:
    """Raise Damaged if a payload is not the one that was sealed."""
    if checksum(payload) != payload_checksum:
        raise Damaged(f"{message.type}: the checksum of its payload is wrong")


def cut(block: memoryview, frame_bytes: int = limits.FRAME_BYTES) -> Iterator[memoryview]:
    """Yield a payload as frames, views of its memory."""
    for start in range(0, len(block), frame_bytes):
        yield block[start : start + frame_bytes]


def join(message: Message, frames: Sequence[bytes | memoryview]) -> bytes | memoryview:
    """Return the payload that arrived in frames; it must be as long as the message says. One frame is not copied."""
    total = sum(len(frame) for frame in frames)
    if total != message.payload_bytes:
        raise Damaged(f"{message.type}: a payload of {total} bytes, where {message.payload_bytes} were announced")
    return frames[0] if len(frames) == 1 else b"".join(frames)
