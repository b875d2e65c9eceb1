"""Messages as frames, valid ones and mutated ones."""

import random
import struct
from collections.abc import Sequence
from typing import Final

from feedmill_protocol import codec
from feedmill_protocol.messages import Message
from fuzz.mutations import mutate, repack

__all__ = ["Sent", "frames", "mutated", "sent"]

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


def frames(header: bytes, payload: bytes, draw: random.Random) -> list[bytes]:
    """Cut a message into frames, anywhere; now and then, one is missing, empty, or too many."""
    found = [header]
    while payload:
        size = draw.choice((len(payload), len(payload), 1, 12, 64))
        found.append(payload[:size])
        payload = payload[size:]
        if len(found) > 20:
            found.append(payload)
            break
    match draw.randrange(40):
        case 0:
            found.insert(draw.randrange(len(found) + 1), b"")
        case 1:
            del found[draw.randrange(len(found))]
        case 2:
            found.append(draw.randbytes(draw.choice((1, 16, 100))))
        case 3:
            draw.shuffle(found)
    return found or [b""]
