"""A server of a world: the real broker, with workers that take virtual time, and memory that notices its misuse."""

from collections import Counter, deque
from collections.abc import Callable
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final

from feedmill_protocol.errors import ProtocolError
from feedmill_server.broker import KILLS, PART_SAMPLES, Bad, Broker, Work

from .content import Pool, Slot, batch_bytes, key, row, stream
from .network import Clock, Parcel, Way, Wire
from .scenario import Fault, Kind, Scenario

__all__ = ["Server"]

TICK: Final = 0.25
"""Seconds for which a server sleeps at most."""

UNPINNED: Final = 0.002
"""Seconds until a server sees that a batch has been sent."""

DRAINS: Final = 4.0
"""Seconds that a server takes to shut down, at most."""

IN_HAND: Final = 2
"""Parts that a worker has in hand."""

REPLACED: Final = 0.05
"""Seconds until a dead worker is replaced."""

DEPTHS = range(IN_HAND)


class Server:
    """A host that runs a server, most of the time."""

    def __init__(
        self,
        number: int,
        scenario: Scenario,
        clock: Clock,
        broker: type[Broker[Slot]],
        reached: Counter[str],
        say: Callable[[str, str], None] | None,
    ) -> None:
        self.number = number
        self.address = f"server {number}"
        self.frozen = 0  # how many faults stop it
        self._wedged = 0  # and how many hold its workers
        self._slow: list[float] = []  # how many times as long everything takes; the worst counts
        self.up = False
        self.well_since = inf
        self.wires: dict[bytes, Wire] = {}
        self.broker: Broker[Slot]
        self.pool: Pool
        self._scenario = scenario
        self._clock = clock
        self._make_broker = broker
        self._reached = reached
        self._say = say
        self._random = Random(f"{scenario.seed} server {number}")
        self._broken = scenario.bad | scenario.poison
        self._boot = 0
        self._workers: dict[int, deque[Work[Slot]]] = {}
        self._hired = 0
        self._mail: deque[tuple[Wire, Parcel]] = deque()  # unread, while it is stopped
        self._late: list[tuple[int, Work[Slot]]] = []  # parts that would be finished, if workers got on
        self._woken = False

    # What befalls it.

    def strike(self, fault: Fault) -> None:
        """Begin a fault."""
        match fault.kind:
            case Kind.KILL:
                self._kill(gently=self._random.random() < 0.5)
            case Kind.FREEZE:
                self.frozen += 1
            case Kind.WEDGE:
                self._wedged += 1
            case Kind.SLOW:
                self._slow.append(fault.strength)
            case Kind.DRAIN:
                self._drain()
            case Kind.MISHAP:
                self._mishap()
        self._judge()

    def lift(self, fault: Fault) -> None:
        """End a fault."""
        match fault.kind:
            case Kind.KILL | Kind.DRAIN:
                if self.up and self.broker.draining:
                    self._kill(gently=False)
                self.start()
            case Kind.FREEZE:
                self.frozen -= 1
            case Kind.WEDGE:
                self._wedged -= 1
            case Kind.SLOW:
                self._slow.remove(fault.strength)
        self._judge()
        self._catch_up()

    def heal(self) -> None:
        """End all faults; whoever is dead stays so."""
        self.frozen = self._wedged = 0
        self._slow.clear()
        self._catch_up()

    def start(self) -> None:
        """Start the server, if it is not running."""
        if self.up:
            return
        self.up = True
        self._boot += 1
        scenario = self._scenario
        workers = scenario.workers[self.number]
        self.pool = Pool(scenario.memory * batch_bytes(scenario), self._wake)
        self.broker = self._make_broker(
            [stream(scenario.counts, scenario.batch_size)],
            self.pool,
            server=self.address,
            boot=f"{self.address}, boot {self._boot}",
            workers=workers,
        )
        self._workers = {}
        self._late = []
        for _ in range(workers):
            self._hire(self._boot)
        self._judge()
        self._tick(self._boot)

    def _kill(self, *, gently: bool) -> None:
        """End the server. Gently, what it has sent still arrives."""
        if not self.up:
            return
        self.up = False
        for wire in list(self.wires.values()):
            if gently:
                wire.finish(Way.IN)
            else:
                wire.lose()
        self.wires.clear()
        self._mail.clear()
        self._judge()

    def _drain(self) -> None:
        """Have the server shut down: it finishes what it was asked for."""
        if self.up and not self.frozen and not self.broker.draining:
            self.broker.drain()
            self._clock.after(DRAINS, self._stop, self._boot)
            self._turn()

    def _mishap(self) -> None:
        """Kill a worker that is at work, unless it would be the last straw for a sample that is not to blame."""
        if not self.up:
            return
        busy = [worker for worker, parts in self._workers.items() if parts and parts[0].kills < KILLS - 0.5]
        if busy:
            self._die(self._random.choice(busy), "it was killed", 0.5)
            self._turn()

    def _catch_up(self) -> None:
        """Go on, where a fault has ended: read what has come, finish what waits."""
        if not self.up or self.frozen:
            return
        while self._mail:
            self._take(*self._mail.popleft())
        if not self._wedged:
            late, self._late = self._late, []
            for worker, work in late:
                self._finish(self._boot, worker, work)
        self._turn()

    def _judge(self) -> None:
        """Settle since when the server has been well."""
        well = self.up and not self.frozen and not self._wedged and not self.broker.draining
        self.well_since = min(self.well_since, self._clock.now) if well else inf

    # What it hears and says.

    def hear(self, wire: Wire, parcel: Parcel) -> None:
        """Take what has arrived on a wire."""
        if self.wires.get(wire.id) is not wire:
            return  # from before it was started, or after the wire was lost
        if parcel.message is None:
            del self.wires[wire.id]  # nobody tells the broker
        elif self.frozen:
            self._mail.append((wire, parcel))
        else:
            self._take(wire, parcel)
            self._turn()

    def _take(self, wire: Wire, parcel: Parcel) -> None:
        if parcel.message is None:
            return
        if parcel.damage:
            self.broker.refuse(wire.id, "damaged", parcel.damage.value)
            return
        try:
            self.broker.receive(wire.id, parcel.message, parcel.payload, self._clock.now)
        except ProtocolError as error:
            self.broker.refuse(wire.id, "protocol", str(error))

    def _turn(self) -> None:
        """Do what a server does after it has heard something."""
        self.broker.tick(self._clock.now)
        self._hand_out()
        self._send_replies()
        if self.broker.draining and not self.broker.open and not any(slot.pins for slot in self.pool.slots):
            self._stop(self._boot)

    def _send_replies(self) -> None:
        replies = self.broker.replies
        while replies:
            reply = replies.popleft()
            self._reached[reply.message.type] += 1
            parcel = Parcel(reply.message, reply.trailer, reply.slot, reply.checksum)
            if reply.slot is not None:
                reply.slot.pins += 1  # the parcel's own
            self.broker.sent(reply)
            if (wire := self.wires.get(reply.client)) is None:
                parcel.drop()
                self.broker.forget(reply.client)
            else:
                if self._say:
                    self._say(self.address, f"wire {wire.number}: {reply.message}")
                wire.send(Way.IN, parcel)

    def _tick(self, boot: int) -> None:
        if boot == self._boot and self.up:
            if not self.frozen:
                self._turn()
            self._clock.after(TICK, self._tick, boot)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._clock.after(UNPINNED, self._look)

    def _look(self) -> None:
        self._woken = False
        if self.up and not self.frozen:
            self._turn()

    def _stop(self, boot: int) -> None:
        if boot == self._boot:
            self._kill(gently=True)

    # Workers.

    def _hire(self, boot: int) -> None:
        if boot == self._boot and self.up:
            self._hired += 1
            self._workers[self._hired] = deque()

    def _hand_out(self) -> None:
        broker = self.broker
        for depth in DEPTHS:
            for worker, parts in self._workers.items():
                if broker.assigned(worker) > depth:
                    continue
                if (work := broker.next_part(worker)) is None:
                    break
                parts.append(work)
                if len(parts) == 1:
                    self._begin(worker, work)

    def _begin(self, worker: int, work: Work[Slot]) -> None:
        share = work.rows / PART_SAMPLES
        seconds = self._scenario.part_seconds * share * max(self._slow, default=1.0) * (0.5 + self._random.random())
        self._clock.after(seconds, self._finish, self._boot, worker, work)

    def _finish(self, boot: int, worker: int, work: Work[Slot]) -> None:
        if boot != self._boot or not self.up or worker not in self._workers:
            return
        if self.frozen or self._wedged:
            self._late.append((worker, work))
            return
        samples = [(shard, index) for shard, index in work.samples.tolist()]
        if self._scenario.poison and not self._scenario.poison.isdisjoint(samples):
            self._die(worker, "it cannot be borne")
        else:
            self._report(worker, work, samples)
        self._turn()

    def _report(self, worker: int, work: Work[Slot], samples: list[tuple[int, int]]) -> None:
        get = work.build.get
        if work.build.slot is None:
            raise AssertionError("a part was handed out without memory to build it in")
        made = [None if s in self._broken else row(get.seed, get.epoch, *s) for s in samples]
        work.build.slot.write(work.first, made)
        bad = [
            Bad(work.first + at, *samples[at][:1], key(*samples[at]), "it is cut short")
            for at, value in enumerate(made)
            if value is None
        ]
        parts = self._workers[worker]
        parts.popleft()
        self.broker.done(worker, [key(*sample) for sample in samples], bad)
        if parts:
            self._begin(worker, parts[0])

    def _die(self, worker: int, reason: str, kills: float = 1) -> None:
        work, *_ = self._workers.pop(worker)
        at = next((at for at, s in enumerate(work.samples.tolist()) if tuple(s) in self._scenario.poison), 0)
        self.broker.lost(worker, reason, work.first + at, key(*work.samples[at].tolist()), kills)
        self._clock.after(REPLACED, self._hire, self._boot)


if TYPE_CHECKING:
    from .network import End

    _: type[End] = Server
