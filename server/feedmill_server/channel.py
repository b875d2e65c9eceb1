"""Messages between the processes of one server: msgpack over a pair of SEQPACKET sockets, descriptors beside them.

Both ends are processes of the same user that the server started itself. A closed channel is how each learns that the
other is gone, however it went.
"""

import socket
from collections.abc import Sequence
from typing import Any, Final, Self

import msgpack

__all__ = ["Channel", "ChannelClosed"]

_MESSAGE_BYTES: Final = 128 * 1024
"""Below Linux's default socket buffer (208 KiB). The largest message is the report on a part: 16 keys of 1 KiB."""

_MAX_FDS: Final = 4


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class Channel:
    """One end of a pair. Messages are lists whose first item says what they are."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Return an end to keep, and the socket of an end to give away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._socket.fileno()

    def send(self, *message: Any, fds: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of descriptors with it. Raises ChannelClosed."""
        data = msgpack.packb(message)
        if len(data) > _MESSAGE_BYTES:  # the receiver would be given a piece of it
            raise ValueError(f"a message of {len(data):,} bytes, of at most {_MESSAGE_BYTES:,}")
        try:
            if fds:
                socket.send_fds(self._socket, [data], list(fds))
            else:
                self._socket.send(data)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, timeout: float | None = None) -> tuple[list[Any], list[int]]:
        """Return the next message and the descriptors that came with it.

        Raises ChannelClosed, and TimeoutError after ``timeout`` seconds (None: waits as long as the other end lives).
        """
        try:
            self._socket.settimeout(timeout)
            data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, _MAX_FDS)
        except (TimeoutError, BlockingIOError):
            raise TimeoutError from None
        except OSError as error:
            raise ChannelClosed from error
        finally:
            if self._socket.fileno() >= 0:
                self._socket.settimeout(None)
        if not data:
            raise ChannelClosed
        return msgpack.unpackb(data), fds

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
