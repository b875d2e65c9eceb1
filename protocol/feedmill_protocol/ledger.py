"""The ledger: what was asked of whom, what has come, what is late, whom to ask next.

The client's state machine. It does no I/O and reads no clock: the caller reports what happens, passes `now` (seconds,
any monotonic origin), sends what `outbox` holds, and calls `tick` after every turn and at `wake_at`. Rules that bind
this file:

* A request is the credit: a server sends nothing that it was not asked for; what it sends besides is an error.
* A wanted batch is covered, which is to say open with a server in good standing, whenever one is ready and has credit.
* Doubt takes nothing back: what a silent or stuck server was asked stays open with it, and is asked of another as well.
  A link that needs longer than SILENCE for a batch holds up the PONG behind it; taking back would then never end.
* The first reply wins. A later one for the same name is dropped, and is no error.
* Oldest first: whatever must be asked again goes before what was never asked.
* What came damaged has not come.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf
from random import Random
from typing import Final, NamedTuple, TypeAlias

from . import limits
from .errors import DataError, FeedmillError, ProtocolError, SampleError, ServerUnavailable, ShardError, StreamMismatch
from .messages import Batch, Bye, Cancel, Drain, Fail, Get, Hello, Message, Ping, Pong, Reject, Welcome

__all__ = ["Key", "Ledger", "Outgoing", "State"]

Key: TypeAlias = tuple[int, int]
"""A batch among those of one feed: epoch and number."""

PING_EVERY: Final = 0.5
"""Seconds between questions to all servers. They answer at once, whatever their workers do."""

SILENCE: Final = 2.0
"""A server that has said nothing for so many seconds is suspect: four unanswered pings."""

PATIENCE: Final = 0.25
"""A server that owes something and gets nothing done for this part of the timeout is stuck. Three quarters of it are
left for others to show progress. No less than two SILENCEs: a slow part should not cost more than a lost server."""

DAMAGES: Final = 8
"""A server of which so many messages in a row came damaged speaks another language, or over a link that is no use."""

ATTEMPTS: Final = 3
"""A batch that failed so often, wherever it was asked, fails for good."""

BACKOFF: Final = 0.25
"""Seconds before a server is asked again for a batch that it failed; twice that after the next failure. Each wait is
drawn from half to one and a half of this, so that ranks do not come back all at once."""

LATE: Final = 3.0
"""The batch that is awaited longest is late when that takes so many times what batches take..."""

LATE_SECONDS: Final = 0.5
"""...and so much longer. Then another server is asked for it as well: it may have been dealt a slow one."""

HEDGES: Final = 0.05
"""Batches that may be asked of two servers for being late, as a share of all."""


ANSWERS: Final = 20
"""What a server says of its work is remembered for so many pings: 10 s."""

ANSWERS_LEAST: Final = 4
"""So many answers say something of it. The first comes before anything was asked for: it is one of these at most."""


class State(Enum):
    """What is known of a server."""

    DOWN = "no connection"
    GREETING = "connected, but no answer yet"
    READY = "ready"
    SUSPECT = "silent"
    STUCK = "answers, but makes no progress"
    DRAINING = "shutting down"


_GOOD: Final = (State.READY, State.DRAINING)  # what such a server owes will come


class Outgoing(NamedTuple):
    """A message to send to a server, and its payload."""

    server: str
    message: Message
    payload: bytes = b""


@dataclass(slots=True)
class _Server:
    state: State = State.DOWN
    welcome: Welcome | None = None
    asked: set[Key] = field(default_factory=set)
    heard: float = 0.0  # when it last said anything
    progress: int | None = None  # its own count of finished parts; None until the first PONG of a connection
    idle_since: float = inf  # since when it owes something and has got nothing done; inf: it does not owe, or has
    stuck: bool = False  # until it gets something done, even if nothing is left that it owes
    draining: bool = False
    damages: int = 0  # since an intact batch came from it
    turn: int = 0  # when it was last asked, counted in requests
    works: deque[float] = field(default_factory=lambda: deque(maxlen=ANSWERS))  # share of its workers that had work


@dataclass(slots=True)
class _Request:
    order: int
    get: Get
    spans: bytes
    samples: int
    since: float = 0.0  # when it was last asked of anybody while nobody else was at it
    rested: float = 0.0  # until when servers that failed it are not asked again
    asked: dict[str, int] = field(default_factory=dict)  # servers that it is open with, and which attempt that is
    tried: dict[int, str] = field(default_factory=dict)  # every attempt ever, and the server that was asked
    avoid: set[str] = field(default_factory=set)  # servers that failed it
    failures: int = 0


class Ledger:
    """The requests of one feed at all its servers.

    ``stream`` is the name to ask for ("" for a server's only one). After ``timeout`` seconds in which something was
    awaited and no server made progress, `tick` raises ServerUnavailable. Progress is the WELCOME that makes the
    contract, a BATCH that is taken, and a PONG whose count moved, of a server that owes something. ``jitter`` draws
    numbers from 0 to 1.
    """

    def __init__(self, stream: str, *, timeout: float, now: float, jitter: Callable[[], float] | None = None) -> None:
        self.stream = stream
        self.timeout = timeout
        self.outbox: deque[Outgoing] = deque()
        self.contract: Welcome | None = None
        """What the first server said of the stream; all others must agree."""
        self._teller = ""
        self.duplicates = 0
        self.asked_again = 0
        self.hedged = 0
        self.damaged = 0
        self._servers: dict[str, _Server] = {}
        self._requests: dict[Key, _Request] = {}
        self._waiting: set[Key] = set()  # all requests that are not covered, and some that are
        self._count = 0
        self._attempts = 0  # of all requests, so that a reply to a forgotten one is not taken for a later one's
        self._jitter = jitter or Random().random  # not the trainer's own generator
        self._now = self._progress_at = now
        self._beat_at = now + PING_EVERY  # when all servers are pinged next
        self._retry_at = inf  # when a failed batch may be asked again
        self._wants = 0
        self._latency = 0.0  # seconds from request to batch, a moving average
        self._patience = max(2 * SILENCE, PATIENCE * timeout)

    # What the trainer wants.

    def want(self, get: Get, spans: bytes, samples: int, now: float) -> None:
        """Ask for a batch, after all that were wanted before. Wanting one again replaces the request."""
        self._now = now
        self._wants += 1
        if not self._requests:
            self._progress_at = now  # nothing was awaited until now
        key = (get.epoch, get.batch)
        self.forget(key)
        self._count += 1
        self._requests[key] = _Request(self._count, get, spans, samples)
        self._waiting.add(key)
        self._assign()

    def forget(self, key: Key) -> None:
        """Drop a batch that is no longer wanted. A reply that is under way will be taken for a duplicate."""
        if key in self._requests:
            self._cancel(key)
            self._assign()

    def leave(self) -> None:
        """Drop everything and say goodbye to every server that is there. Nothing is asked of anybody any more."""
        self._requests.clear()
        self._waiting.clear()
        there = [endpoint for endpoint, known in self._servers.items() if known.state is not State.DOWN]
        self.outbox.extend(Outgoing(endpoint, Bye()) for endpoint in there)
        self._servers = {endpoint: _Server() for endpoint in self._servers}

    @property
    def open(self) -> int:
        """How many batches are wanted and have not come."""
        return len(self._requests)

    # What happens to servers.

    def add(self, server: str) -> None:
        """Learn of a server. Adding one that is known changes nothing."""
        self._servers.setdefault(server, _Server())

    def remove(self, server: str) -> None:
        """Forget a server, because its name no longer resolves to it; say goodbye if it is there."""
        if (known := self._servers.get(server)) is None:
            return
        if known.state is not State.DOWN:
            self.outbox.append(Outgoing(server, Bye()))
        self._release(server)
        del self._servers[server]
        self._assign()

    def connected(self, server: str, now: float) -> None:
        """Greet over a connection that now stands."""
        self._now = now
        self._release(server)
        self._servers[server] = _Server(State.GREETING, heard=now)
        self._greet(server)
        self._assign()

    def disconnected(self, server: str) -> None:
        """Take back all that was asked over a connection that is gone."""
        self._release(server)
        self._servers[server].state = State.DOWN
        self._assign()

    def wants(self, server: str, message: Message) -> bool:
        """Return whether the payload of a message is wanted; no other needs memory. Raises ProtocolError."""
        if isinstance(message, Welcome):
            return self.contract is None
        if not isinstance(message, Batch):
            return False
        if self.contract is None:
            raise ProtocolError(f"{server}: BATCH before WELCOME")
        if not 1 <= message.attempt <= self._attempts:
            raise ProtocolError(f"{server}: BATCH for attempt {message.attempt}, which was never made")
        request = self._requests.get((message.epoch, message.batch))
        if request is None or request.tried.get(message.attempt) != server:
            return False
        _check(server, self.contract, message, request)
        return True

    def received(self, server: str, message: Message, now: float, *, intact: bool = True) -> bool:
        """Take a message from a server; return whether what it brings is wanted. It is ``intact`` if its payload is.

        Raises StreamMismatch, ProtocolError, SampleError, ShardError or DataError when this ends the feed.
        """
        self._now = now
        known = self._servers[server]
        known.heard = now
        wanted = False
        if not intact:
            self._count_damage(server, known)
        match message:
            case Batch():
                wanted = self._arrived(server, known, message, intact=intact)
            case _ if not intact:
                pass  # it has not come
            case Welcome():
                wanted = self._welcomed(server, known, message, now)
            case Fail():
                self._failed(server, known, message)
            case Pong():
                self._answered(known, message, now)
            case Drain():
                known.draining = True
            case Reject():
                self._rejected(server, known, message)
            case _:
                raise ProtocolError(f"{server}: {message.type} is no message from a server")
        self._judge(known, now)
        self._assign()
        return wanted

    def garbled(self, server: str, now: float) -> None:
        """Ask again for everything that was asked of a server: something came of which nobody knows what it was.

        Raises ProtocolError where that happens too often.
        """
        self._now = now
        known = self._servers[server]
        known.heard = now
        self._count_damage(server, known)
        self._release(server)
        self._judge(known, now)
        self._assign()

    # Time.

    def tick(self, now: float) -> None:
        """Do what is due, after everything that has arrived was `received`. Raises ServerUnavailable."""
        self._now = now
        if now >= self._beat_at:
            self._beat_at = now + PING_EVERY
            self._beat(now)
        self._hedge(now)
        self._assign()
        if self._awaiting and now >= self._progress_at + self.timeout:
            raise ServerUnavailable(self.timeout, self.describe())

    def stood_still(self, seconds: float) -> None:
        """Do not hold against the servers that this process was stopped for so long."""
        self._progress_at += seconds

    def wake_at(self) -> float:
        """Return when `tick` should next be called."""
        deadline = self._progress_at + self.timeout if self._awaiting else inf
        return min(self._beat_at, self._retry_at, deadline)

    def working(self) -> float | None:
        """Return which share of the servers' workers had work at the last pings; None before there were some."""
        works = [known.works for known in self._servers.values() if known.works and known.state in _GOOD]
        if all(len(shares) < ANSWERS_LEAST for shares in works):
            return None
        return sum(map(sum, works)) / sum(map(len, works))

    def describe(self) -> dict[str, str]:
        """Return what is known of each server, in words."""
        return {endpoint: known.state.value for endpoint, known in self._servers.items()}

    # Within.

    @property
    def _awaiting(self) -> bool:
        return bool(self._requests) or self.contract is None

    def _beat(self, now: float) -> None:
        """Ask all servers how they are, and settle what is to be thought of them."""
        for endpoint, known in self._servers.items():
            self._judge(known, now)
            if known.state is State.GREETING:
                self._greet(endpoint)
            elif known.state is not State.DOWN:
                self.outbox.append(Outgoing(endpoint, Ping()))
        if all(known.state is not State.READY for known in self._servers.values()):
            for known in self._servers.values():
                known.stuck &= bool(known.asked)  # one that owes nothing cannot show that it is well: let it try
                self._judge(known, now)

    def _hedge(self, now: float) -> None:
        """Ask a second server for the batch that is awaited longest, if it is late.

        The same one again after half the timeout, if there is no other: the reply may have been lost, though nothing
        tells how. What was lost is sent again, and what is still in the making is made once.
        """
        request = next(iter(self._requests.values()), None)
        if request is None or len(request.asked) != 1 or now < request.since + LATE * self._latency + LATE_SECONDS:
            return
        key = (request.get.epoch, request.get.batch)
        other = self._least_busy(request)
        if other and self._latency and self.hedged < HEDGES * self._wants:
            self.hedged += 1
            self._ask(other, key, request)
        elif not other and now >= request.since + self.timeout / 2:
            (same,) = request.asked
            if self._servers[same].state is State.READY:
                self.asked_again += 1
                request.since = now
                self._ask(same, key, request)

    def _count_damage(self, server: str, known: _Server) -> None:
        self.damaged += 1
        known.damages += 1
        if self.contract is None or known.damages >= DAMAGES:
            raise ProtocolError(
                f"{server}: {known.damages} messages in a row came damaged; either this is no feedmill server of this "
                "release, or something on the way to it changes what is sent"
            )

    def _judge(self, known: _Server, now: float) -> None:
        """Settle what a server is taken for, from what is known of it."""
        if known.state in (State.DOWN, State.GREETING):
            return
        known.idle_since = min(known.idle_since, now) if known.asked else inf
        known.stuck |= now >= known.idle_since + self._patience
        known.state = State.DRAINING if known.draining else State.READY
        if known.stuck:
            known.state = State.STUCK
        if now >= known.heard + SILENCE:
            known.state = State.SUSPECT
        if known.state not in _GOOD:
            self._waiting |= known.asked

    def _greet(self, server: str) -> None:
        catalog = self.contract.catalog if self.contract else ""
        self.outbox.append(Outgoing(server, Hello(stream=self.stream, catalog=catalog)))

    def _welcomed(self, server: str, known: _Server, welcome: Welcome, now: float) -> bool:
        first = self.contract is None
        if self.contract is None:
            if not welcome.counts:
                raise ProtocolError(f"{server}: WELCOME without the catalog that was asked for")
            if welcome.stream != self.stream != "":
                raise ProtocolError(f"{server}: WELCOME to stream {welcome.stream!r}, not {self.stream!r}")
            self.contract, self._progress_at = welcome, now
            self._teller = server
        _agree(self.contract, self._teller, welcome, server)
        known.welcome = welcome
        if known.state is State.GREETING:
            known.state = State.READY
        return first

    def _arrived(self, server: str, known: _Server, batch: Batch, *, intact: bool) -> bool:
        wanted = self.wants(server, batch)
        known.idle_since, known.stuck = inf, False
        if not wanted:
            self.duplicates += 1
            return False
        key = (batch.epoch, batch.batch)
        request = self._requests[key]
        if request.asked.get(server) == batch.attempt:  # else it was asked again meanwhile, and that is still open
            known.asked.discard(key)
            del request.asked[server]
        if not intact:
            self._waiting.add(key)
            return False
        self._progress_at = self._now
        known.damages = 0
        if len(request.tried) == 1:
            taken = self._now - request.since
            self._latency += (taken - self._latency) / (16 if self._latency else 1)
        self._cancel(key)
        return True

    def _answered(self, known: _Server, pong: Pong, now: float) -> None:
        if known.progress not in (None, pong.progress):
            if known.asked:
                self._progress_at = now
            known.idle_since, known.stuck = inf, False
        known.progress = pong.progress
        workers = known.welcome.workers if known.welcome else 1
        known.works.append(max(0.0, 1 - pong.idle / workers) if pong.queue else 0.0)

    def _failed(self, server: str, known: _Server, fail: Fail) -> None:
        key = (fail.epoch, fail.batch)
        request = self._requests.get(key)
        if request is None or request.asked.get(server) != fail.attempt:
            return  # late, like a late BATCH
        if not fail.retryable:
            raise _data_error(fail)
        known.asked.discard(key)
        request.asked.pop(server, None)
        request.avoid.add(server)
        if not known.draining:
            request.rested = self._now + BACKOFF * 2**request.failures * (0.5 + self._jitter())
            request.failures += 1
        if request.failures >= ATTEMPTS:
            what = f"batch {fail.batch} of epoch {fail.epoch}"
            raise DataError(f"{what} failed {ATTEMPTS} times, last at {server}: {fail.reason}")
        self._waiting.add(key)

    def _rejected(self, server: str, known: _Server, reject: Reject) -> None:
        if reject.code == "damaged":
            self._count_damage(server, known)
            self._release(server)
            return
        if reject.code == "limit":
            self._release(server)
            known.progress = None  # it works for others
            if known.state is not State.DOWN and not known.draining:
                known.state = State.GREETING  # greeted again with the next beat
            return
        error: type[FeedmillError] = StreamMismatch if reject.code in ("stream", "fingerprint") else ProtocolError
        raise error(f"{server}: {reject.reason}")

    def _release(self, server: str) -> None:
        """Take back everything that was asked of a server."""
        asked = self._servers[server].asked
        for key in asked:
            del self._requests[key].asked[server]
        self._waiting |= asked
        asked.clear()

    def _cancel(self, key: Key) -> None:
        """Close a request: whoever else was asked need not bother."""
        self._waiting.discard(key)
        for server in self._requests.pop(key).asked:
            self._servers[server].asked.discard(key)
            self.outbox.append(Outgoing(server, Cancel(epoch=key[0], batch=key[1])))

    def _assign(self) -> None:
        """Ask for what is not covered, oldest first, each of the ready server that is least busy for its size."""
        self._retry_at = inf
        for key in sorted(self._waiting, key=lambda key: self._requests[key].order):
            request = self._requests[key]
            if not any(self._servers[server].state in _GOOD for server in request.asked):
                if (server := self._least_busy(request)) is None:
                    return
                if server in request.avoid and self._now < request.rested:
                    self._retry_at = min(self._retry_at, request.rested)
                    continue
                self.asked_again += bool(request.tried)
                request.since = self._now
                self._ask(server, key, request)
            self._waiting.discard(key)

    def _ask(self, server: str, key: Key, request: _Request) -> None:
        self._attempts += 1
        request.asked[server] = self._attempts
        request.tried[self._attempts] = server
        self._count += 1
        self._servers[server].turn = self._count
        self._servers[server].asked.add(key)
        self.outbox.append(Outgoing(server, replace(request.get, attempt=self._attempts), request.spans))

    def _least_busy(self, request: _Request) -> str | None:
        """Return the ready server that has least to do for its size, rather one that has not failed this request."""
        best, least = None, (True, inf, 0)
        for endpoint, known in self._servers.items():
            if known.state is not State.READY or known.welcome is None or endpoint in request.asked:
                continue
            if (open_ := len(known.asked)) < limits.OUTSTANDING:
                busy = (endpoint in request.avoid, (open_ + 1) / known.welcome.workers, known.turn)
                if busy < least:
                    best, least = endpoint, busy
        return best


def _agree(contract: Welcome, teller: str, welcome: Welcome, server: str) -> None:
    for what in ("stream", "catalog", "fingerprint", "fields", "batch_size"):
        ours, theirs = getattr(contract, what), getattr(welcome, what)
        if ours != theirs:
            raise StreamMismatch(
                f"{server}: stream {welcome.stream!r} has {what} {theirs}, but {teller} has {ours}; "
                "all servers of a stream must serve the same shards with the same pipeline and library versions"
            )


def _check(server: str, contract: Welcome, batch: Batch, request: _Request) -> None:
    rows = request.samples - batch.missing
    if batch.missing and request.get.on_error == "raise":
        raise ProtocolError(f"{server}: BATCH lacks {batch.missing} samples, though none may be skipped")
    if len(batch.skipped) > batch.missing:
        raise ProtocolError(f"{server}: BATCH lacks {batch.missing} samples, but names {len(batch.skipped)}")
    expected = tuple(f.rows(rows) for f in contract.fields)
    if batch.tensors != expected:
        raise ProtocolError(f"{server}: BATCH has tensors {batch.tensors}, where {expected} were announced")


def _data_error(fail: Fail) -> DataError:
    if fail.key:
        return SampleError(fail.shard, fail.key, fail.reason)
    if fail.shard:
        return ShardError(fail.shard, fail.reason)
    return DataError(fail.reason)
