"""Mutations: valid bytes and values, changed as damage and malice would change them. All follow from a generator."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

__all__ = ["INTERESTING", "bend", "mutate", "repack"]

INTERESTING: Final = (0, 1, 2, 7, 16, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1)
"""Integers at which something changes its size, its sign or its meaning."""

_STRANGE: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    -1,
    -(2**63),
    2**63,
    2**64 - 1,
    0.0,
    -1.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "\0",
    "raise",
    "skip",
    "x" * 300,
    "é" * 100,
    b"",
    b"\xff\xfe",
    (),
    {},
    ("uint8", (1, 2)),
    {"v": 1},
    msgpack.ExtType(1, b"ext"),
    msgpack.Timestamp(0),
)


def mutate(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """Change bytes in one to three ways; ``others`` are what pieces may come from."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(_BYTES)(data, others, draw)
    return data


def _flip(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(min(len(data) - at, draw.choice((1, 1, 2, 4, 8)))) + data[at + 1 :]


def _cut(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _drop(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    at, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
    return data[:at] + data[min(end, at + 64) :]


def _repeat(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    at, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
    return data[:end] + data[at:end][:512] * draw.choice((1, 2, 20)) + data[end:]


def _splice(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    other = draw.choice(others)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _insert(data: bytes, _others: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 5, 40))) + data[at:]


_BYTES: Final[tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...]] = (
    _flip,
    _flip,
    _set,
    _cut,
    _drop,
    _repeat,
    _splice,
    _insert,
)


def repack(header: bytes, draw: random.Random) -> bytes:
    """Change values of a msgpack header and pack it again: what is no longer valid is so in its sense."""
    value = msgpack.unpackb(header, use_list=False)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = bend(value, draw)
    try:
        packed: bytes = msgpack.packb(value)
    except (OverflowError, ValueError):  # an integer of more than 64 bits, or more nesting than msgpack makes
        return header
    return packed if draw.random() < 0.98 else packed + header


def bend(value: Any, draw: random.Random) -> Any:  # noqa: PLR0911 # one for each way
    """Change something in a value: another number, another type, another count, another place, deeper."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        match draw.randrange(12):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return value | {draw.choice(("new", "v", "type", b"v", 7)): draw.choice(_STRANGE)}
            case 2:
                return value | {name: value[draw.choice(list(value))]}
            case _:
                return value | {name: bend(value[name], draw)}
    if isinstance(value, tuple) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        match draw.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * draw.choice((2, 40))
            case 2:
                return (*value, value[at])
            case _:
                return (*value[:at], bend(value[at], draw), *value[at + 1 :])
    return _other(value, draw)


def _other(value: Any, draw: random.Random) -> Any:
    if type(value) is int and draw.random() < 0.7:
        return draw.choice((value + 1, value - 1, -value, *INTERESTING))
    if isinstance(value, str) and draw.random() < 0.3:
        return value + draw.choice(("x", "\0", "é" * 70, "x" * 2000))
    if draw.random() < 0.05:
        for _ in range(draw.choice((1, 10, 100, 480))):
            value = (value,)
        return value
    return draw.choice(_STRANGE)
