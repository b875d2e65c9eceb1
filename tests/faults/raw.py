"""ZMTP 3.1 (https://rfc.zeromq.org/spec/37) by hand, over plain sockets: for peers that no library would be."""

import socket
import struct
from collections.abc import Sequence

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame


def greeting(mechanism: bytes = b"NULL") -> bytes:
    """Return how a connection begins."""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def head(flags: int, size: int) -> bytes:
    """Return the head of a frame that announces so many bytes."""
    return bytes([flags | LONG]) + struct.pack(">Q", size) if size > 255 else bytes([flags, size])


def frame(body: bytes, *, more: bool) -> bytes:
    """Return a frame."""
    return head(MORE * more, len(body)) + body


def message(frames: Sequence[bytes]) -> bytes:
    """Return a message of frames."""
    return b"".join(frame(body, more=number < len(frames)) for number, body in enumerate(frames, 1))


def ready(kind: bytes) -> bytes:
    """Return the command that ends a handshake without keys, of a socket of a kind."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return head(COMMAND, len(body)) + body


def handshake(connection: socket.socket, kind: bytes) -> None:
    """Become a ZMTP peer; return when the other side has become one."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(greeting() + ready(kind))
    came = b""
    while b"READY" not in came:
        if not (more := connection.recv(4096)):
            raise ConnectionResetError("closed in the handshake")
        came += more


ENDLESS = {
    "empty frames": frame(b"", more=True) * 500_000,
    "frames that come alone": frame(bytes(34), more=True),
    "large frames": frame(bytes(65_536), more=True) * 16,
}
"""What may be sent again and again, and never ends a message: what costs most for each byte, for each packet, and
what comes fastest."""

LONG_MESSAGES = message([b""] * 4000) * 20
"""Messages that end, of more frames than anybody has a use for."""
