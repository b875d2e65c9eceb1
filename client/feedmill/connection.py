"""The connection: one background thread that holds the sockets and drives the ledger.

The trainer's thread asks for batches and waits for them; this thread does everything else, so that servers are answered
and batches received whatever the trainer is busy with. The two share what `_lock` guards and nothing else.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
import numpy.typing as npt
import zmq

from feedmill_protocol import codec, limits
from feedmill_protocol.errors import (
    Damaged,
    DataError,
    FeedmillError,
    ProtocolError,
    ServerUnavailable,
    UsageError,
    VersionMismatch,
)
from feedmill_protocol.ledger import Key, Ledger, Outgoing
from feedmill_protocol.messages import Batch, Get, Message, Welcome
from feedmill_protocol.tensors import offsets
from feedmill_sockets.inflow import Inflow, may_hold

from .addresses import LOOK_UP_EVERY, Url
from .keys import Keys
from .peer import LINGER_MS, Peer, read

if TYPE_CHECKING:
    import torch

__all__ = ["Arrived", "Connection"]

_LOOK_UP_AGAIN: Final = 0.5
"""Seconds until a name that was not found is looked up again: at start, names and servers come up in any order."""

_PATIENCE: Final = 1.0
"""Seconds for which the thread sleeps at most."""

_STOPPED: Final = 2.0
"""A thread that wakes so many seconds late was stopped: the process, or the machine."""

_RETRY: Final = 0.01
"""Seconds until a message that a socket does not take yet is offered again."""

_CLOSE_SECONDS: Final = 2.0

_PENANCE: Final = 60.0
"""Seconds for which a server that broke the protocol is not asked, if there are others."""

_CATALOG_BYTES: Final = limits.HEADER_BYTES + 4 * limits.SHARDS
"""The largest message while nobody has said what a batch is."""

_KEY_BYTES: Final = limits.KEYS_BYTES // limits.BATCH_SAMPLES
"""Of a sample, if all are as long as the longest batch allows. Most have 20."""

_COUNTERS: Final = ("asked_again", "hedged", "duplicates", "damaged")

_log = logging.getLogger("feedmill")


@dataclass(frozen=True, slots=True)
class Arrived:
    """A batch as it came: its message, its block, the keys of its samples, and the endpoint that it came from."""

    message: Batch
    block: "torch.Tensor"
    keys: bytes
    server: str


class Connection:
    """The servers behind ``urls``, in a thread of its own. ``allocate`` makes room for a block of so many bytes.

    With ``keys``, connections are encrypted, and made to nobody who does not hold the server's.

    Everything that waits raises the error that ended the connection, if one did; and what ``guard`` raises, which is
    called now and then meanwhile, and may be replaced.
    """

    def __init__(
        self,
        urls: Sequence[Url],
        stream: str,
        *,
        timeout: float,
        allocate: "Callable[[int], torch.Tensor]",
        keys: Keys | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.contract: Welcome | None = None
        self.counts: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self.guard: Callable[[], None] = lambda: None
        self._urls = urls
        self._allocate = allocate
        self._keys = keys
        self._ledger = Ledger(stream, timeout=timeout, now=time.monotonic())
        self._resolved: dict[Url, frozenset[str]] = {}
        self._peers: dict[str, Peer] = {}
        self._left: dict[str, tuple[float, str]] = {}  # servers that broke the protocol: until when, and how
        self._inflow = Inflow(may_hold(_CATALOG_BYTES))
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Condition()
        # Guarded by _lock:
        self._commands: deque[Callable[[float], None]] = deque()
        self._wanted: set[Key] = set()
        self._arrived: dict[Key, Arrived] = {}
        self._servers: dict[str, str] = {}
        self._working: float | None = None
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._error: FeedmillError | None = None
        self._told = False  # whether the error was raised
        self._ended = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedmill", daemon=True)
        self._thread.start()
        if not all(url.fixed for url in urls):
            threading.Thread(target=self._look_up, name="feedmill-names", daemon=True).start()

    # The trainer's side.

    def wait_contract(self) -> Welcome:
        """Wait until a server has said what the stream is."""
        with self._lock:
            self._wait(lambda: self.contract is not None)
        if self.contract is None:
            raise RuntimeError("a wait ended without its reason")
        return self.contract

    def want(self, get: Get, spans: bytes, samples: int) -> None:
        """Ask for a batch."""
        with self._lock:
            self._wanted.add((get.epoch, get.batch))
        self._command(lambda now: self._ledger.want(get, spans, samples, now))

    def forget(self, keys: Collection[Key]) -> None:
        """Drop batches that were asked for, come or not."""
        with self._lock:
            for key in keys:
                self._arrived.pop(key, None)
            self._wanted.difference_update(keys)
            self._lock.notify_all()
        self._command(lambda _: self._forget(keys))

    def take(self, keys: Collection[Key]) -> tuple[Key, Arrived]:
        """Wait for the first of some batches, and take it. Raises UsageError if none of them is asked for any more."""
        with self._lock:
            self._wait(lambda: any(key in self._arrived for key in keys) or self._wanted.isdisjoint(keys))
            key = next((key for key in self._arrived if key in keys), None)
            if key is None:
                raise UsageError("this iteration is over: the feed was iterated over again, in another thread")
            self._wanted.discard(key)
            return key, self._arrived.pop(key)

    @property
    def usable(self) -> bool:
        """Whether there is anything to wait for: neither closed nor failed."""
        return self._error is None and not self._closing.is_set()

    def complain(self) -> None:
        """Raise the error that ended the connection, if nobody was told.

        Not that servers are away, which may pass; nor what is wrong with a batch, which may not be wanted any more, and
        is told again if it is.
        """
        passing = (ServerUnavailable, DataError)
        with self._lock:
            if self._error is not None and not self._told and not isinstance(self._error, passing):
                self._tell(self._error)

    def counters(self) -> dict[str, int]:
        """Return what the ledger has counted."""
        with self._lock:
            return dict(self._counters)

    def working(self) -> float | None:
        """Return which share of the servers' workers lately had work, as `Ledger.working` does."""
        with self._lock:
            return self._working

    def in_flight(self) -> int:
        """Return how many batches are asked for and have not come."""
        with self._lock:
            return len(self._wanted - self._arrived.keys())

    def servers(self) -> dict[str, str]:
        """Return the state of every server, in words."""
        with self._lock:
            return dict(self._servers)

    def close(self) -> None:
        """Say goodbye and end the thread. Takes no longer than `_CLOSE_SECONDS`; may be called twice."""
        if os.getpid() != self.pid or self._closing.is_set():
            return  # a forked child has no thread to end
        self._closing.set()
        with self._lock:
            self._wake()
        if threading.current_thread() is not self._thread:  # where the garbage collector may run a finalizer
            self._thread.join(_CLOSE_SECONDS)

    def _wait(self, happened: Callable[[], bool]) -> None:
        # The ledger's deadline ends the wait; waking now and then lets Ctrl-C through everywhere.
        while not happened():
            if self._error is not None:
                self._tell(self._error)
            if not self._thread.is_alive():
                raise UsageError("the feed was closed while a batch was awaited")
            self.guard()
            self._lock.wait(0.5)

    def _tell(self, error: FeedmillError) -> NoReturn:
        self._told = True
        raise error

    def _command(self, command: Callable[[float], None]) -> None:
        with self._lock:
            self._commands.append(command)
            self._wake()

    def _wake(self) -> None:
        """Wake the thread, if there is one to wake. The caller holds the lock: the descriptor is closed under it."""
        if not self._ended:
            with suppress(BlockingIOError):  # it has been woken often enough
                os.write(self._wake_writer, b"x")

    # The thread's side.

    def _run(self) -> None:
        with suppress(OSError):  # not everywhere allowed, and only for speed
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # libzmq's threads, begun here, inherit it
        try:
            self._poller.register(self._wake_reader, zmq.POLLIN)
            self._resolve({url: url.resolve() for url in self._urls if url.fixed})
            while not self._closing.is_set():
                self._turn()
        except ServerUnavailable as error:
            unresolved = {
                url.text: "does not resolve" for url in self._urls if not (url.fixed or self._resolved.get(url))
            }
            self._fail(ServerUnavailable(error.timeout, error.servers | self._refused() | unresolved))
        except FeedmillError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(FeedmillError(f"bug in feedmill: {error!r}"))
            raise
        finally:
            self._shut_down()

    def _turn(self) -> None:
        now = time.monotonic()
        with self._lock:
            commands, self._commands = self._commands, deque()
        for command in commands:
            command(now)
        self._send()
        patience = min(self._ledger.wake_at() - now, self._inflow.patience, _PATIENCE)
        if any(peer.backlog for peer in self._peers.values()):
            patience = min(patience, _RETRY)
        ready = dict(self._poller.poll(max(0, round(patience * 1000))))
        if (late := time.monotonic() - now - patience) > _STOPPED:
            self._ledger.stood_still(late)
        if ready.pop(self._wake_reader, None):
            os.read(self._wake_reader, 4096)
        for endpoint, peer in list(self._peers.items()):
            try:
                self._hear(peer, ready)
            except ProtocolError as error:
                self._leave(endpoint, error)
        for fd in self._inflow.tick(now):
            for endpoint in [peer.endpoint for peer in self._peers.values() if peer.fd == fd]:
                self._leave(endpoint, ProtocolError(f"{endpoint}: a message without an end, or larger than any batch"))
        for endpoint in [endpoint for endpoint, (until, _) in self._left.items() if now >= until]:
            del self._left[endpoint]
            self._connect(endpoint)
        self._ledger.tick(time.monotonic())  # after reading: what waits to be read is no silence
        self._send()
        with self._lock:
            self._servers = self._ledger.describe() | self._refused()
            self._working = self._ledger.working()
            self._counters = {name: getattr(self._ledger, name) for name in _COUNTERS}

    def _refused(self) -> dict[str, str]:
        refused = {endpoint: peer.refusal for endpoint, peer in self._peers.items() if peer.refusal}
        return refused | {endpoint: how for endpoint, (_, how) in self._left.items()}

    def _fail(self, error: FeedmillError) -> None:
        with self._lock:
            self._error = error
            self._lock.notify_all()

    def _shut_down(self) -> None:
        self._ledger.leave()
        self._send()
        for endpoint in list(self._peers):
            self._close(endpoint)
        self._context.destroy(linger=LINGER_MS)
        self._inflow.close()
        with self._lock:
            self._ended = True
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            self._lock.notify_all()

    def _forget(self, keys: Collection[Key]) -> None:
        for key in keys:
            self._ledger.forget(key)
        with self._lock:  # one may have come between the command and now
            for key in keys:
                self._arrived.pop(key, None)

    # Servers.

    def _look_up(self) -> None:
        names = [url for url in self._urls if not url.fixed]
        while self.usable:
            found = {url: url.resolve() for url in names}
            self._command(lambda _, found=found: self._resolve(found))  # type: ignore[misc]
            self._closing.wait(LOOK_UP_EVERY if all(found.values()) else _LOOK_UP_AGAIN)

    def _resolve(self, found: Mapping[Url, frozenset[str]]) -> None:
        """Hold connections to what the names resolve to now. A name that resolves to nothing keeps what it had."""
        self._resolved |= {url: endpoints for url, endpoints in found.items() if endpoints}
        wanted = frozenset().union(*self._resolved.values())
        for endpoint in self._left.keys() - wanted:
            del self._left[endpoint]
        for endpoint in wanted - self._peers.keys() - self._left.keys():
            self._connect(endpoint)
        for endpoint in self._peers.keys() - wanted:
            _log.info("server %s is gone from the name service", endpoint)
            self._disconnect(endpoint)

    def _connect(self, endpoint: str) -> None:
        peer = self._peers[endpoint] = Peer(self._context, endpoint, self._keys)
        self._poller.register(peer.socket, zmq.POLLIN)
        self._poller.register(peer.monitor, zmq.POLLIN)
        self._ledger.add(endpoint)

    def _disconnect(self, endpoint: str) -> None:
        self._ledger.remove(endpoint)
        self._send()
        self._close(endpoint)

    def _close(self, endpoint: str) -> None:
        peer = self._peers.pop(endpoint)
        self._poller.unregister(peer.socket)
        self._poller.unregister(peer.monitor)
        self._inflow.closed(peer.fd)
        peer.close()

    def _leave(self, endpoint: str, error: ProtocolError) -> None:
        """Do without a server that broke the protocol, for a while. Raises the error if there is no other server."""
        if len(self._peers) == 1:
            raise error
        _log.error("%s; it is left alone for %g s", error, _PENANCE)
        self._left[endpoint] = time.monotonic() + _PENANCE, str(error)
        self._disconnect(endpoint)

    def _hear(self, peer: Peer, ready: Mapping[object, int]) -> None:
        """Take what a server says, and what is said of it."""
        endpoint, now = peer.endpoint, time.monotonic()
        if peer.monitor in ready:
            for stands in peer.observe(self._inflow, now):
                if stands:
                    self._ledger.connected(endpoint, now)
                else:
                    self._ledger.disconnected(endpoint)
        if peer.socket in ready:
            self._inflow.heard(peer.fd)
            peer.count(self._receive(endpoint, peer.socket))
        if peer.is_given_up(now):
            self._close(endpoint)
            self._connect(endpoint)
            self._peers[endpoint].refusal = peer.refusal  # until it is known better

    # Messages.

    def _send(self) -> None:
        for outgoing in _drained(self._ledger.outbox):
            if peer := self._peers.get(outgoing.server):
                peer.backlog.append(outgoing)
        for peer in self._peers.values():
            peer.send()

    def _receive(self, endpoint: str, socket: zmq.Socket[bytes]) -> int:
        """Take messages; return how many there were."""
        for number in range(16):  # then it is another server's turn
            try:
                header = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return number
            seal = socket.recv(zmq.NOBLOCK) if socket.get(zmq.RCVMORE) else b""
            try:
                message, checksum = codec.unseal(header, seal)
            except Damaged as error:
                _log.warning("%s: %s; asking again for what was asked of it", endpoint, error)
                read(endpoint, socket, memoryview(b""))
                self._ledger.garbled(endpoint, time.monotonic())
            except VersionMismatch as error:
                raise VersionMismatch(error.theirs, error.ours, endpoint) from None
            except ProtocolError as error:
                raise ProtocolError(f"{endpoint}: {error}") from None
            else:
                self._take(endpoint, socket, message, checksum)
        return 16

    def _take(self, endpoint: str, socket: zmq.Socket[bytes], message: Message, checksum: int) -> None:
        # The ledger says first whether this was asked for: only then is there memory for it.
        block = self._allocate(message.payload_bytes if self._ledger.wants(endpoint, message) else 0)
        payload = memoryview(block.numpy())  # type: ignore[arg-type] # numpy is a buffer since 3.12
        received, found = read(endpoint, socket, payload)
        if received != message.payload_bytes:  # frames have changed hands: who knows what else has come
            said = f"a payload of {received} bytes, where {message.payload_bytes} were announced"
            _log.warning("%s: %s: %s; asking again for what was asked of it", endpoint, message.type, said)
            self._ledger.garbled(endpoint, time.monotonic())
            return
        intact = not payload or found == checksum
        if not intact:
            _log.warning("%s: %s: the checksum of its payload is wrong; asking again", endpoint, message.type)
        if not self._ledger.received(endpoint, message, time.monotonic(), intact=intact):
            return
        if isinstance(message, Batch):
            arrived = Arrived(message, block, _keys(endpoint, message, payload), endpoint)
            with self._lock:
                self._arrived[message.epoch, message.batch] = arrived
                self._lock.notify_all()
        elif isinstance(message, Welcome):
            with self._lock:
                self.counts = np.frombuffer(payload, "<u4").astype(np.uint32)
                self.contract = message
                self._inflow.each = may_hold(_largest(message))
                self._lock.notify_all()


def _largest(contract: Welcome) -> int:
    """Return how many bytes an honest message of a stream's server has at most."""
    block = offsets(field.rows(contract.batch_size) for field in contract.fields)[1]
    return limits.HEADER_BYTES + max(block + _KEY_BYTES * contract.batch_size, 4 * contract.shards)


def _keys(endpoint: str, message: Batch, payload: memoryview) -> bytes:
    keys = bytes(payload[len(payload) - message.keys :])
    found = keys.count(b"\0") + 1 if keys else 0
    if any(tensor.shape[0] != found for tensor in message.tensors):
        raise ProtocolError(f"{endpoint}: BATCH has {found} keys, for tensors {message.tensors}")
    return keys


def _drained(outbox: deque[Outgoing]) -> list[Outgoing]:
    drained = list(outbox)
    outbox.clear()
    return drained
