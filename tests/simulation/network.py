"""The clock and the network of a world: time is a heap of what is still to happen, a wire is a connection.

On one wire messages arrive in the order in which they were sent, or not at all, as TCP has it; between wires there
is no order. A cut holds back what it stops, and lets go of it when it ends; a lost wire loses everything under way.
Both ends learn of a loss in their own time: a trainer by its socket's monitor, a server when it next sends something.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any, Final, Protocol

from feedmill_protocol import codec
from feedmill_protocol.messages import Batch, Message

from .content import Slot
from .scenario import Fault, Kind

__all__ = ["Clock", "Damage", "Link", "Parcel", "Way", "Wire"]

GIVES_UP: Final = 10.0
"""Seconds after which a server's kernel takes a client for gone that acknowledges nothing (TCP_MAXRT)."""

DUPLICATE_WITHIN: Final = 0.5
"""Seconds within which the second of two copies arrives."""


class Clock:
    """Virtual time. What is due at the same time happens in the order in which it was planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at a time; at infinity, nothing does."""
        if time < inf:
            heappush(self._heap, (max(time, self.now), next(self._order), do, arguments))

    def after(self, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """Have something happen so many seconds from now."""
        self.at(self.now + seconds, do, *arguments)

    @property
    def due(self) -> float:
        """When the next thing happens; inf if nothing does."""
        return self._heap[0][0] if self._heap else inf

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, do, arguments = heappop(self._heap)
        do(*arguments)


class Way(IntEnum):
    """A direction of a wire."""

    OUT = 0  # to the server
    IN = 1  # to the trainer


class Damage(Enum):
    """What of a message is not what was sent."""

    HEADER = "nobody knows what it was"
    PAYLOAD = "its payload is wrong"
    BORDER = "the next message was read as a part of it"


CUTS: Final = {Kind.CUT: (Way.OUT, Way.IN), Kind.CUT_OUT: (Way.OUT,), Kind.CUT_IN: (Way.IN,)}


@dataclass(eq=False, slots=True)
class Parcel:
    """What travels on a wire: a message, its payload as bytes, as a slot, or as both. None is the end of the wire."""

    message: Message | None
    payload: bytes = b""
    slot: Slot | None = None
    checksum: int = 0
    damage: Damage | None = None

    def drop(self) -> None:
        """Let go of the slot: this will not be sent any more, or has been."""
        if self.slot is not None:
            self.slot.unpin()
            self.slot = None

    def copy(self) -> "Parcel":
        """Return another of the same."""
        if self.slot is not None:
            self.slot.pins += 1
        return replace(self)


class End(Protocol):
    """Who is at the end of a wire."""

    def hear(self, wire: "Wire", parcel: Parcel) -> None:
        """Take what has arrived."""


class Link:
    """What lies between a trainer and a server, whichever wires come and go on it."""

    def __init__(self, clock: Clock, random: Random, latency: float) -> None:
        self.clock = clock
        self.random = random
        self.latency = latency
        self._ailments: list[Fault] = []
        self.cuts = [0, 0]  # in each direction, how many
        self.cut_since = [inf, inf]
        self.whole_since = 0.0  # since when there has been no cut, inf while there is one
        self.wires: list[Wire] = []

    def strike(self, fault: Fault) -> None:
        """Begin a fault."""
        match fault.kind:
            case Kind.DROP:
                for wire in list(self.wires):
                    wire.lose()
            case Kind.CUT | Kind.CUT_OUT | Kind.CUT_IN:
                self._cut(*CUTS[fault.kind])
            case _:
                self._ailments.append(fault)

    def lift(self, fault: Fault) -> None:
        """End a fault."""
        match fault.kind:
            case Kind.DROP:
                pass
            case Kind.CUT | Kind.CUT_OUT | Kind.CUT_IN:
                self._mend(*CUTS[fault.kind])
            case _:
                self._ailments.remove(fault)

    def worst(self, kind: Kind) -> float:
        """Return the strength of the worst fault of a kind that lasts; they do not add up."""
        return max((fault.strength for fault in self._ailments if fault.kind is kind), default=0.0)

    def heal(self) -> None:
        """End all faults."""
        self._ailments.clear()
        for way in Way:
            while self.cuts[way]:
                self._mend(way)

    def _cut(self, *ways: Way) -> None:
        for way in ways:
            self.cuts[way] += 1
            self.cut_since[way] = min(self.cut_since[way], self.clock.now)
        self.whole_since = inf
        self.clock.after(GIVES_UP, self._give_up)

    def _mend(self, *ways: Way) -> None:
        """Take back a cut, and let through what was held up, unless there is another."""
        for way in ways:
            self.cuts[way] -= 1
            if not self.cuts[way]:
                self.cut_since[way] = inf
        if not any(self.cuts):
            self.whole_since = self.clock.now
        for wire in list(self.wires):
            wire.release()

    def seconds(self) -> float:
        """Return how long a message takes."""
        return self.worst(Kind.DELAY) + self.latency * (0.5 + self.random.random())

    def _give_up(self) -> None:
        if self.clock.now >= self.cut_since[Way.IN] + GIVES_UP:
            for wire in list(self.wires):
                wire.expire()


class Wire:
    """A connection, from the handshake on, between a trainer and a server."""

    def __init__(self, number: int, link: Link, trainer: End, server: End, *, through_codec: bool) -> None:
        self.number = number
        self.id = b"%d" % number
        self.link = link
        self.since = link.clock.now
        self._ends = (server, trainer)  # whom each way leads to
        self._through_codec = through_codec
        self._lost = False
        self._ending = [False, False]  # ways on which nothing more is sent
        self._ended = [False, False]  # ways whose receiver knows
        self._free = [0.0, 0.0]  # from when on the next batch may be sent
        self._last = [0.0, 0.0]  # when the last message arrives
        self._loaded: list[Parcel] = []  # under way with a slot
        self._held: tuple[list[Parcel], list[Parcel]] = ([], [])
        self._torn: list[Parcel | None] = [None, None]  # what waits for the message that it will swallow
        link.wires.append(self)

    def send(self, way: Way, parcel: Parcel) -> None:
        """Send something, if there is still a way."""
        if self._ending[way]:
            parcel.drop()
            return
        clock, link = self.link.clock, self.link
        if self._through_codec and parcel.message is not None:
            parcel.message, _ = codec.unseal(*codec.seal(parcel.message))
        if isinstance(parcel.message, Batch):
            self._free[way] = max(clock.now, self._free[way]) + link.worst(Kind.THIN)
        self._last[way] = max(self._last[way], max(clock.now, self._free[way]) + link.seconds())
        self._carry(way, parcel, self._last[way])
        if parcel.message is not None and (often := link.worst(Kind.DUPLICATE)) and link.random.random() < often:
            self._carry(way, parcel.copy(), self._last[way] + link.random.random() * DUPLICATE_WITHIN)

    def _carry(self, way: Way, parcel: Parcel, until: float) -> None:
        link = self.link
        if parcel.message is not None and (often := link.worst(Kind.CORRUPT)) and link.random.random() < often:
            kinds = [Damage.HEADER, Damage.BORDER] + [Damage.PAYLOAD] * 2 * bool(parcel.message.payload_bytes)
            parcel.damage = link.random.choice(kinds)
        if parcel.slot is not None:
            self._loaded.append(parcel)
        self.link.clock.at(until, self._arrive, way, parcel)

    def finish(self, way: Way) -> None:
        """Close the sender's end. What it has sent arrives, and then the news; what comes the other way is ignored."""
        self.send(way, Parcel(None))
        self._ending = [True, True]
        self._end(Way(1 - way))

    def lose(self) -> None:
        """Lose everything under way, in both directions. Both ends are told, as soon as there is no cut."""
        self._lost = True
        self._unload()
        for way in Way:
            self._held[way][:] = [parcel for parcel in self._held[way] if parcel.message is None]
            if not self._ending[way]:
                self._ending[way] = True
                self._arrive(way, Parcel(None))

    def expire(self) -> None:
        """Lose the wire, if the server has waited for an acknowledgement for too long."""
        if self._held[Way.IN]:
            self.lose()

    def release(self) -> None:
        """Deliver what was held up, where there is no cut any more."""
        for way in Way:
            held = self._held[way]
            while held and not self.link.cuts[way]:
                self._deliver(way, held.pop(0))

    def _arrive(self, way: Way, parcel: Parcel) -> None:
        if self._ended[way] or (self._lost and parcel.message is not None):
            return
        if self.link.cuts[way] or self._held[way]:
            self._held[way].append(parcel)
        else:
            self._deliver(way, parcel)

    def _deliver(self, way: Way, parcel: Parcel) -> None:
        if parcel.message is None:
            self._end(way)
        elif torn := self._torn[way]:
            self._torn[way] = None
            self._unload_one(parcel)
            parcel = torn
        elif parcel.damage is Damage.BORDER:
            self._torn[way] = parcel
            return
        self._ends[way].hear(self, parcel)
        self._unload_one(parcel)

    def _unload_one(self, parcel: Parcel) -> None:
        if parcel.slot is not None and parcel in self._loaded:
            self._loaded.remove(parcel)
            parcel.drop()

    def _end(self, way: Way) -> None:
        """Note that the receiver of a way knows: nothing arrives there any more."""
        self._ended[way] = True
        self._held[way].clear()
        if way is Way.IN:
            self._unload()
        if all(self._ended):
            self.link.wires.remove(self)

    def _unload(self) -> None:
        for parcel in self._loaded:
            parcel.drop()
        self._loaded.clear()
