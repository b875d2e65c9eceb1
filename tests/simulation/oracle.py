"""What must hold, said once more and in other words than the code's own.

* A trainer gets exactly the batches of its plan, in order, each once, each row and key as the name says (`Record`).
* A ledger does what docs/wire.md says of a client: it asks only whom it may, no more than it may, takes the first reply
  and no other, lets go of what it no longer wants, and gives up at its deadline, neither before nor after (`Watch`).
* Nobody is told that no server is available while one has been well and within reach for as long as the timeout
  (`unavailable`).
* Whoever has finished holds nothing any more (`weigh`).

Breaches are raised as Violation, where they are seen.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, Final

from feedmill_protocol.errors import ProtocolError, SampleError, ServerUnavailable
from feedmill_protocol.ledger import DAMAGES, PATIENCE, PING_EVERY, SILENCE, Key, Ledger, Outgoing
from feedmill_protocol.messages import Batch, Cancel, Drain, Fail, Get, Message, Ping, Pong, Reject, Welcome

from .content import Block, Name, key, name, plan, row
from .scenario import Kind, Scenario

__all__ = ["Record", "Violation", "Watch", "weigh"]

SLACK: Final = 1e-6
"""Seconds that rounding may make of a difference."""

GRACE: Final = 1.0
"""Seconds within which a ledger must have noticed that a server is silent or stuck."""

BACKS_OFF: Final = 8.0
"""Seconds that a ledger may wait before it asks again for what failed."""


class Violation(AssertionError):
    """Something that must hold does not."""


class Record:
    """What a trainer has got, whatever became of its ledgers in between."""

    def __init__(self, scenario: Scenario, rank: int) -> None:
        self._scenario = scenario
        self._broken = scenario.bad | scenario.poison
        self.rank = rank % scenario.world_size
        self.plan = plan(scenario.counts, scenario.batch_size, scenario.plan_seed, self.rank, scenario.world_size)
        self.epoch = 0
        self.step = 0
        self._batches: Counter[int] = Counter()  # by epoch
        self.samples: dict[int, list[tuple[int, int]]] = {}  # by epoch

    @property
    def finished(self) -> bool:
        """Whether the trainer has got everything that it is there for."""
        return self.epoch >= self._scenario.epochs

    def whole(self, epoch: int) -> bool:
        """Whether the trainer got every batch of an epoch."""
        return self._batches[epoch] == len(self.plan)

    def next_epoch(self) -> None:
        """Go on with the epoch after this one."""
        self.epoch, self.step = self.epoch + 1, 0

    def took(self, message: Batch, block: Block) -> None:
        """Check the batch that the trainer takes now."""
        scenario = self._scenario
        wanted = name(self.plan, self.epoch, self.step)
        number = self.step * self.plan.world_size + self.plan.rank
        if (message.epoch, message.batch) != (self.epoch, number):
            raise Violation(f"{message.epoch, message.batch} is handed out, where {self.epoch, number} is next")
        good = [sample for sample in wanted.samples if sample not in self._broken]
        if message.missing != len(wanted.samples) - len(good):
            raise Violation(f"{message.missing} samples are missing from batch {number} of epoch {self.epoch}")
        if {skipped.key for skipped in message.skipped} != {key(*s) for s in wanted.samples if s in self._broken}:
            raise Violation(f"{message.skipped} are reported of batch {number} of epoch {self.epoch}")
        rows = tuple(row(scenario.plan_seed, self.epoch, *sample) for sample in good)
        if block.rows != rows:
            raise Violation(f"the rows of batch {number} of epoch {self.epoch} are not those of its samples")
        if block.keys != "\0".join(key(*sample) for sample in good).encode():
            raise Violation(f"the keys of batch {number} of epoch {self.epoch} are not those of its samples")
        self.samples.setdefault(self.epoch, []).extend(wanted.samples)
        self._batches[self.epoch] += 1
        self.step += 1
        if self.step == min(scenario.steps, len(self.plan)):
            self.next_epoch()

    def check_error(self, error: SampleError, wanted: Mapping[Key, Name]) -> None:
        """Check that a sample is blamed rightly: it cannot be decoded, was asked for, and may not be skipped."""
        asked = {s for batch in wanted.values() for s in batch.samples if key(*s) == error.key} & self._broken
        if self._scenario.on_error == "skip" or not asked:
            raise Violation(f"sample {error.key} of shard {error.shard} is blamed") from error


@dataclass(slots=True)
class _Server:
    """What a client may know of a server from the messages it exchanged with it over the present connection."""

    there: bool = False
    welcomed: bool = False
    draining: bool = False
    open: dict[Key, int] = field(default_factory=dict)  # and the attempt
    asked_at: dict[Key, float] = field(default_factory=dict)  # when it was last asked for a batch
    progress: int | None = None
    pinged: float = -inf
    heard: float = -inf
    idle_since: float = inf  # the first ping since which it owes something and has got nothing done, if there is one
    got_on_at: float = -inf  # when it last got something done, or was last asked after a while without anything to do
    empty_since: float = -inf
    stuck: bool = False  # or may be taken for that
    damages: int = 0  # since an intact batch came

    def close(self, batch: Key) -> None:
        """Note that it does not owe a batch any more."""
        self.open.pop(batch, None)
        if not self.open:
            self.idle_since = inf

    def lose(self) -> None:
        """Note that nobody knows any more what it owes."""
        self.open.clear()
        self.idle_since = inf

    def ask(self, batch: Key, attempt: int, now: float) -> None:
        """Note that it is asked for a batch."""
        if now > self.empty_since + GRACE:
            self.got_on_at = now
        self.empty_since = inf
        self.open[batch] = attempt
        self.asked_at[batch] = now

    def doubt(self, limit: float) -> None:
        """Note that it may be taken for stuck if it owes something and has got nothing done since a limit."""
        self.stuck |= bool(self.open) and self.got_on_at <= limit

    def got_on(self, now: float) -> None:
        """Note that it got something done."""
        self.idle_since, self.stuck, self.got_on_at = inf, False, now


class Watch:
    """One ledger, followed from outside: all that it is told, and all that it says."""

    def __init__(self, scenario: Scenario, now: float) -> None:
        self._scenario = scenario
        self._damages = any(fault.kind is Kind.CORRUPT for fault in scenario.faults)
        self._duplicates = self._damages or any(fault.kind is Kind.DUPLICATE for fault in scenario.faults)
        self._hopeless = False
        self._servers: dict[str, _Server] = {}
        self._attempts: dict[int, tuple[Key, str]] = {}
        self._last = 0  # the highest attempt
        self._fresh: dict[Key, int] = {}  # the highest attempt before the batch was wanted
        self._failed: dict[Key, float] = {}  # when what is wanted failed somewhere
        self._contract = False
        self._patience = max(2 * SILENCE, PATIENCE * scenario.timeout)
        self.wanted: dict[Key, Name] = {}
        self.progress_at = now

    @property
    def deadline(self) -> float:
        """When the ledger must give up."""
        return self.progress_at + self._scenario.timeout if self.wanted or not self._contract else inf

    # What the ledger is told.

    def want(self, batch: Key, what: Name, now: float) -> None:
        """Note that a batch is wanted."""
        if not self.wanted:
            self.progress_at = now
        self.wanted[batch] = what
        self._fresh[batch] = self._last

    def forget(self, batch: Key) -> None:
        """Note that a batch is no longer wanted."""
        self.wanted.pop(batch, None)
        self._failed.pop(batch, None)

    def connected(self, server: str, now: float) -> None:
        """Note that there is a connection."""
        self._servers[server] = _Server(there=True, heard=now)

    def disconnected(self, server: str) -> None:
        """Note that there is none."""
        self._servers[server] = _Server()

    def damaged(self, server: str) -> None:
        """Note that something was damaged on its way from or to a server."""
        known = self._servers[server]
        known.damages += 1
        self._hopeless = not self._contract or known.damages >= DAMAGES

    def garbled(self, server: str, now: float) -> None:
        """Note that something came of which nobody knows what it was."""
        self.damaged(server)
        self._servers[server].heard = now
        self._servers[server].lose()

    def despaired(self, error: ProtocolError) -> None:
        """Check that the ledger gives up on a server for damages, and no sooner than it may."""
        if not self._hopeless:
            raise Violation(f"the ledger gives up without need: {error}") from error

    def received(self, server: str, message: Message, now: float, *, intact: bool, taken: bool) -> None:
        """Check what the ledger made of a message: ``taken`` is whether it took the payload, which may be damaged."""
        known = self._servers.setdefault(server, _Server())
        known.heard = now
        known.doubt(now - self._patience + GRACE)
        wanted = False
        match message:
            case Welcome():
                wanted = intact and not self._contract
                known.welcomed |= intact
                self._contract |= intact
            case Batch():
                wanted = self._arrived(server, known, message, now, intact=intact)
            case Fail():
                self._fail(known, message, now)
            case Pong():
                self._pong(known, message, now)
            case Drain():
                known.draining = True
            case Reject():
                self._reject(server, known, message)
        if taken != wanted:
            raise Violation(f"{message} of {server} is {'taken' if taken else 'dropped'}")
        if wanted:
            self.progress_at = now

    def _arrived(self, server: str, known: _Server, batch: Batch, now: float, *, intact: bool) -> bool:
        called = (batch.epoch, batch.batch)
        wanted = self._first_reply(server, batch)
        if wanted and intact:
            self.forget(called)
            known.damages = 0
        if known.open.get(called) == batch.attempt:  # else it was asked again meanwhile, and owes another
            known.close(called)
        known.got_on(now)
        return wanted and intact

    def _fail(self, known: _Server, fail: Fail, now: float) -> None:
        called = (fail.epoch, fail.batch)
        if known.open.get(called) == fail.attempt:
            self._failed[called] = now
            known.close(called)

    def _pong(self, known: _Server, pong: Pong, now: float) -> None:
        if known.progress not in (None, pong.progress):
            self.progress_at = now if known.open else self.progress_at
            known.got_on(now)
        known.progress = pong.progress

    def _reject(self, server: str, known: _Server, reject: Reject) -> None:
        if not (self._damages if reject.code == "damaged" else self._duplicates):
            raise Violation(f"{server} refuses what the ledger asks: {reject}")
        known.lose()
        if reject.code == "limit":
            known.welcomed, known.progress = False, None

    def _first_reply(self, server: str, batch: Batch) -> bool:
        """Whether this is the first reply to something wanted, and was asked for since that has been wanted."""
        called = (batch.epoch, batch.batch)
        fresh = batch.attempt > self._fresh.get(called, 0)
        return called in self.wanted and fresh and self._attempts.get(batch.attempt) == (called, server)

    # What the ledger says.

    def sent(self, outgoing: Outgoing, now: float) -> None:
        """Check that the ledger may say this."""
        server, message = outgoing.server, outgoing.message
        known = self._servers.setdefault(server, _Server())
        match message:
            case Get():
                self._may_ask(outgoing, message, known, now)
                self._attempts[message.attempt] = (message.epoch, message.batch), server
                self._last = max(self._last, message.attempt)
                known.ask((message.epoch, message.batch), message.attempt, now)
            case Cancel():
                known.close((message.epoch, message.batch))
            case Ping():
                if now < known.pinged + PING_EVERY - SLACK:
                    raise Violation(f"{server} is pinged twice in {now - known.pinged:.3f} s")
                known.pinged = now
                known.idle_since = min(known.idle_since, now if known.open else inf)

    def _may_ask(self, outgoing: Outgoing, get: Get, known: _Server, now: float) -> None:
        server, called = outgoing.server, (get.epoch, get.batch)
        if not known.welcomed:
            raise Violation(f"{get} is asked of {server}, which did not say WELCOME")
        if known.draining:
            raise Violation(f"{get} is asked of {server}, which drains")
        if called not in self.wanted:
            raise Violation(f"{get} is asked of {server}, though it is not wanted")
        if called in known.open and now < known.asked_at[called] + self._scenario.timeout / 2 - SLACK:
            raise Violation(f"{get} is asked of {server}, where it is open already")
        if get.attempt in self._attempts:
            raise Violation(f"{get} is asked of {server} under an attempt that was made before")
        if called not in known.open and len(known.open) >= self._scenario.outstanding:
            raise Violation(f"{get} is asked of {server} beyond the credit of {self._scenario.outstanding}")
        name = self.wanted[called]
        if (get.spans, outgoing.payload) != (name.spans, name.payload):
            raise Violation(f"{get} is asked of {server} with other spans than its own")

    # When the ledger has had its turn.

    def rest(self, ledger: Ledger, now: float) -> None:
        """Check the ledger between two turns."""
        if now >= self.deadline + SLACK:
            raise Violation(f"the ledger waits on, though nothing got on since {self.progress_at:.3f}")
        if ledger.wake_at() > self.deadline + SLACK:
            raise Violation(f"the ledger would sleep beyond its deadline of {self.deadline:.3f}")
        if ledger.open != len(self.wanted):
            raise Violation(f"{ledger.open} batches are open, where {len(self.wanted)} are wanted")
        for server, known in self._servers.items():
            if unwanted := known.open.keys() - self.wanted.keys():
                raise Violation(f"{sorted(unwanted)} are not wanted, and {server} is not told")
        self._check_cover(now)

    def _check_cover(self, now: float) -> None:
        """Check that what is wanted is open with a server in good standing, if there is one that could be asked.

        One that is neither clearly good nor clearly bad counts as good where it was asked, and else as bad. What has
        failed is left out for a while: a ledger may wait before it asks for that again.
        """
        ready, covered = [], set[Key]()
        for server, known in self._servers.items():
            if not known.there:
                continue
            if known.open:
                known.doubt(now - self._patience + GRACE)
            else:
                known.empty_since = min(known.empty_since, now)
            if now < min(known.heard + SILENCE, known.idle_since + self._patience) + GRACE:
                covered |= known.open.keys()
            if known.welcomed and not (known.draining or known.stuck) and now < known.heard + SILENCE - SLACK:
                ready.append(server)
        has_credit = [server for server in ready if len(self._servers[server].open) < self._scenario.outstanding]
        if has_credit and (left := self.wanted.keys() - covered):
            left -= {batch for batch, failed in self._failed.items() if now < failed + BACKS_OFF}
            if left:
                raise Violation(f"{sorted(left)} are asked of nobody who answers, though {has_credit} could be asked")

    def gave_up(self, error: ServerUnavailable, now: float) -> None:
        """Check that the ledger gives up when it must."""
        if now < self.deadline - SLACK:
            raise Violation(f"the ledger gives up before its deadline of {self.deadline:.3f}") from error
        if error.timeout != self._scenario.timeout:
            raise Violation(f"the error says {error.timeout} s") from error


def weigh(thing: object) -> int:
    """Return how many values something holds, in whatever it holds them."""
    if isinstance(thing, dict):
        return sum(1 + weigh(item) for item in thing.items())
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return sum(1 + weigh(item) for item in thing)
    return sum(1 + weigh(value) for value in _state(thing).values())


def _state(thing: object) -> dict[str, Any]:
    if is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: getattr(thing, f.name) for f in fields(thing)}
    return vars(thing) if isinstance(thing, Ledger) else {}
