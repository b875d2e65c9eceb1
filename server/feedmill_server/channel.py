"""Messages between the processes of one server: msgpack over a pair of SEQPACKET sockets, descriptors beside them.

Both ends are processes of the same user that the server started itself. A closed channel is how each learns that the
other is gone, however it went.
"""

import socket
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Self

import msgpack

__all__ = ["Channel", "ChannelClosed", "ChannelFull"]

_MESSAGE_BYTES: Final = 128 * 1024
"""Below Linux's default socket buffer (208 KiB). The largest message is the report on a part: 16 keys of 1 KiB."""

_MAX_FDS: Final = 4


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class ChannelFull(Exception):
    """The process at the other end has not read for so long that nothing more fits."""


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

    def send(self, *message: Any, fds: Sequence[int] = (), wait: bool = True) -> None:
        """Send a message, and duplicates of descriptors with it.

        Raises ChannelClosed, and ChannelFull where it would have to ``wait`` and must not.
        """
        data = msgpack.packb(message)
        if len(data) > _MESSAGE_BYTES:  # the receiver would be given a piece of it
            raise ValueError(f"a message of {len(data):,} bytes, of at most {_MESSAGE_BYTES:,}")
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            # socket.send_fds ignores its flags in Python 3.11.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            self._socket.sendmsg([data], rights, flags)
        except BlockingIOError:
            raise ChannelFull from None
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

    def end(self) -> None:
        """Have the other end learn that this one is gone, while what it sent before can still be received."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
