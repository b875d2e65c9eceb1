"""The door: where clients come in, how many, and what each may bring.

The rule of this file: whatever comes, from however many, a server's memory and descriptors keep to a bound that is
written down (docs/security.md), and whoever is honest comes through.
"""

import logging
import os
import resource
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError
from feedmill_protocol.spans import SPAN_BYTES
from feedmill_sockets.inflow import Inflow, may_hold

from .broker import CLIENT_SILENCE
from .complaints import Complaints
from .gate import Gate

__all__ = ["DESCRIPTORS", "Door", "Mail"]

DESCRIPTORS: Final = 256
"""Descriptors that there must be for connections, each of which takes two."""

_CONNECTIONS: Final = 1024
"""Connections that stand at a time, if the process may open so many files."""

_FRAME_BYTES: Final = 1024 * 1024
"""The largest frame of a client: the spans of limits.BATCH_SAMPLES samples."""

_MESSAGE_BYTES: Final = limits.HEADER_BYTES + limits.BATCH_SAMPLES * SPAN_BYTES

_FRAMES: Final = 64
"""Frames of a client's message. It has three, or two where there is no payload."""

_MISUNDERSTOOD: Final = 8
"""A client of which so many messages in a row were not understood is not listened to any more."""

_DROPPED: Final = 4096
"""Frames of a message that is too long which are dropped at a time: a few milliseconds. There may be millions."""

_UNREAD: Final = 8
"""Messages of a client that wait to be read; then it has to wait itself."""

_HALF_MESSAGES: Final = 128 * 1024 * 1024
"""Bytes that libzmq may hold in messages that are not whole. One for 256 samples in random order counts for 120 KiB,
and for no longer than it takes to come."""

_LEFT: Final = 16 * 1024 * 1024
"""Bytes that libzmq may hold of connections that have gone, while others are let in. To read, and drop, so much takes
a quarter of a second where it is empty frames."""

_KERNEL_BYTES: Final = 256 * 1024
"""What the kernel keeps of what comes over a connection and was not read; by itself it would take up to 6 MB."""

_HANDSHAKE_MS: Final = 10_000
"""Until when a connection must have become one of ZMTP. With CURVE that is three times there and back."""

_EVENTS: Final = 256
"""Comings and goings that are looked at in a row; then it is somebody else's turn."""

_log = logging.getLogger(__name__)


class Mail(NamedTuple):
    """A message as it came: the client, libzmq's descriptor of its connection, and the frames, at least one.

    The descriptor is -1 if libzmq does not say, as for who speaks a ZMTP before 3.0. No client of ours does.
    """

    client: bytes
    fd: int
    frames: Sequence[zmq.Frame]


@dataclass(slots=True)
class _Guest:
    address: str
    heard: float  # when it came, or last said something that was understood
    known: bool = False  # whether it ever did
    misunderstood: int = 0  # messages since


class Door:
    """A ROUTER that clients connect to. ``spare`` is how many descriptors the rest of the process may need."""

    def __init__(self, router: zmq.Socket[Any], spare: int) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(_CONNECTIONS, (files - spare) // 2)
        self._most_of_one = self._most // 2  # no address can keep all others out
        self._router = router
        self._port = -1
        self._guests: dict[int, _Guest] = {}
        self._addresses: Counter[str] = Counter()
        self._inflow = Inflow(may_hold(_MESSAGE_BYTES), _HALF_MESSAGES)
        self._skipping = False  # the rest of a message that is too long
        self._complaints = Complaints()
        # Each client has at most OUTSTANDING batches to come, and a PONG for each of its pings.
        router.set(zmq.SNDHWM, 2 * limits.OUTSTANDING)
        router.set(zmq.RCVHWM, _UNREAD)
        router.set(zmq.RCVBUF, _KERNEL_BYTES)
        router.set(zmq.MAXMSGSIZE, _FRAME_BYTES)
        router.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        router.set(zmq.ROUTER_MANDATORY, 1)  # an unknown client is an error, not silence
        # What a client that was stopped does not take would stay pinned as long as its kernel keeps the connection.
        # Over ipc there is no such thing; but there a stopped client can be seen, and killed, on the same machine.
        router.set(zmq.TCP_MAXRT, round(CLIENT_SILENCE * 1000))
        self._zap = router.context.socket(zmq.ROUTER)
        self._waiting: deque[list[bytes]] = deque()
        self._monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)

    def open(self, url: str, gate: Gate | None) -> str:
        """Listen; return the endpoint, with the port that was found when ``*`` was asked for. Raises UsageError."""
        router = self._router
        router.set(zmq.IPV6, "[" in url)
        if gate is not None:
            gate.open(router.context).secure(router)
        else:  # as https://rfc.zeromq.org/spec/27 has it
            self._zap.bind("inproc://zeromq.zap.01")
            router.set(zmq.ZAP_DOMAIN, b"feedmill")
        if _somebody_listens(url):
            raise UsageError(f"cannot listen on {url}: {os.strerror(zmq.EADDRINUSE)}; choose another with --bind")
        try:
            router.bind(url)
        except zmq.ZMQError as error:
            raise UsageError(f"cannot listen on {url}: {error.strerror}; choose another with --bind") from None
        endpoint = router.get_string(zmq.LAST_ENDPOINT)
        if url.startswith("tcp://"):
            self._port = int(endpoint.rpartition(":")[2])
        return endpoint

    def close(self) -> None:
        """Look no more, and let nobody else in. The connections stand until the ROUTER is closed."""
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._zap.close(linger=0)
        self._inflow.close()

    # What they bring.

    def receive(self) -> Mail | None:
        """Return the next message, None if there is none for now."""
        if self._skipping and not self._skip():
            return None
        try:
            frame = client = self._router.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._inflow.drained()
            return None
        frames: list[zmq.Frame] = []
        nbytes = 0
        while frame.more and len(frames) < _FRAMES and nbytes <= _MESSAGE_BYTES:
            frame = self._router.recv(zmq.NOBLOCK, copy=False)
            frames.append(frame)
            nbytes += len(frame)
        fd = _descriptor(frame)
        if frame.more or nbytes > _MESSAGE_BYTES:
            self._skipping = True
            self._blame(fd, f"a message of more than {_MESSAGE_BYTES:,} bytes or {_FRAMES} frames")
            return None
        self._inflow.heard(fd)
        return Mail(client.bytes, fd, frames)

    def understood(self, fd: int, now: float) -> None:
        """Take note that a message over a connection was one that a client may send."""
        if guest := self._guests.get(fd):
            guest.heard, guest.known, guest.misunderstood = now, True, 0

    def misunderstood(self, fd: int) -> None:
        """Take note that a message over a connection was not one that a client may send."""
        if guest := self._guests.get(fd):
            guest.misunderstood += 1
            if guest.misunderstood >= _MISUNDERSTOOD:
                self._blame(fd, f"{_MISUNDERSTOOD} messages in a row that are none of ours")

    def _skip(self) -> bool:
        """Drop more of a message that is too long; return whether that was all."""
        for _ in range(_DROPPED):
            if not self._router.get(zmq.RCVMORE):
                self._skipping = False
                return True
            self._router.recv(zmq.NOBLOCK)
        return False

    # Who they are.

    def look(self, now: float) -> None:
        """See who has come and who has gone, when one of ``sources`` has something to say."""
        self._let_in()
        for _ in range(_EVENTS):
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            fd = int(event["value"])
            self._forget(fd)
            self._inflow.closed(fd)
            if event["event"] == zmq.EVENT_ACCEPTED and (address := self._inflow.opened(fd, self._port)):
                self._guests[fd] = _Guest(address, now)
                self._addresses[address] += 1
                if self._addresses[address] > self._most_of_one:
                    self._make_room(now, address)
                elif len(self._guests) > self._most:
                    self._make_room(now)

    def tick(self, now: float) -> None:
        """Cut connections whose messages do not end, and let in who waits."""
        for fd in self._inflow.tick(now):
            self._cut(fd, "a message without an end")
        self._let_in()

    @property
    def sources(self) -> list[zmq.Socket[Any]]:
        """What to `look` for."""
        return [self._monitor, self._zap]

    @property
    def patience(self) -> float:
        """In how many seconds to `tick`, at the latest."""
        return self._inflow.patience

    def _let_in(self) -> None:
        """Let those in who ask: of connections that have gone, little is unread. Until then libzmq has them wait."""
        with suppress(zmq.Again):
            while True:
                asker, _, version, number, *_ = self._zap.recv_multipart(zmq.NOBLOCK)
                self._waiting.append([asker, b"", version, number, b"200", b"", b"", b""])
        if self._waiting and self._inflow.left > _LEFT and not int(self._router.get(zmq.EVENTS)) & zmq.POLLIN:
            self._inflow.drained()
        while self._waiting and self._inflow.left <= _LEFT:
            self._zap.send_multipart(self._waiting.popleft(), zmq.NOBLOCK)

    def _make_room(self, now: float, address: str = "") -> None:
        """Cut the connection over which nothing was heard for longest, of all or of those from an address.

        Who has said something in the last seconds stays. If all have, it is the one that has just come.
        """
        silent = (
            fd
            for fd, guest in self._guests.items()
            if guest.address == (address or guest.address) and not (guest.known and now - guest.heard < CLIENT_SILENCE)
        )
        fd = min(silent, key=lambda fd: self._guests[fd].heard)
        most = f"{self._most_of_one} from one address" if address else f"{self._most}"
        self._cut(fd, f"more connections than {most}")

    def _forget(self, fd: int) -> None:
        if guest := self._guests.pop(fd, None):
            self._addresses[guest.address] -= 1
            if not self._addresses[guest.address]:
                del self._addresses[guest.address]

    def _blame(self, fd: int, why: str) -> None:
        """Cut a connection for a message, unless that may be what an earlier one left that had the same descriptor."""
        if not self._inflow.left:
            self._cut(fd, why)

    def _cut(self, fd: int, why: str) -> None:
        self._inflow.cut(fd)
        guest = self._guests.get(fd)
        if times := self._complaints.due(why.encode(), time.monotonic()):
            _log.warning("cut %d connections, the last from %s: %s", times, guest.address if guest else "nowhere", why)
        self._forget(fd)


def _descriptor(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def _somebody_listens(url: str) -> bool:
    """Tell whether an ``ipc://`` URL is a server's already: libzmq would take it away from that one in silence."""
    scheme, _, path = url.partition("://")
    if scheme == "ipc":
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(path)
            return True
    return False
