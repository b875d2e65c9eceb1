"""A server: the socket, the workers and the memory around the broker.

One thread. It waits for whatever comes first (a client's message, a worker's report, a signal), tells the broker, gives
parts to workers and replies to clients. Batches leave from the slots they were built in, without a copy; a slot is
pinned until libzmq has let go of every frame of it.
"""

import hashlib
import itertools
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import zmq

from feedmill_protocol import codec, limits
from feedmill_protocol.errors import Damaged, PipelineError, ProtocolError, ShardError, UsageError, VersionMismatch
from feedmill_protocol.messages import Hello
from feedmill_protocol.tensors import FieldSpec, offsets

from .broker import CLIENT_SILENCE, Bad, Broker, Reply, Stream, Work
from .catalog import Catalog
from .channel import Channel, ChannelClosed
from .complaints import Complaints
from .config import PRESETS, ServerConfig, StreamConfig
from .listing import expand
from .shards import OPEN_SHARDS, ShardStore
from .slots import Slot, SlotPool
from .workers import Workers

__all__ = ["Served", "Server"]

_IN_HAND: Final = 2
"""Parts that a worker has at a time: it never waits for the broker between two."""

_TICK: Final = 0.25
"""Seconds between looks at the clock, and how late a signal may be noticed."""

_PINNED_POLL: Final = 0.002
"""Seconds between looks at libzmq when a batch waits for a slot that is being sent."""

_REPORT_EVERY: Final = 10.0
"""Seconds between lines in the log that say how fast it goes, while it goes."""

_LOAD_TIMEOUT: Final = 120.0
"""Seconds for importing torch and the pipelines: a cold network disk takes half a minute."""

_PROBE_TIMEOUT: Final = 60.0
_PROBES: Final = 4
"""How many samples may fail before a pipeline is called unfit: the first one may be a bad one."""

_DRAIN_SECONDS: Final = 4.0
"""For finishing what was asked. With `_LINGER_MS`, a server is gone within 5 s of SIGTERM."""
_LINGER_MS: Final = 500

_CLIENT_MESSAGE_BYTES: Final = 1024 * 1024
"""The largest frame of a client: the spans of limits.BATCH_SAMPLES samples."""

_REFUSALS: Final = {VersionMismatch: "version", Damaged: "damaged"}

_log = logging.getLogger(__name__)


class Served(NamedTuple):
    """A stream as it is served, and what it comes from."""

    stream: Stream
    source: str
    fusion: list[str]
    extensions: dict[str, int]


class _Sending(NamedTuple):
    slot: Slot
    frames: list[zmq.MessageTracker]


class Server:
    """A server of ``config``. Use it as a context manager: `prepare`, `bind`, `run`."""

    def __init__(
        self, config: ServerConfig, context: zmq.Context[zmq.Socket[bytes]], progress: Callable[[str, int, int], None]
    ) -> None:
        self.config = config
        self.served: list[Served] = []
        self.serving = False
        self._progress = progress
        self._stores = {name: _store(config, stream) for name, stream in config.streams.items()}
        pipelines = [(s.pipeline or PRESETS[s.preset], s.exact) for s in config.streams.values()]
        self._workers = Workers(config.workers, pipelines, config.jpeg)
        self._pool = SlotPool(config.memory)
        self._socket = context.socket(zmq.ROUTER)
        self._poller = zmq.Poller()
        self._sending: deque[_Sending] = deque()
        self._complaints = Complaints()
        self._stop_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything, within a second."""
        self._workers.close()
        self._socket.close(linger=_LINGER_MS)

    # Before the first client.

    def prepare(self) -> None:
        """Load pipelines, index shards, start the workers, and learn what they make of a sample."""
        self._workers.start()
        catalogs = [Catalog.build(store, partial(self._indexed, name)) for name, store in self._stores.items()]
        described, versions = self._workers.wait_loaded(_LOAD_TIMEOUT)
        for name, pipeline, catalog in zip(self._stores, described, catalogs, strict=True):
            _check_fields(name, pipeline["fields"], catalog)
        open_shards = max(1, OPEN_SHARDS // len(self._stores))
        self._workers.open([_described(self.config, store, open_shards) for store in self._stores.values()])
        first, *_ = self._workers.fill(time.monotonic())
        for number, (name, catalog, pipeline) in enumerate(zip(self._stores, catalogs, described, strict=True)):
            fields = self._probe(first, number, name, catalog)
            self.served.append(self._describe(number, name, fields, catalog, pipeline, versions))
            _check_memory(self.served[-1].stream, self._pool.max_bytes)
        self._broker = Broker(
            [served.stream for served in self.served],
            self._pool,
            server=self.config.name,
            boot=secrets.token_hex(8),
            workers=self.config.workers,
        )

    def _indexed(self, stream: str, done: int, total: int) -> None:
        self._progress(stream, done, total)
        self._workers.check_loaded()  # a pipeline that does not load is known before a long index is done

    def _describe(
        self,
        number: int,
        name: str,
        fields: tuple[FieldSpec, ...],
        catalog: Catalog,
        pipeline: dict[str, Any],
        versions: str,
    ) -> Served:
        config = self.config.streams[name]
        store = self._stores[name]
        identity = repr((catalog.digest, pipeline["source"], pipeline["fusion"], fields, versions))
        stream = Stream(
            number=number,
            name=name,
            fields=fields,
            batch_size=config.batch_size or pipeline["batch_size"],
            shards=catalog.names,
            counts=catalog.counts,
            catalog=catalog.digest,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:32],
            key=partial(_key, store),
        )
        return Served(stream, config.preset or config.pipeline, pipeline["fusion"], catalog.extensions)

    def _probe(self, worker: int, number: int, name: str, catalog: Catalog) -> tuple[FieldSpec, ...]:
        reasons = []
        for shard, index in _first_samples(catalog):
            channel = self._workers.channels[worker]
            try:
                channel.send("probe", number, shard, index)
                (kind, *answer), _ = channel.receive(_PROBE_TIMEOUT)
            except TimeoutError:
                raise PipelineError(f"stream {name}: one sample took more than {_PROBE_TIMEOUT:g} s") from None
            except ChannelClosed:
                raise PipelineError(
                    f"stream {name}: the pipeline ended the worker process on sample {index} of {catalog.names[shard]}"
                ) from None
            if kind == "probed":
                return tuple(
                    FieldSpec(field, dtype, tuple(shape), channels_last, tuple(scale), tuple(bias))
                    for field, dtype, shape, channels_last, scale, bias in answer[0]
                )
            reasons.append(f"shard {catalog.names[shard]}, sample {index}: {answer[0]}")
        raise PipelineError(f"stream {name}: the pipeline fails on the first samples; {reasons[0]}")

    # Serving.

    def bind(self) -> str:
        """Listen; return the endpoint, with the port that was found when ``*`` was asked for. Raises UsageError."""
        router = self._socket
        router.set(zmq.ROUTER_MANDATORY, 1)  # an unknown client is an error, not silence
        # Each client has at most OUTSTANDING batches to come, and a PONG for each of its pings.
        router.set(zmq.SNDHWM, 2 * limits.OUTSTANDING)
        router.set(zmq.MAXMSGSIZE, _CLIENT_MESSAGE_BYTES)
        # What a client that was stopped does not take would stay pinned as long as its kernel keeps the connection.
        # Over ipc there is no such thing; but there a stopped client can be seen, and killed, on the same machine.
        router.set(zmq.TCP_MAXRT, round(CLIENT_SILENCE * 1000))
        router.set(zmq.IPV6, "[" in self.config.bind)
        url = self.config.bind
        if _somebody_listens(url):
            raise UsageError(f"cannot listen on {url}: {os.strerror(zmq.EADDRINUSE)}; choose another with --bind")
        try:
            router.bind(url)
        except zmq.ZMQError as error:
            raise UsageError(f"cannot listen on {url}: {error.strerror}; choose another with --bind") from None
        return router.get_string(zmq.LAST_ENDPOINT)

    def stop(self) -> None:
        """Begin to drain. May be called from a signal handler."""
        self._stop_at = self._stop_at or time.monotonic() + _DRAIN_SECONDS

    def run(self) -> None:
        """Serve until `stop` was called and what was asked for is done.

        Raises PipelineError if the pipelines have to be loaded again, and are not what they were.
        """
        self.serving = True
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._workers.control, zmq.POLLIN)
        for channel in self._workers.channels.values():
            self._poller.register(channel, zmq.POLLIN)
        report = _Report(self._broker, time.monotonic())
        while not self._finished():
            for source, _ in self._poller.poll(round(self._patience() * 1000)):
                if source is self._socket:
                    self._hear_clients()
                elif source == self._workers.control.fileno():
                    self._hear_fork_server()
                else:
                    self._hear_worker(source)
            now = time.monotonic()
            self._broker.tick(now)
            self._watch(self._workers.replace(now))
            self._hand_out()
            self._send_replies()
            report.tick(now)
        _log.info("stopped; %s", report.total())

    def _finished(self) -> bool:
        """Whether there is nothing left to do, or no time to do it in."""
        if self._stop_at is None:
            return False
        if not self._broker.draining:
            _log.info("draining: %d requests are open", self._broker.open)
            self._broker.drain()
            self._send_replies()
        return not (self._broker.open or self._sending) or time.monotonic() >= self._stop_at

    def _patience(self) -> float:
        return _PINNED_POLL if self._sending and (self._broker.queued or self._stop_at) else _TICK

    def _hear_clients(self) -> None:
        for _ in range(64):  # then it is the workers' turn
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._hear_client(client.bytes, frames)

    def _hear_client(self, client: bytes, frames: Sequence[zmq.Frame]) -> None:
        try:
            header, seal = frames[0].buffer, frames[1].buffer if len(frames) > 1 else b""
            message, checksum = codec.unseal(header, seal)
            payload = codec.join(message, [frame.buffer for frame in frames[2:]])  # copied once the length is right
            codec.verify(message, payload, checksum)
            if isinstance(message, Hello):
                _log.info("client %s at %s: stream %r", client.hex()[2:], _address(frames[0]), message.stream)
            self._broker.receive(client, message, payload, time.monotonic())
        except ProtocolError as error:
            if bad := self._complaints.due(client, time.monotonic()):
                more = f"; {bad} messages like that" if bad > 1 else ""
                _log.warning("client %s at %s: %s%s", client.hex()[2:], _address(frames[0]), error, more)
            code = next((code for kind, code in _REFUSALS.items() if isinstance(error, kind)), "protocol")
            self._broker.refuse(client, code, str(error))

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
            for number in self._workers.restart():
                self._broker.lost(number, "the worker processes were killed")
            self._poller.register(self._workers.control, zmq.POLLIN)
            return
        if kind == "exited":
            self._bury(*message)
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

    def _bury(self, number: int, code: int) -> None:
        if (channel := self._workers.channels.get(number)) is None:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        _log.warning("worker %d ended with %s; replacing it", number, how)
        self._unwatch(channel)
        with suppress(ChannelClosed, TimeoutError):  # what it did before it died is not done again, nor blamed
            while True:
                self._report(number, *channel.receive(0)[0])
        self._workers.remove(number, time.monotonic())
        self._broker.lost(number, f"the worker process ended with {how} on this sample, twice")

    def _watch(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._poller.register(self._workers.channels[number], zmq.POLLIN)

    def _unwatch(self, channel: Channel) -> None:
        self._poller.register(channel, 0)  # unlike unregister, it may be done twice

    def _hand_out(self) -> None:
        self._unpin()
        for depth in range(_IN_HAND):
            for number in self._workers.channels:
                if self._broker.assigned(number) > depth:
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
                self._send(reply)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    _log.error(
                        "client %s takes no messages (%s); forgetting it", reply.client.hex()[2:], error.strerror
                    )
                self._broker.forget(reply.client)

    def _send(self, reply: Reply[Slot]) -> None:
        trackers: list[zmq.MessageTracker] = []
        try:
            self._send_frames(reply, trackers)
        finally:
            if reply.slot is not None:
                self._sending.append(_Sending(reply.slot, trackers))

    def _send_frames(self, reply: Reply[Slot], trackers: list[zmq.MessageTracker]) -> None:
        send = self._socket.send
        frames: list[memoryview] = []
        if reply.slot is not None:
            frames += codec.cut(reply.slot.memory[: reply.message.payload_bytes - len(reply.trailer)])
        frames += codec.cut(memoryview(reply.trailer))
        header, seal = codec.seal(reply.message, reply.checksum)  # before anything is sent: there is no half a message
        send(reply.client, zmq.SNDMORE | zmq.NOBLOCK)
        send(header, zmq.SNDMORE | zmq.NOBLOCK)
        send(seal, zmq.NOBLOCK | (zmq.SNDMORE if frames else 0))
        for frame in frames:
            more = 0 if frame is frames[-1] else zmq.SNDMORE
            tracker = send(frame, zmq.NOBLOCK | more, copy=False, track=True)
            if tracker is not None:
                trackers.append(tracker)

    def _unpin(self) -> None:
        for _ in range(len(self._sending)):
            sending = self._sending.popleft()
            if all(frame.done for frame in sending.frames):
                sending.slot.pins -= 1
            else:
                self._sending.append(sending)


class _Report:
    """What the log says of the rate."""

    def __init__(self, broker: Broker[Slot], now: float) -> None:
        self._broker = broker
        self._since = self._begun = now
        self._batches = self._samples = 0

    def tick(self, now: float) -> None:
        broker, elapsed = self._broker, now - self._since
        if elapsed < _REPORT_EVERY:
            return
        batches, samples = broker.batches_sent - self._batches, broker.samples_sent - self._samples
        if batches:
            _log.info(
                "%d batches in %.0f s: %.0f samples/s; %d clients, %d parts queued",
                batches,
                elapsed,
                samples / elapsed,
                broker.clients,
                broker.queued,
            )
        self._since, self._batches, self._samples = now, broker.batches_sent, broker.samples_sent

    def total(self) -> str:
        return f"{self._broker.batches_sent} batches, {self._broker.samples_sent} samples sent"


def _check_fields(stream: str, fields: Sequence[tuple[str, list[str]]], catalog: Catalog) -> None:
    """Raise PipelineError for a field that no sample has."""
    for name, extensions in fields:
        if not any(extension in catalog.extensions for extension in extensions):
            raise PipelineError(
                f"stream {stream}: no sample has the field {name!r}; the samples have {', '.join(catalog.extensions)}"
            )


def _check_memory(stream: Stream, memory: int) -> None:
    """Raise UsageError if not even one batch of the stream fits."""
    _, batch = offsets(field.rows(stream.batch_size) for field in stream.fields)
    if batch > memory:
        raise UsageError(
            f"memory={memory}: a batch of stream {stream.name} takes {batch:,} bytes; "
            "give --memory several times that, or make batches smaller with --batch-size"
        )


def _first_samples(catalog: Catalog) -> list[tuple[int, int]]:
    """Return shard and index of the first few samples."""
    firsts = ((shard, index) for shard, count in enumerate(catalog.counts.tolist()) for index in range(count))
    return list(itertools.islice(firsts, _PROBES))


def _somebody_listens(url: str) -> bool:
    """Tell whether an ``ipc://`` URL is a server's already: libzmq would take it away from that one in silence."""
    scheme, _, path = url.partition("://")
    if scheme == "ipc":
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(path)
            return True
    return False


def _address(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:  # ipc has none
        return "this machine"


def _key(store: ShardStore, shard: int, index: int) -> str:
    """Return a sample's key, or "" where its shard is no longer what it was, and so to blame itself."""
    try:
        return store.index(shard).key(index)
    except ShardError:
        return ""


def _store(config: ServerConfig, stream: StreamConfig) -> ShardStore:
    cache = Path(config.cache) if config.cache else None
    return ShardStore(expand(stream.shards), cache=cache, inflated_bytes=config.cache_bytes)


def _described(config: ServerConfig, store: ShardStore, open_shards: int) -> dict[str, Any]:
    return {
        "paths": [os.fsencode(path) for path in store.paths],
        "cache": config.cache,
        "inflated_bytes": config.cache_bytes,
        "stamps": store.stamps,
        "open_shards": open_shards,
    }
