"""A socket of tensorcom's kind, with deadlines: messages as lists of frames, to and from one or several URLs.

The rule of this file: libzmq's defaults that lose or hoard data without a word are not ours, where the wire allows it.
Few batches wait instead of a thousand, none is queued for a reader that is not there, and a publisher knows whether it
has subscribers. What remains is in the nature of these sockets: PUSH loses what is under way to a reader that dies, PUB
drops what a slow reader has no room for. And whoever can connect can take what PUSH deals out, or unsubscribe for
others, and so have a publisher wait: there is no authentication.
"""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import zmq

from feedmill_protocol import limits
from feedmill_protocol.errors import ServerUnavailable, UsageError
from feedmill_protocol.tenbin import Frame

from .zurl import Zurl

__all__ = ["HWM", "ZSocket"]

HWM: Final = 16
"""Batches that may wait at each end of a connection. tensorcom leaves libzmq's 1,000, which may be 38 GB."""

_TYPES: Final = {"push": zmq.PUSH, "pull": zmq.PULL, "pub": zmq.XPUB, "sub": zmq.SUB}
"""XPUB is a PUB that hears of its subscribers."""

_LINGER: Final = 60.0
"""Seconds that `close` waits for readers, where there is no time-out to tell."""

_BEAT: Final = 0.5
"""Seconds; how often a wait lets Ctrl-C through."""

_KEEPALIVE: Final = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 30, zmq.TCP_KEEPALIVE_INTVL: 10}
"""The kernel finds a lost machine in some two minutes. libzmq's own heartbeats would take a reader that pauses for one,
and with the connection lose its batches."""


class ZSocket:
    """A socket for URLs of one kind, with room for ``hwm`` messages to and from each peer.

    Waits end after ``timeout`` seconds with ServerUnavailable; None waits for ever. ``endpoints`` are those that it is
    bound or connected to, with the port where that was left open. Raises UsageError for an address that cannot be had.
    """

    def __init__(self, urls: Sequence[Zurl], *, hwm: int, timeout: float | None) -> None:
        self._urls = urls
        self._timeout = timeout
        self._publishes = urls[0].kind == "pub"
        self._subscriptions = 0
        self.endpoints: list[str] = []
        self._context = zmq.Context()
        try:
            self._socket = self._context.socket(_TYPES[urls[0].kind])
            self._set_up(hwm)
        except BaseException:
            self.abort()
            raise

    def _set_up(self, hwm: int) -> None:
        socket = self._socket
        socket.set(zmq.SNDHWM, hwm)
        socket.set(zmq.RCVHWM, hwm)
        socket.set(zmq.MAXMSGSIZE, limits.BLOCK_BYTES)
        if self._urls[0].sends:
            socket.set(zmq.IMMEDIATE, 1)  # nothing is queued for a reader that is not there
        for option, value in _KEEPALIVE.items():
            socket.set(option, value)
        if self._urls[0].kind == "sub":
            socket.set(zmq.SUBSCRIBE, b"")
        for url in self._urls:
            socket.set(zmq.IPV6, not url.bind or "[" in url.endpoint)  # names may have such addresses
            try:
                (socket.bind if url.bind else socket.connect)(url.endpoint)
            except zmq.ZMQError as error:
                raise UsageError(f"cannot {'bind' if url.bind else 'connect'} {url.text}: {error.strerror}") from None
            self.endpoints.append(socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))

    def receive(self) -> list[memoryview]:
        """Return the frames of the next message, from all peers in turn: memory that is the caller's."""
        self._wait(zmq.POLLIN, "nothing came")
        return [frame.buffer for frame in self._socket.recv_multipart(copy=False)]

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message, when there is a reader, and room. Frames are copied."""
        if self._publishes:
            self._hear()
            while not self._subscriptions:
                self._wait(zmq.POLLIN, "nobody subscribed")
                self._hear()
        while True:
            self._wait(zmq.POLLOUT, "nobody took a batch")
            with suppress(zmq.Again):  # the reader that had room has just gone, and what it had of the batch with it
                self._socket.send_multipart(frames, zmq.NOBLOCK)
                return

    def close(self) -> None:
        """Close, after at most ``timeout`` seconds in which readers take what was sent. May be called twice."""
        self._context.destroy(linger=round(1000 * (self._timeout or _LINGER)) if self._urls[0].sends else 0)

    def abort(self) -> None:
        """Close at once, whatever has not been taken. May be called twice."""
        self._context.destroy(linger=0)

    def _hear(self) -> None:
        """Count subscriptions: messages that begin with 1 are a first one, and with 0 the last one's end."""
        self._require_open()
        with suppress(zmq.Again):
            while True:
                said = self._socket.recv(zmq.NOBLOCK)[:1]
                self._subscriptions += {b"\1": 1, b"\0": -1}.get(said, 0)

    def _wait(self, event: int, complaint: str) -> None:
        self._require_open()
        deadline = math.inf if self._timeout is None else time.monotonic() + self._timeout
        while not self._socket.poll(math.ceil(1000 * min(_BEAT, max(0.0, deadline - time.monotonic()))), event):
            if time.monotonic() >= deadline:
                urls = ", ".join(url.text for url in self._urls)
                raise ServerUnavailable(
                    f"{urls}: {complaint} for {self._timeout:g} s; start the other end, or raise timeout="
                )

    def _require_open(self) -> None:
        if self._socket.closed:
            raise UsageError("the connection is closed")
