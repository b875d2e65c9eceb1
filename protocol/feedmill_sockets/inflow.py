"""The inflow: what has come over each TCP connection of a zmq socket, and is no whole message yet.

libzmq gathers the parts of a message until the last has come, and nothing of its own stops it: its high-water marks
count whole messages, ``ZMQ_MAXMSGSIZE`` the bytes of one part. So whoever may connect can fill the memory of the other
side with one message that never ends. But the kernel counts what comes over a connection, and a descriptor of that is
enough to ask it, and to cut this one connection. libzmq then drops its half message.

The rule of this file: a connection is judged by what libzmq had taken in by the beat before. Whoever receives has had
the time to find the whole messages in that; what the kernel still has is no debt, however late libzmq's thread is.
"""

import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

__all__ = ["Inflow", "may_hold"]

_BEAT: Final = 0.05
"""Seconds between two looks. Meanwhile only its speed bounds what libzmq's one thread takes in: on loopback 1.3 GB/s,
which is 65 MB."""

_SHARE: Final = 0.02
"""Looks take no more than this part of a core. One takes 3 µs for each connection: there are fewer with thousands."""

_OF_A_BYTE: Final = 32
"""Bytes of memory for one that came: an empty part is 2 bytes on the wire, and 64 in libzmq's queue."""

_OF_A_SEGMENT: Final = 10 * 1024
"""Bytes of memory for a segment that came: a read of 34 bytes or more takes 8 KiB for them, and 2 for counters."""

_INFO: Final = struct.Struct("=128x Q 16x I")  # tcp_info of <linux/tcp.h>: tcpi_bytes_received, tcpi_data_segs_in
_UNREAD: Final = struct.Struct("=i")

_SEGMENT_BYTES: Final = 512
"""What a segment of many has at least, where nobody makes them small on purpose: IP's smallest packets have 536."""

_FEW_SEGMENTS: Final = 64


def may_hold(nbytes: int) -> int:
    """Return how much memory an honest message of so many bytes seems to hold, at most, while it comes."""
    return nbytes * _OF_A_BYTE + (nbytes // _SEGMENT_BYTES + _FEW_SEGMENTS) * _OF_A_SEGMENT


class _Count(NamedTuple):
    """What has come over a connection, and how much of that is still the kernel's."""

    nbytes: int = 0
    segments: int = 0
    unread: int = 0

    def held_since(self, base: "_Count") -> int:
        """Return how much memory may be held by what came since."""
        nbytes = self.nbytes - base.nbytes
        read = max(0, nbytes - self.unread)
        if not read:
            return 0
        return (nbytes * _OF_A_BYTE + (self.segments - base.segments) * _OF_A_SEGMENT) * read // nbytes


_NOTHING: Final = _Count()


@dataclass(slots=True)
class _Line:
    socket: socket.socket  # a descriptor of our own: libzmq's may be another connection's by now
    seen: _Count = _NOTHING  # by the last beat
    base: _Count = _NOTHING  # by the last beat in which a whole message was received
    heard: bool = False  # of a whole message, since the last beat


class Inflow:
    """The connections of a socket, by libzmq's descriptors of them. Not for several threads.

    No connection may hold more than ``each`` bytes of memory in messages that are not whole, and all together no more
    than ``total``; the one that holds most is cut first. Connections other than TCP's are let alone.

    Whole messages stay in libzmq's queues when their connection has gone. ``left`` is how much memory these may hold,
    until the socket is found to have nothing to read (`drained`).
    """

    def __init__(self, each: float, total: float = inf, clock: Callable[[], float] = time.thread_time) -> None:
        self.each = each
        self.total = total
        self.left = 0
        self._clock = clock
        self._lines: dict[int, _Line] = {}
        self._beat = _BEAT
        self._beat_at = 0.0

    def opened(self, fd: int, port: int) -> str:
        """Take note of a connection to a port, here or there; return the peer's address, "" if there is no such one."""
        self.closed(fd)
        with suppress(OSError):  # it is closed already, or no socket any more
            own = os.dup(fd)
            try:
                line = socket.socket(fileno=own)
            except OSError:
                os.close(own)
                raise
            if line.family in (socket.AF_INET, socket.AF_INET6):
                with suppress(OSError):  # the peer has gone
                    address, *ports = str(line.getpeername()[0]), line.getpeername()[1], line.getsockname()[1]
                    if port in ports:
                        self._lines[fd] = _Line(line)
                        return address
            line.close()
        return ""

    def closed(self, fd: int) -> None:
        """Forget a connection that is no more."""
        if line := self._lines.pop(fd, None):
            self.left += _count(line.socket).held_since(line.base)
            line.socket.close()

    def drained(self) -> None:
        """Take note that the socket has nothing to read."""
        self.left = 0

    def heard(self, fd: int) -> None:
        """Take note that a whole message has come."""
        if line := self._lines.get(fd):
            line.heard = True

    def cut(self, fd: int) -> None:
        """End a connection, and forget it. libzmq finds out by itself."""
        if line := self._lines.get(fd):
            with suppress(OSError):  # the peer was quicker
                line.socket.shutdown(socket.SHUT_RDWR)
            self.closed(fd)

    @property
    def patience(self) -> float:
        """In how many seconds to `tick`, at the latest."""
        return self._beat if self._lines else inf

    def tick(self, now: float) -> list[int]:
        """Look at all connections if it is time to; cut those that hold too much, and return them."""
        if now < self._beat_at or not self._lines:
            return []
        begun = self._clock()
        cut = self._judge()
        for fd in cut:
            self.cut(fd)
        for line in self._lines.values():
            line.seen = _count(line.socket)
            if line.heard:
                line.base, line.heard = line.seen, False
        self._beat = max(_BEAT, (self._clock() - begun) / _SHARE)
        self._beat_at = now + self._beat
        return cut

    def _judge(self) -> list[int]:
        held = {fd: line.seen.held_since(line.base) for fd, line in self._lines.items() if not line.heard}
        total = sum(held.values())
        cut = []
        for fd in sorted(held, key=held.__getitem__, reverse=True):
            if held[fd] <= self.each and total <= self.total:
                break
            total -= held[fd]
            cut.append(fd)
        return cut

    def close(self) -> None:
        """Forget all connections; they stand."""
        for line in self._lines.values():
            line.socket.close()
        self._lines.clear()


def _count(line: socket.socket) -> _Count:
    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    unread = fcntl.ioctl(line, termios.FIONREAD, bytes(_UNREAD.size))
    return _Count(*_INFO.unpack(info), *_UNREAD.unpack(unread))
