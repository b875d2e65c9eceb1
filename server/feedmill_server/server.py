"""A server: the socket, the workers and the memory around the broker.

One thread. It waits for whatever comes first (a client's message, a worker's report, a signal), tells the broker, gives
parts to workers and replies to clients.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import zmq

from feedmill_protocol import codec
from feedmill_protocol.errors import Damaged, PipelineError, ProtocolError, VersionMismatch
from feedmill_protocol.messages import Hello

from .broker import Bad, Broker, Work
from .channel import Channel, ChannelClosed
from .complaints import Complaints
from .config import PRESETS, ServerConfig
from .door import DESCRIPTORS, Door
from .endpoints import http_address
from .gate import Gate
from .observer import Observer
from .page import Page
from .preparation import Served, check_memory, prepare
from .report import Report
from .sending import Sender
from .slots import MAX_SLOTS, Slot, SlotPool
from .web import CONNECTIONS, Web
from .workers import Workers, describe

__all__ = ["Server", "descriptors"]

_IN_HAND: Final = 2
"""Parts that a worker has at a time: it never waits for the broker between two."""

_TICK: Final = 0.25
"""Seconds between looks at the clock, and how late a signal may be noticed."""

_PINNED_POLL: Final = 0.002
"""Seconds between looks at libzmq when a batch waits for a slot that is being sent."""

_DRAIN_SECONDS: Final = 4.0
"""For finishing what was asked. With `_LINGER_MS`, a server is gone within 5 s of SIGTERM."""
_LINGER_MS: Final = 500

_OWN: Final = 64
"""Descriptors for this and that. A worker, which has no clients, opens shards instead."""

_REFUSALS: Final = {VersionMismatch: "version", Damaged: "damaged"}

_log = logging.getLogger(__name__)


def descriptors(workers: int) -> int:
    """Return how many descriptors a server needs at least: for slots, workers, clients and the rest."""
    return _all_but_clients(workers) + DESCRIPTORS


def _all_but_clients(workers: int) -> int:
    return 2 * MAX_SLOTS + 2 * workers + CONNECTIONS + _OWN


class Server:
    """A server of ``config``. Use it as a context manager: `prepare`, `bind`, `run`.

    ``progress`` is told of each stream how far indexing is: its name, shards that are done, all shards. ``handed`` is a
    descriptor of a pipeline for `feedmill_server.handover`; the only stream then has that one. ``caching`` keeps
    finished batches for others who may ask for them.
    """

    def __init__(
        self,
        config: ServerConfig,
        context: zmq.Context[zmq.Socket[bytes]],
        progress: Callable[[str, int, int], None],
        handed: int | None = None,
        *,
        caching: bool = True,
    ) -> None:
        self.config = config
        self.served: list[Served] = []
        self.serving = False
        self._progress = progress
        self._caching = caching
        pipelines = [(s.pipeline or PRESETS[s.preset], s.exact) for s in config.streams.values()]
        self._workers = Workers(
            config.workers,
            pipelines,
            config.jpeg,
            timeout=config.sample_timeout,
            memory=config.worker_memory,
            handed=handed,
        )
        self._gate = _gate(config)
        self._pool = SlotPool(config.memory)
        self._socket = context.socket(zmq.ROUTER)
        self._door = Door(self._socket, _all_but_clients(config.workers))
        self._poller = zmq.Poller()
        self._sender = Sender(self._socket)
        self._complaints = Complaints()
        self._observer: Observer | None = None
        self._web: Web | None = None
        self._stop_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything, within a second."""
        if self._web is not None:
            self._web.close()
        self._workers.close()
        self._door.close()
        self._socket.close(linger=_LINGER_MS)
        if self._gate is not None:
            self._gate.close()

    def show(self) -> str:
        """Answer over HTTP from now on, if that is configured; return the page's URL, or "". Raises UsageError."""
        if not self.config.http:
            return ""
        self._observer = Observer(self._workers, self._pool, self._sender)
        host, port = http_address(self.config.http, insecure=self.config.insecure)
        self._web = Web(host, port, Page(self.config.name, self._observer).answer)
        self._web.start()
        return self._web.url

    def prepare(self) -> None:
        """Do everything that comes before the first client. Raises FeedmillError for what cannot be served."""
        self.served = prepare(self.config, self._workers, self._progress)
        for served in self.served:
            check_memory(served.stream, self._pool.max_bytes)
        self._broker = Broker(
            [served.stream for served in self.served],
            self._pool,
            server=self.config.name,
            boot=secrets.token_hex(8),
            workers=self.config.workers,
            caching=self._caching,
        )

    # Serving.

    def bind(self, url: str | None = None) -> str:
        """Listen where the configuration says unless told otherwise. Raises UsageError.

        Returns the endpoint, with the port that was found when ``*`` was asked for.
        """
        return self._door.open(url or self.config.bind, self._gate)

    def stop(self) -> None:
        """Begin to drain. May be called from a signal handler."""
        self._stop_at = self._stop_at or time.monotonic() + _DRAIN_SECONDS

    def run(self) -> None:
        """Serve until `stop` was called and what was asked for is done.

        Raises PipelineError if the pipelines have to be loaded again, and are not what they were.
        """
        self.serving = True
        self._poller.register(self._socket, zmq.POLLIN)
        for source in self._door.sources:
            self._poller.register(source, zmq.POLLIN)
        self._poller.register(self._workers.control, zmq.POLLIN)
        for channel in self._workers.channels.values():
            self._poller.register(channel, zmq.POLLIN)
        report = Report(self._broker, time.monotonic())
        while not self._finished():
            for source, _ in self._poller.poll(round(self._patience() * 1000)):
                if source is self._socket:
                    self._hear_clients()
                elif source in self._door.sources:
                    self._door.look(time.monotonic())
                elif self._workers.is_control(source):
                    self._hear_fork_server()
                else:
                    self._hear_worker(source)
            now = time.monotonic()
            self._door.tick(now)
            self._broker.tick(now)
            self._look_after_workers(now)
            self._hand_out()
            self._send_replies()
            report.tick(now)
            if self._observer is not None:
                self._observer.tick(now, self._broker)
        _log.info("stopped; %s", report.total())

    def _finished(self) -> bool:
        """Whether there is nothing left to do, or no time to do it in."""
        if self._stop_at is None:
            return False
        if not self._broker.draining:
            _log.info("draining: %d requests are open", self._broker.open)
            self._broker.drain()
            self._send_replies()
        return not (self._broker.open or self._sender) or time.monotonic() >= self._stop_at

    def _patience(self) -> float:
        if self._sender and (self._broker.queued or self._stop_at):
            return _PINNED_POLL
        if self._sender and self._observer is not None:
            return self._observer.patience(time.monotonic())
        return min(_TICK, self._door.patience)

    def _hear_clients(self) -> None:
        for _ in range(64):  # then it is the workers' turn
            if (mail := self._door.receive()) is None:
                return
            if self._hear_client(mail.client, mail.frames):
                self._door.understood(mail.fd, time.monotonic())
            else:
                self._door.misunderstood(mail.fd)

    def _hear_client(self, client: bytes, frames: Sequence[zmq.Frame]) -> bool:
        """Take a message; return whether it was one that a client may send."""
        try:
            header, seal = frames[0].buffer, frames[1].buffer if len(frames) > 1 else b""
            message, checksum = codec.unseal(header, seal)
            payload = codec.join(message, [frame.buffer for frame in frames[2:]])  # copied once the length is right
            codec.verify(message, payload, checksum)
            if isinstance(message, Hello):
                address = _address(frames[0])
                stream = f"stream {message.stream!r}" if message.stream else "the only stream"
                _log.info("client %s at %s: %s", client.hex()[2:], address, stream)
                if self._observer is not None:
                    self._observer.came(client, address)
            self._broker.receive(client, message, payload, time.monotonic())
        except ProtocolError as error:
            address = _address(frames[0])
            if bad := self._complaints.due(address.encode(), time.monotonic()):
                more = f"; {bad} messages like that" if bad > 1 else ""
                _log.warning("client %s at %s: %s%s", client.hex()[2:], address, error, more)
            code = next((code for kind, code in _REFUSALS.items() if isinstance(error, kind)), "protocol")
            self._broker.refuse(client, code, str(error))
            return False
        return True

    # Workers.

    def _hear_fork_server(self) -> None:
        try:
            (kind, *message), _ = self._workers.control.receive(0)
        except TimeoutError:
            return
        except ChannelClosed:
            self._poller.unregister(self._workers.control)
            for channel in self._workers.channels.values():
                self._unwatch(channel)
            for number in self._workers.bury_fork_server(time.monotonic()):
                self._broker.interrupted(number)
            return
        if kind == "exited":
            number, code = message
            self._bury(number, describe(code))
            return
        try:
            self._watch(self._workers.refill(time.monotonic(), kind, *message))
        except PipelineError:
            self._broker.drain()  # clients ask others at once
            self._send_replies()
            raise

    def _hear_worker(self, fd: int) -> None:
        number = next((n for n, channel in self._workers.channels.items() if channel.fileno() == fd), None)
        if number is None:
            return
        channel = self._workers.channels[number]
        try:
            report, _ = channel.receive(0)
        except TimeoutError:
            return
        except ChannelClosed:
            self._unwatch(channel)  # the fork server will say how it ended
            return
        self._report(number, *report)

    def _report(self, number: int, _kind: str, keys: list[str], bad: list[Any]) -> None:
        self._broker.done(number, keys, [Bad(*b) for b in bad])

    def _look_after_workers(self, now: float) -> None:
        if self._workers.restart(now):
            self._poller.register(self._workers.control, zmq.POLLIN)
        for number in self._workers.look(self._broker.assigned, now):
            self._bury(number, "cannot be ended")
        self._watch(self._workers.replace(now))

    def _bury(self, number: int, how: str) -> None:
        if (channel := self._workers.channels.get(number)) is None:
            return
        self._unwatch(channel)
        with suppress(ChannelClosed, TimeoutError):  # what it did before it died is not done again, nor blamed
            while True:
                self._report(number, *channel.receive(0)[0])
        self._broker.lost(number, *self._workers.remove(number, how, time.monotonic()))

    def _watch(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._poller.register(self._workers.channels[number], zmq.POLLIN)

    def _unwatch(self, channel: Channel) -> None:
        self._poller.register(channel, 0)  # unlike unregister, it may be done twice

    def _hand_out(self) -> None:
        for reply in self._sender.left():
            self._broker.sent(reply)
        for depth in range(_IN_HAND):
            for number in self._workers.channels:
                if self._broker.assigned(number) > depth or self._broker.is_tried(number):
                    continue
                if (work := self._broker.next_part(number)) is None:
                    break
                self._give(number, work)
        self._pool.retired[:] = [slot for slot in self._pool.retired if not self._workers.drop(slot)]

    def _give(self, number: int, work: Work[Slot]) -> None:
        build = work.build
        if build.slot is None:
            raise RuntimeError("a part of a build that has no slot")
        fields = [(field.name, field.dtype, field.shape, field.channels_last) for field in build.stream.fields]
        name = (build.stream.number, fields, build.rows, work.first, build.get.seed, build.get.epoch)
        with suppress(ChannelClosed):  # the fork server will say so, and the part be done again
            self._workers.give(number, build.slot, *name, work.samples.tobytes())

    # Replies.

    def _send_replies(self) -> None:
        while self._broker.replies:
            reply = self._broker.replies.popleft()
            try:
                self._sender.send(reply)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    _log.error(
                        "client %s takes no messages (%s); forgetting it", reply.client.hex()[2:], error.strerror
                    )
                self._broker.forget(reply.client)


def _gate(config: ServerConfig) -> Gate | None:
    if not config.keys:
        return None
    return Gate(Path(config.keys).expanduser(), Path(config.authorized_clients or config.keys).expanduser())


def _address(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:  # ipc has none
        return "this machine"
