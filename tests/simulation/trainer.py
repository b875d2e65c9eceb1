"""A trainer of a world: the real ledger, and what `feedmill.feed` and `feedmill.connection` do around it.

It asks a few batches ahead, takes them in the order of the plan, and reports to the ledger what sockets and their
monitors would. When its thread was kept from running it finds everything at once, and reads all of it before it lets
the ledger know what time it is.
"""

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from feedmill_protocol.errors import ProtocolError, SampleError, ServerUnavailable
from feedmill_protocol.ledger import Key, Ledger
from feedmill_protocol.messages import Batch, Get, Message, Reject, Welcome

from .content import Block, name
from .network import Clock, Damage, Parcel, Way, Wire
from .oracle import Record, Violation, Watch, weigh
from .scenario import Fault, Kind, Scenario

__all__ = ["Letter", "Network", "Trainer"]

RECONNECT: Final = (0.05, 1.0)
"""Seconds until a lost connection is tried again, at first and at most."""

SLEEP: Final = 1.0
"""Seconds for which the thread sleeps at most."""

LIVES: Final = 40
"""How often a trainer begins anew before that is called a loop."""

SPINS: Final = 20
"""How often a ledger may ask to be woken at once before that is called a loop."""

WEIGHT: Final = 60
"""Values that a ledger with nothing to do may hold, and as many for each server."""


class News(Enum):
    """What the monitor of a socket says."""

    CONNECTED = "a connection stands"
    LOST = "it is lost"


class Letter(NamedTuple):
    """A message that has arrived, and its payload."""

    message: Message
    block: Block
    damage: Damage | None


class Network(Protocol):
    """What a trainer knows of the world around it."""

    def addresses(self) -> list[str]:
        """Return what the servers' names resolve to."""

    def dial(self, trainer: "Trainer", address: str) -> Wire | None:
        """Return a new connection, or None where that cannot be had now."""

    def well_since(self, trainer: "Trainer") -> float:
        """Return since when some server has been well and connected to a trainer without a break; inf if none is."""


class Trainer:
    """One rank."""

    def __init__(
        self,
        rank: int,
        scenario: Scenario,
        clock: Clock,
        network: Network,
        ledger: type[Ledger],
        reached: Counter[str],
        say: Callable[[str, str], None] | None,
    ) -> None:
        self.rank = rank
        self.record = Record(scenario, rank)
        self.wires: dict[str, Wire] = {}
        self.over = False  # finished, or ended by an error that was in order
        self.alive = False
        self.stalled = 0
        self.running_since = inf
        self.ledger: Ledger
        self._scenario = scenario
        self._clock = clock
        self._network = network
        self._make_ledger = ledger
        self._reached = reached
        self._say = say
        self._name = f"trainer {rank}"
        self._random = Random(f"{scenario.seed} trainer {rank}")
        self._life = 0
        self._dead = 0  # how many faults keep it from living
        self._begin_anew()

    # What befalls it.

    def strike(self, fault: Fault) -> None:
        """Begin a fault."""
        match fault.kind:
            case Kind.CRASH:
                self._dead += 1
                self._end()
            case Kind.STALL:
                self.stalled += 1
                self.running_since = inf
            case Kind.SKIP:
                self._skip()

    def lift(self, fault: Fault) -> None:
        """End a fault."""
        match fault.kind:
            case Kind.CRASH:
                self._dead -= 1
                self.begin()  # where it was: its state is epoch and step
            case Kind.STALL:
                self.stalled -= 1
                if not self.stalled:
                    self.running_since = self._clock.now
                    self._turn()

    def _skip(self) -> None:
        """Leave the epoch early, if it is not the last."""
        if self.alive and not self.stalled and self.record.epoch + 1 < self._scenario.epochs:
            self.record.next_epoch()
            self._seek()
            self._turn()

    def resolve(self) -> None:
        """Hold connections to what the names resolve to now. A name that resolves to nothing keeps what it had."""
        found = self._network.addresses()
        if not self.alive or not found:
            return
        for address in found:
            if address not in self._known:
                self._known.add(address)
                self.ledger.add(address)
                self._dial(self._life, address, RECONNECT[0])
        for address in sorted(self._known.difference(found)):
            self._known.discard(address)
            self.ledger.remove(address)
            self._watch.disconnected(address)
            self._flush()
            if wire := self.wires.pop(address, None):
                wire.finish(Way.OUT)
        self._turn()

    # Its life.

    def begin(self) -> None:
        """Open a feed where the last one ended."""
        if self.alive or self.over or self._dead:
            return
        self._begin_anew()
        self.alive = True
        self.running_since = inf if self.stalled else self._clock.now
        self.resolve()
        self._turn()

    def _begin_anew(self) -> None:
        self._life += 1
        if self._life > LIVES:
            raise Violation(f"{self._name} begins anew for the {LIVES}th time")
        now = self._clock.now
        self.ledger = self._make_ledger("train", timeout=self._scenario.timeout, now=now, jitter=self._random.random)
        self._watch = Watch(self._scenario, now)
        self._known: set[str] = set()
        self._contract: Welcome | None = None
        self._arrived: dict[Key, tuple[Batch, Block]] = {}
        self._asked: deque[tuple[int, int]] = deque()
        self._next = (self.record.epoch, self.record.step)
        self._busy = False
        self._wakes = inf
        self._spins = 0
        self._inbox: deque[tuple[str, Letter | News]] = deque()

    def _end(self) -> None:
        """Let go of everything at once."""
        if self.alive:
            self._reached["asked again"] += self.ledger.asked_again
            self._reached["asked twice for being late"] += self.ledger.hedged
            self._reached["late replies"] += self.ledger.duplicates
            self._reached["damaged"] += self.ledger.damaged
        self.alive = False
        for wire in self.wires.values():
            wire.finish(Way.OUT)
        self.wires.clear()

    def _dial(self, life: int, address: str, patience: float) -> None:
        """Try to connect, now and again."""
        if life != self._life or not self.alive or address not in self._known or address in self.wires:
            return
        if wire := self._network.dial(self, address):
            self.wires[address] = wire
            self._clock.after(wire.link.seconds(), self._connected, life, address, wire)
        else:
            self._clock.after(patience, self._dial, life, address, min(2 * patience, RECONNECT[1]))

    def _connected(self, life: int, address: str, wire: Wire) -> None:
        if life == self._life and self.wires.get(address) is wire:
            self._inbox.append((address, News.CONNECTED))
            self._turn()

    def hear(self, wire: Wire, parcel: Parcel) -> None:
        """Take what has arrived on a wire."""
        address = next((address for address, known in self.wires.items() if known is wire), None)
        if address is None:
            return  # the socket has been closed
        if parcel.message is None:
            del self.wires[address]
            self._lose_unread(address)
            self._inbox.append((address, News.LOST))
            self._clock.after(RECONNECT[0], self._dial, self._life, address, RECONNECT[0])
        else:
            rows: tuple[int | None, ...] = ()
            if parcel.slot is not None and isinstance(parcel.message, Batch):
                rows = parcel.slot.read(parcel.message.tensors[0].shape[0])
                if parcel.slot.checksum(0, parcel.payload) != parcel.checksum:
                    raise Violation(f"{address} sends another payload than it sealed: {parcel.message}")
            self._inbox.append((address, Letter(parcel.message, Block(rows, parcel.payload), parcel.damage)))
        self._turn()

    def _lose_unread(self, address: str) -> None:
        """Drop what a connection brought that is now lost, as libzmq does (see tests/client/test_connection.py)."""
        self._inbox = deque(item for item in self._inbox if item[0] != address or isinstance(item[1], News))

    # The thread's turns.

    def _turn(self) -> None:
        """Do what the connection's thread does when it is woken."""
        if self.stalled or not self.alive:
            return
        try:
            self._read()
            self.ledger.tick(self._clock.now)
        except ServerUnavailable as error:
            self._give_up(error)
            return
        except SampleError as error:
            self._stop_at_sample(error)
            return
        except ProtocolError as error:
            self._despair(error)
            return
        self._flush()
        self._watch.rest(self.ledger, self._clock.now)
        self._train()
        if self.alive:
            self._sleep()

    def _read(self) -> None:
        now = self._clock.now
        while self._inbox:
            address, what = self._inbox.popleft()
            if address not in self._known:
                continue  # its name no longer resolves
            if isinstance(what, Letter):
                self._receive(address, *what)
            elif what is News.CONNECTED:
                self._watch.connected(address, now)
                self.ledger.connected(address, now)
            else:
                self._watch.disconnected(address)
                self.ledger.disconnected(address)
            self._flush()  # before the next changes what is wanted

    def _receive(self, address: str, message: Message, block: Block, damage: Damage | None) -> None:
        now = self._clock.now
        if self._say:
            self._say(self._name, f"hears {address}: {damage.value if damage else ''}{message}")
        if damage in (Damage.HEADER, Damage.BORDER):
            self._watch.garbled(address, now)
            self.ledger.garbled(address, now)
            return
        intact = damage is None
        if not intact or (isinstance(message, Reject) and message.code == "damaged"):
            self._watch.damaged(address)
        wanted = self.ledger.wants(address, message)
        taken = self.ledger.received(address, message, now, intact=intact)
        if taken != (wanted and intact):
            raise Violation(f"{message} of {address} is {'taken' if taken else 'dropped'}, and {wanted=}, {intact=}")
        self._watch.received(address, message, now, intact=intact, taken=taken)
        if taken and isinstance(message, Batch):
            self._arrived[message.epoch, message.batch] = message, block
        elif taken and isinstance(message, Welcome):
            self._contract = message
            if block.keys != self.record.plan.counts.astype("<u4").tobytes():
                raise Violation(f"{address} sends a catalog that is not the stream's")

    def _flush(self) -> None:
        outbox = self.ledger.outbox
        while outbox:
            outgoing = outbox.popleft()
            if self._say:
                self._say(self._name, f"to {outgoing.server}: {outgoing.message}")
            self._watch.sent(outgoing, self._clock.now)
            if wire := self.wires.get(outgoing.server):
                wire.send(Way.OUT, Parcel(outgoing.message, outgoing.payload))

    def _sleep(self) -> None:
        now = self._clock.now
        wakes = min(self.ledger.wake_at(), now + SLEEP)
        self._spins = self._spins + 1 if wakes <= now else 0
        if self._spins > SPINS:
            raise Violation(f"the ledger of {self._name} asks to be woken at once, again and again")
        if wakes < self._wakes:
            self._wakes = wakes
            self._clock.at(wakes, self._wake, self._life, wakes)

    def _wake(self, life: int, time: float) -> None:
        if life == self._life and self.alive and time == self._wakes:
            self._wakes = inf
            self._turn()

    def _give_up(self, error: ServerUnavailable) -> None:
        now = self._clock.now
        self._watch.gave_up(error, now)
        well = max(self._network.well_since(self), self.running_since)
        if well <= now - self._scenario.timeout:
            raise Violation(f"{self._name} gives up, though a server was there since {well:.3f}: {error}") from error
        if self._say:
            self._say(self._name, f"gives up: {error}")
        self._reached["no server is available"] += 1
        self._leave()
        if self._scenario.hopeless and now > max(fault.begin for fault in self._scenario.faults):
            self.over = True
        self._clock.after(self._random.uniform(0.0, 2.0), self.begin)

    def _despair(self, error: ProtocolError) -> None:
        self._watch.despaired(error)
        self._reached["a link is no use"] += 1
        self._leave()
        self._clock.after(self._random.uniform(0.0, 2.0), self.begin)

    def _stop_at_sample(self, error: SampleError) -> None:
        self.record.check_error(error, self._watch.wanted)
        self._reached["a sample is blamed"] += 1
        self.over = True
        self._leave()

    def _leave(self) -> None:
        """Close the feed in good order."""
        self.ledger.leave()
        self._flush()
        self._end()

    # The trainer's loop.

    def _train(self) -> None:
        """Take what is next, if it is there and the trainer is ready for it."""
        if self._contract is None or self._busy:
            return
        self._fill()
        position = (self.record.epoch, self.record.step)
        if (arrived := self._arrived.pop(self._key(*position), None)) is None:
            return
        self.record.took(*arrived)
        self._asked.popleft()
        if self.record.finished:
            self._finish()
            return
        self._seek()
        self._fill()
        self._busy = True
        pace = self._scenario.pace * self._random.uniform(0.5, 1.5)
        self._clock.after(pace, self._ready, self._life)

    def _ready(self, life: int) -> None:
        if life == self._life and self.alive:
            self._busy = False
            self._turn()

    def _seek(self) -> None:
        """Forget what comes before where the trainer is now."""
        position = (self.record.epoch, self.record.step)
        while self._asked and self._asked[0] != position:
            batch = self._key(*self._asked.popleft())
            self._arrived.pop(batch, None)
            self._forget(batch)
        if not self._asked:
            self._next = position

    def _forget(self, batch: Key) -> None:
        self._watch.forget(batch)
        self.ledger.forget(batch)
        self._flush()  # before the next is forgotten, for which this may have made room

    def _fill(self) -> None:
        contract, record, now = self._contract, self.record, self._clock.now
        while contract and len(self._asked) < self._scenario.prefetch:
            epoch, step = self._next
            called = self._key(epoch, step)
            batch = name(record.plan, epoch, step)
            get = Get(
                stream=contract.stream,
                fingerprint=contract.fingerprint,
                seed=record.plan.seed,
                epoch=epoch,
                batch=called[1],
                spans=batch.spans,
                on_error=self._scenario.on_error,
            )
            self._watch.want(called, batch, now)
            self.ledger.want(get, batch.payload, len(batch.samples), now)
            self._asked.append((epoch, step))
            self._next = (epoch, step + 1) if step + 1 < len(record.plan) else (epoch + 1, 0)
        self._flush()
        self._check_bounds()

    def _key(self, epoch: int, step: int) -> Key:
        plan = self.record.plan
        return epoch, step * plan.world_size + plan.rank

    def _finish(self) -> None:
        """Close the feed, when everything has come. A ledger that nobody wants anything of holds next to nothing."""
        for position in self._asked:
            self._forget(self._key(*position))
        self._watch.rest(self.ledger, self._clock.now)
        if (weight := weigh(self.ledger)) > WEIGHT * (1 + len(self._known)):
            raise Violation(f"{self._name} has finished, and its ledger still holds {weight} values")
        self.over = True
        self._leave()

    def _check_bounds(self) -> None:
        held = len(self._arrived) + self.ledger.open
        if held > self._scenario.prefetch:
            raise Violation(f"{self._name} holds or awaits {held} batches, more than {self._scenario.prefetch}")


if TYPE_CHECKING:
    from .network import End

    _: type[End] = Trainer
