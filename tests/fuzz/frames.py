"""Messages as frames, valid ones and mutated ones. Mutated headers are sealed like others, to get past the door."""

import random
import struct
from collections.abc import Sequence
from typing import Final

from feedmill_protocol import codec
from feedmill_protocol.messages import Message
from fuzz.mutations import mutate, repack

__all__ = ["Sent", "harmed", "mutated", "sent", "whole"]

Sent = tuple[bytes, bytes]
"""The header and the payload of a message."""

_SEAL: Final = struct.Struct("<QQ")


def sent(message: Message, payload: bytes = b"") -> Sent:
    """Return a message as it is sent."""
    return codec.encode(message), payload


def mutated(one: Sent, others: Sequence[Sent], draw: random.Random) -> Sent:
    """Change the header, or the payload, or take it from another message."""
    header, payload = one
    match draw.randrange(10):
        case 0 | 1 | 2:
            return mutate(header, [other for other, _ in others], draw), payload
        case 3 | 4 | 5 | 6 | 7:
            return repack(header, draw), payload
        case 8:
            return header, mutate(payload, [other for _, other in others], draw)
        case _:
            return header, draw.choice(others)[1]


def whole(header: bytes, payload: bytes) -> list[bytes]:
    """Return the frames of a message as they should be."""
    seal = _SEAL.pack(codec.checksum(header), codec.checksum(payload))
    return [header, seal, payload] if payload else [header, seal]


def harmed(header: bytes, payload: bytes, draw: random.Random) -> list[bytes]:
    """Return the frames of a message, cut anywhere; now and then, what was sealed is changed behind the seal."""
    header, seal, *payloads = whole(header, payload)
    found = [header, seal]
    for piece in payloads:
        cuts = sorted(draw.randrange(len(piece)) for _ in range(draw.choice((0, 0, 1, 5))))
        found += [piece[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(piece)], strict=True)]
    match draw.randrange(40):
        case 0:
            found.insert(draw.randrange(len(found) + 1), b"")
        case 1:
            del found[draw.randrange(len(found))]
        case 2:
            found.append(draw.randbytes(draw.choice((1, 16, 100))))
        case 3:
            draw.shuffle(found)
        case 4 | 5:
            at = draw.randrange(len(found))
            found[at] = mutate(found[at], found, draw)
        case 6:
            found[1] = draw.choice((b"", seal[:8], seal + seal, draw.randbytes(16)))
    return found or [b""]
