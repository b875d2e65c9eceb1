"""A peer: one server, as the connection's thread sees it. Its socket, what waits to be sent, and what is amiss.

The rule of this file: nothing waits. A socket that cannot take or give just now says so.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from math import inf
from operator import or_
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from feedmill_protocol import codec, limits
from feedmill_protocol.errors import ProtocolError, UsageError
from feedmill_sockets.inflow import Inflow

from .keys import Keys

if TYPE_CHECKING:
    from feedmill_protocol.ledger import Outgoing

__all__ = ["LINGER_MS", "Peer", "read"]

LINGER_MS: Final = 200
"""For goodbyes."""

_RECONNECT_MS: Final = (50, 1000)
"""How soon, first and at most, a lost connection is tried again: a server that comes back is used within a second."""

_GIVEN_UP: Final = 0.5
"""Seconds after a loss in which libzmq says that it tries again. It does not where the other side broke ZMTP, be it for
one flipped bit: then another socket is needed."""

_HEARTBEAT_MS: Final = (2_500, 15_000)
"""How often libzmq asks for a sign of life, and after which silence it makes the connection anew. Any frame is one: a
healthy link takes no 15 s for FRAME_BYTES, and one whose bytes have lost their order never ends a frame again."""

_UNREAD: Final = 16
"""Messages that wait to be read; then TCP has the server wait. So many batches are enough for a thread that naps."""

_UNASKED: Final = 1024
"""Messages that a server may send beyond one for each that it got: a DRAIN now and then, and 256 FAILs at worst."""

_REFUSALS: Final[dict[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "does not know our key; put it into its folder of authorized clients",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no connection: one side has keys, and the other has none",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: (
        "no connection: it hangs up; perhaps one side has keys that the other lacks, or server.key is another server's"
    ),
}
"""What libzmq says of a server that is there, and does not talk to us."""

_EVENTS: Final = reduce(
    or_,
    _REFUSALS,
    zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED,
)

_log = logging.getLogger("feedmill")


class Peer:
    """A connection to an endpoint, made as often as it is lost. Raises UsageError for one that cannot be.

    ``refusal`` is why there is none, if libzmq has said so.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: Keys | None) -> None:
        self.endpoint = endpoint
        self.backlog: deque[Outgoing] = deque()
        self.connected = False
        self.refusal = ""
        self.fd = -1  # libzmq's, of the connection
        self._lost_at = inf  # when the connection was lost, until libzmq tries again
        self._unasked = 0  # messages that came, less those that were sent
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.IMMEDIATE, 1)  # never queue for a server that is not there
        self.socket.set(zmq.IPV6, 1)
        self.socket.set(zmq.SNDHWM, 2 * limits.OUTSTANDING)
        self.socket.set(zmq.RCVHWM, _UNREAD)
        self.socket.set(zmq.MAXMSGSIZE, limits.FRAME_BYTES_MAX)
        self.socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS[0])
        self.socket.set(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_MS[1])
        self.socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        self.socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        if keys is not None:
            keys.secure(self.socket)
        self.monitor = self.socket.get_monitor_socket(_EVENTS)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"cannot connect to {endpoint}: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the connection, after what was sent has left."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=LINGER_MS)

    def observe(self, inflow: Inflow, now: float) -> Iterator[bool]:
        """Yield what the ``monitor`` tells: True for a connection that now stands, False for one that is lost."""
        while self.monitor.poll(0):
            told = parse_monitor_message(self.monitor.recv_multipart())
            event = told["event"]
            if event == zmq.EVENT_CONNECTED:
                self.fd = int(told["value"])
                inflow.opened(self.fd, _port(self.endpoint))
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected, self._lost_at, self.refusal, self._unasked = True, inf, "", 0
                yield True
            elif refusal := _REFUSALS.get(event):
                if not self.refusal:
                    _log.warning("%s: %s", self.endpoint, refusal)
                self.refusal = refusal
                self._lost_at = now
            elif event == zmq.EVENT_DISCONNECTED:
                if self.connected:
                    _log.warning("lost the connection to %s; what was asked of it is asked elsewhere", self.endpoint)
                self.connected = False
                self.backlog.clear()
                self._lost_at = now
                inflow.closed(self.fd)
                self.fd = -1  # it may be another connection's from now on
                yield False
            else:
                self._lost_at = inf

    def is_given_up(self, now: float) -> bool:
        """Tell whether libzmq does not try to connect any more."""
        return now >= self._lost_at + _GIVEN_UP

    def send(self) -> None:
        """Send of the backlog what the socket takes now."""
        with suppress(zmq.Again):
            while self.backlog:
                _, message, payload = self.backlog[0]
                frames = codec.seal(message, codec.checksum(payload))
                self.socket.send_multipart([*frames, payload] if payload else frames, zmq.NOBLOCK)
                self.backlog.popleft()
                self._unasked -= 1

    def count(self, messages: int) -> None:
        """Take note that messages have come. Raises ProtocolError if nobody has asked for so many."""
        self._unasked += messages
        if self._unasked > _UNASKED:
            raise ProtocolError(f"{self.endpoint}: more than {_UNASKED:,} messages that nobody asked for")


def read(endpoint: str, socket: zmq.Socket[bytes], payload: memoryview) -> tuple[int, int]:
    """Receive what is left of a message into memory; return its length, whether or not there was room, and checksum.

    Raises ProtocolError for one of more than `limits.FRAMES` frames, which is not read to its end.
    """
    received = frames = 0
    checksum = codec.Checksum()
    while socket.get(zmq.RCVMORE):
        room = payload[received:] or memoryview(bytearray(1))
        size = socket.recv_into(room, flags=zmq.NOBLOCK)  # the frame's length, room or no room
        checksum.update(room[:size])  # while it is in the cache
        received += size
        frames += 1
        if frames > limits.FRAMES:
            raise ProtocolError(f"{endpoint}: a message of more than {limits.FRAMES:,} frames")
    return received, checksum.intdigest()


def _port(endpoint: str) -> int:
    scheme, _, place = endpoint.partition("://")
    return int(place.rpartition(":")[2]) if scheme == "tcp" else -1
