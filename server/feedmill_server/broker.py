"""The broker: which batch is built next, by whom, and who gets it.

The server's state machine. It does no I/O and reads no clock; the service tells it what happens, gives its parts to
workers and sends its replies. Rules that bind this file:

* Nothing is sent that was not asked for, and everything that was asked for is answered: by a BATCH or a FAIL.
* One name, one build: requests for a batch that is queued, being built or cached join it.
* All workers work on the oldest batch that has parts left; the next one is begun when there are none. Clients take
  turns, each with its oldest request; one that has more than its share of the memory on its way waits until it has
  taken it.
* Memory is the limit: a batch is begun when there is a slot for it. Finished batches keep their slots, and are the
  cache, until another batch needs the memory. Without a cache, batches that have left give up their slots before the
  next is begun.
* What a worker had when it died, or was ended because it hung, is done again; the sample that this happens to twice is
  bad.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from feedmill_protocol import codec, limits, spans
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.messages import (
    Batch,
    Bye,
    Cancel,
    Drain,
    Fail,
    Get,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    Skipped,
    Welcome,
    shorten,
)
from feedmill_protocol.tensors import offsets

from .builds import Asker, Bad, Build, BuildName, M, Pool, Reply, Stream, Work
from .tally import Tally

__all__ = ["Bad", "Broker", "Build", "Pool", "Reply", "Stream", "Work"]

PART_SAMPLES: Final = 16
"""Samples of a part: small enough to share a batch among many workers, large enough (about 20 ms of decoding) that
handing it out costs nothing beside it."""

CLIENT_SILENCE: Final = 10.0
"""Seconds after which a client that says nothing is forgotten. Clients ping twice a second."""

KILLS: Final = 2
"""How many workers a sample may cost before it is called bad: one may have been lost to something else. What comes from
outside, like SIGKILL, counts half: it may hit twice at the same sample by chance, but hardly four times."""

SPANS: Final = 2**24
"""Spans in all requests and in the cache together, 192 MiB; beyond it no client may have more than its share. 65,536
requests for 256 samples in random order have so many."""


@dataclass(slots=True)
class _Client(Generic[M]):
    heard: float
    queue: deque[Build[M]] = field(default_factory=deque)
    open: dict[tuple[int, int], Build[M]] = field(default_factory=dict)

    @property
    def spans(self) -> int:
        """How many its requests have."""
        return sum(len(build.spans) for build in self.open.values())


class Broker(Generic[M]):
    """The requests of all clients at one server, and the builds that answer them.

    Finished batches stay for whoever asks for them next, if ``caching``.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        pool: Pool[M],
        *,
        server: str,
        boot: str,
        workers: int,
        caching: bool = True,
    ) -> None:
        self.replies: deque[Reply[M]] = deque()
        self.tally = Tally()
        self.newest: Build[M] | None = None  # the batch that was finished last; it has a slot while it is in the cache
        self.draining = False
        self._streams = {stream.name: stream for stream in streams}
        self._counts = {stream.name: stream.counts.astype("<u4").tobytes() for stream in streams}  # 8 MB each at worst
        self._pool = pool
        self._server, self._boot, self._workers = server, boot, workers
        self._caching = caching
        self._clients: OrderedDict[bytes, _Client[M]] = OrderedDict()  # whose turn it is comes first
        self._unsent: Counter[bytes] = Counter()  # bytes of batches on their way, also to clients that said goodbye
        self._builds: OrderedDict[BuildName, Build[M]] = OrderedDict()  # the least recently wanted first
        self._spans = 0  # of all builds
        self._building: deque[Build[M]] = deque()
        self._assigned: dict[int, deque[Work[M]]] = {}

    # Clients.

    def receive(self, client: bytes, message: Message, payload: bytes | memoryview, now: float) -> None:
        """Take a message from a client. Raises ProtocolError for one that no client may send."""
        if isinstance(message, Bye):
            self.forget(client)
            return
        known = self._clients.setdefault(client, _Client(now))
        known.heard = now
        match message:
            case Hello():
                self._welcome(client, message)
            case Get():
                self._get(client, known, message, payload)
            case Cancel():
                self._cancel(client, known, (message.epoch, message.batch))
            case Ping():
                self._reply(client, self._pong())
            case _:
                raise ProtocolError(f"{message.type} is no message from a client")

    def refuse(self, client: bytes, code: str, reason: str) -> None:
        """Tell a client that it is not understood."""
        self._reply(client, Reject(code=code, reason=shorten(reason, limits.REASON_BYTES)))

    def forget(self, client: bytes) -> None:
        """Drop a client and all that it asked for."""
        if known := self._clients.get(client):
            for key in list(known.open):
                self._cancel(client, known, key)
            del self._clients[client]

    def tick(self, now: float) -> None:
        """Drop clients that have gone without a word; if one is there after all, it will ask again."""
        silent = [client for client, known in self._clients.items() if now - known.heard >= CLIENT_SILENCE]
        for client in silent:
            for (epoch, batch), build in self._clients[client].open.items():
                reason = f"nothing was heard of the client for {CLIENT_SILENCE:g} s"
                attempt = build.waiters[client, epoch, batch]
                self._reply(client, Fail(epoch=epoch, batch=batch, attempt=attempt, retryable=True, reason=reason))
            self.forget(client)

    def drain(self) -> None:
        """Take no more requests, and tell everybody."""
        self.draining = True
        for client in self._clients:
            self._reply(client, Drain())

    def sent(self, reply: Reply[M]) -> None:
        """Take note that a reply has left: its slot is pinned no more."""
        if reply.slot is not None:
            reply.slot.pins -= 1
            self._unsent[reply.client] -= reply.message.payload_bytes
            if not self._unsent[reply.client]:
                del self._unsent[reply.client]

    @property
    def clients(self) -> int:
        """How many clients are known."""
        return len(self._clients)

    @property
    def queued(self) -> int:
        """How many parts wait for a worker."""
        waiting = sum(-(-b.rows // PART_SAMPLES) for known in self._clients.values() for b in known.queue)
        return waiting + sum(len(build.parts) for build in self._building)

    @property
    def open(self) -> int:
        """How many requests are unanswered."""
        return sum(len(known.open) for known in self._clients.values())

    def demand(self) -> list[tuple[bytes, int, int]]:
        """Return, for each client, how many of its requests are unanswered, and how many bytes are on their way."""
        return [(client, len(known.open), self._unsent[client]) for client, known in self._clients.items()]

    def _pong(self) -> Pong:
        in_hand = [len(works) for works in self._assigned.values() if works]
        idle = max(0, self._workers - len(in_hand))
        return Pong(progress=self.tally.parts, queue=self.queued + sum(in_hand), idle=idle)

    def _welcome(self, client: bytes, hello: Hello) -> None:
        names = ", ".join(self._streams)
        if not hello.stream and len(self._streams) > 1:
            self.refuse(client, "stream", f"this server has several streams: {names}; name one with stream=")
            return
        stream = self._streams.get(hello.stream or names)
        if stream is None:
            self.refuse(client, "stream", f"there is no stream {hello.stream!r} here; there is {names}")
            return
        counts = hello.catalog != stream.catalog
        welcome = Welcome(
            server=self._server,
            boot=self._boot,
            stream=stream.name,
            fields=stream.fields,
            batch_size=stream.batch_size,
            catalog=stream.catalog,
            fingerprint=stream.fingerprint,
            shards=len(stream.shards),
            workers=self._workers,
            counts=counts,
        )
        self._reply(client, welcome, trailer=self._counts[stream.name] if counts else b"")
        if self.draining:
            self._reply(client, Drain())

    # Requests.

    def _get(self, client: bytes, known: _Client[M], get: Get, payload: bytes | memoryview) -> None:
        asker = (client, get.epoch, get.batch)
        stream = self._streams.get(get.stream)
        if stream is None:
            self.refuse(client, "stream", f"there is no stream {get.stream!r} here")
            return
        if get.fingerprint != stream.fingerprint:
            self.refuse(
                client,
                "fingerprint",
                f"stream {stream.name!r} has fingerprint {stream.fingerprint} here, not {get.fingerprint}; "
                "it serves other shards or another pipeline than before",
            )
            return
        payload = bytes(payload)
        wanted = spans.unpack(payload, stream.counts)  # a view of it
        if self.draining:
            self._reply(client, Drain())  # once more: had it arrived, the client would not ask
            self._fail(asker, get.attempt, retryable=True, reason="the server is shutting down")
            return
        name = (stream.name, get.seed, get.epoch, get.on_error, payload)
        if asked := known.open.get(asker[1:]):
            if asked.name == name:
                asked.waiters[asker] = get.attempt
                return
            self._cancel(client, known, asker[1:])  # only the later one is owed a reply
        if beyond := self._beyond(known):
            self.refuse(client, "limit", beyond)
            return
        build = self._builds.get(name)
        if build is None:
            build = Build(name, stream, get, wanted, spans.count(wanted))
            if build.nbytes > self._pool.max_bytes:
                reason = f"a batch of {build.nbytes:,} bytes exceeds the server's memory of {self._pool.max_bytes:,}"
                self._fail(asker, get.attempt, retryable=True, reason=reason)  # another may have more
                return
            self._builds[name] = build
            self._spans += len(wanted)
            known.queue.append(build)
        self._builds.move_to_end(name)
        build.waiters[asker] = get.attempt
        known.open[asker[1:]] = build
        if build.done:
            self.tally.cache_hits += 1
            self._answer(build)

    def _beyond(self, known: _Client[M]) -> str:
        """Return what limit a client has reached, or ""."""
        if len(known.open) >= limits.OUTSTANDING:
            return f"more than {limits.OUTSTANDING} requests are open"
        if self._spans >= SPANS and known.spans * len(self._clients) >= SPANS:
            return f"{self._spans:,} spans are held, of {SPANS:,}, and your share of them in yours"
        return ""

    def _cancel(self, client: bytes, known: _Client[M], key: tuple[int, int]) -> None:
        build = known.open.pop(key, None)
        if build is None:
            return
        del build.waiters[client, *key]
        if build.waiters:
            if build in known.queue:  # somebody else still wants it
                known.queue.remove(build)
                heir = self._clients[next(iter(build.waiters))[0]]
                queued = {*heir.queue, build}
                heir.queue = deque(dict.fromkeys(b for b in heir.open.values() if b in queued))  # its oldest first
        elif build in known.queue:
            known.queue.remove(build)
            self._remove(build)
        else:
            self._abandon(build)

    # Workers.

    def next_part(self, worker: int) -> Work[M] | None:
        """Return what a worker should do next, or None while there is nothing that can be begun."""
        while True:
            for build in self._building:
                if build.parts:
                    work = build.parts.popleft()
                    build.running += 1
                    self._assigned.setdefault(worker, deque()).append(work)
                    return work
            if not self._begin():
                return None

    def assigned(self, worker: int) -> int:
        """How many parts a worker has in hand."""
        return len(self._assigned.get(worker, ()))

    def at(self, worker: int) -> Work[M] | None:
        """Return the part that a worker is at, None if it has none."""
        works = self._assigned.get(worker)
        return works[0] if works else None

    def is_tried(self, worker: int) -> bool:
        """Tell whether a worker has work that cost one before. Nothing else should have to wait behind that."""
        return any(work.kills for work in self._assigned.get(worker, ()))

    def done(self, worker: int, keys: Sequence[str], bad: Sequence[Bad]) -> None:
        """Take what a worker reports of the first part that it had in hand."""
        work = self._assigned[worker].popleft()
        build = work.build
        build.running -= 1
        self.tally.parts += 1
        self.tally.made += work.rows
        build.keys[work.first : work.first + work.rows] = keys
        build.bad.extend(bad)
        self._settle(build)

    def lost(self, worker: int, reason: str, row: int, key: str, kills: float = 1) -> None:
        """Take back what a dead worker had in hand. It died of a row of the first part, with this key.

        If the row is none of that part, it had not begun it, and no sample is to blame. A key of "" says that it died
        of the shard. ``kills`` is what this counts for.
        """
        in_hand = self._assigned.pop(worker, deque())
        if not in_hand or not in_hand[0].first <= row < in_hand[0].first + in_hand[0].rows:
            self._put_back(in_hand)
            return
        self.tally.parts += 1  # the second loss is the last: clients may see it as progress
        work = in_hand.popleft()
        self._put_back(in_hand)
        build, first, stop = work.build, work.first, work.first + work.rows
        build.running -= 1
        alone = Work(build, row, 1, work.kills + kills)
        if alone.kills >= KILLS:
            build.keys[row] = key
            build.bad.append(Bad(row, int(alone.samples[0, 0]), key, reason, fatal=True))
        else:
            others = [Work(build, first, row - first), Work(build, row + 1, stop - row - 1)]
            build.parts.extendleft(part for part in (*others, alone) if part.rows)
        self._settle(build)

    def interrupted(self, worker: int) -> None:
        """Take back what a worker had in hand that died through no fault of its own."""
        self._put_back(self._assigned.pop(worker, deque()))

    def _put_back(self, works: deque[Work[M]]) -> None:
        for work in reversed(works):
            work.build.running -= 1
            work.build.parts.appendleft(work)
            self._settle(work.build)

    # Builds.

    def _begin(self) -> bool:
        """Begin the next build: the oldest request of the client whose turn it is."""
        for client, known in self._clients.items():
            has_its_share = self._unsent[client] * len(self._clients) > self._pool.max_bytes
            if not known.queue or (has_its_share and len(self._clients) > 1):
                continue
            build = known.queue[0]
            build.slot = self._take(build.nbytes)
            if build.slot is None:
                return False
            known.queue.popleft()
            self._clients.move_to_end(client)
            build.keys = [""] * build.rows
            build.samples = spans.expand(build.spans)  # not before: clients may have thousands of requests queued
            build.parts.extend(
                Work(build, first, min(PART_SAMPLES, build.rows - first))
                for first in range(0, build.rows, PART_SAMPLES)
            )
            self._building.append(build)
            return True
        return False

    def _take(self, nbytes: int) -> M | None:
        """Find a slot, at the expense of the cache if need be."""
        idle = (b for b in list(self._builds.values()) if b.done and b.slot and not b.slot.pins)
        if not self._caching:
            for build in idle:
                self._drop(build)
        slot = self._pool.take(nbytes)
        for build in idle:
            if slot is not None:
                break
            self._drop(build)
            slot = self._pool.take(nbytes)
        return slot

    def _settle(self, build: Build[M]) -> None:
        """See whether a build is finished, failed, or no longer wanted."""
        if not build.waiters or (build.bad and build.get.on_error == "raise"):
            self._fail_all(build)
            self._abandon(build)
        elif not build.parts and not build.running:
            build.done = True
            self.newest = build
            build.bad.sort()  # workers report in any order
            self._building.remove(build)
            for bad in build.bad:
                self.tally.skipped[bad.kind] += 1
                self._tell(build, bad, skipped=True)
            if build.bad and build.slot:
                missing = sorted({b.row for b in build.bad})
                build.slot.compact(build.stream.fields, build.rows, missing)
                for row in reversed(missing):
                    del build.keys[row]
            self._answer(build)

    def _abandon(self, build: Build[M]) -> None:
        """Stop building. The slot is free when the last worker has let go of it."""
        build.parts.clear()
        if self._builds.get(build.name) is build:  # somebody may have asked for the same name since
            self._remove(build)
        if not build.running and build in self._building:
            self._building.remove(build)
            self._release(build)

    def _drop(self, build: Build[M]) -> None:
        self._remove(build)
        self._release(build)

    def _remove(self, build: Build[M]) -> None:
        del self._builds[build.name]
        self._spans -= len(build.spans)

    def _release(self, build: Build[M]) -> None:
        if build.slot is not None:
            self._pool.give(build.slot)
            build.slot = None

    # Replies.

    def _answer(self, build: Build[M]) -> None:
        tensors = tuple(f.rows(len(build.keys)) for f in build.stream.fields)
        trailer = "\0".join(build.keys).encode()
        if build.checksum is None and build.slot:
            build.checksum = build.slot.checksum(offsets(tensors)[1], trailer)
        for (client, epoch, batch), attempt in build.waiters.items():
            message = Batch(
                epoch=epoch,
                batch=batch,
                attempt=attempt,
                tensors=tensors,
                keys=len(trailer),
                missing=build.rows - len(build.keys),
                skipped=tuple(self._skipped(build, b) for b in build.bad[: limits.SKIPPED]),
            )
            del self._clients[client].open[epoch, batch]
            self._unsent[client] += message.payload_bytes
            self._reply(client, message, build.slot, trailer, build.checksum)
            self.tally.batches += 1
            self.tally.samples += len(build.keys)
            self.tally.payload += message.payload_bytes
        build.waiters.clear()

    def _skipped(self, build: Build[M], bad: Bad) -> Skipped:
        return Skipped(
            shard=shorten(build.stream.shards[bad.shard], limits.KEY_BYTES),
            key=shorten(bad.key, limits.KEY_BYTES),
            reason=shorten(bad.reason, limits.SKIP_REASON_BYTES),
        )

    def _tell(self, build: Build[M], bad: Bad, *, skipped: bool) -> None:
        shard = build.stream.shards[bad.shard]
        self.tally.tell(build.stream.name, shard, bad.key, bad.reason, skipped=skipped)

    def _fail_all(self, build: Build[M]) -> None:
        if build.waiters:
            self.tally.failed += len(build.waiters)
            self._tell(build, build.bad[0], skipped=False)
        for asker, attempt in build.waiters.items():
            client, *key = asker
            del self._clients[client].open[key[0], key[1]]
            bad = build.bad[0]
            self._fail(
                asker,
                attempt,
                retryable=False,
                reason=bad.reason,
                shard=build.stream.shards[bad.shard],
                key=bad.key,
            )
        build.waiters.clear()

    def _fail(
        self, asker: Asker, attempt: int, *, retryable: bool, reason: str, shard: str = "", key: str = ""
    ) -> None:
        client, epoch, batch = asker
        fail = Fail(
            epoch=epoch,
            batch=batch,
            attempt=attempt,
            retryable=retryable,
            reason=shorten(reason, limits.REASON_BYTES),
            shard=shorten(shard, limits.KEY_BYTES),
            key=shorten(key, limits.KEY_BYTES),
        )
        self._reply(client, fail)

    def _reply(
        self,
        client: bytes,
        message: Message,
        slot: M | None = None,
        trailer: bytes = b"",
        checksum: int | None = None,
    ) -> None:
        if slot is not None:
            slot.pins += 1
        if checksum is None:
            checksum = codec.checksum(trailer)
        self.replies.append(Reply(client, message, slot, trailer, checksum))
