"""A world: servers, trainers, links between them, and the faults that come over them, until everybody is content."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from random import Random
from typing import Final
from unittest.mock import patch

from feedmill_protocol import limits
from feedmill_protocol.ledger import Ledger
from feedmill_server.broker import CLIENT_SILENCE, Broker

from .content import Slot
from .network import Clock, Link, Wire
from .oracle import Violation
from .scenario import LINK, Fault, Kind, Scenario, draw
from .server import Server
from .trainer import Trainer

__all__ = ["THE_REAL_THING", "Failure", "Outcome", "Subject", "World", "play", "play_scenario"]

HORIZON: Final = 2000.0
"""Seconds, far more than any world needs, after which those who are not content never will be."""

AFTERMATH: Final = CLIENT_SILENCE + 6.0
"""Seconds of peace in which servers must get rid of everything that trainers left behind."""


class Failure(AssertionError):
    """A world in which something did not hold; the message says how to see it again."""

    def __init__(self, seed: int, mutant: str, time: float, cause: BaseException) -> None:
        options = f" --mutant {mutant}" if mutant else ""
        super().__init__(
            f"seed {seed}, at {time:.3f} s: {type(cause).__name__}: {cause}\n"
            f"replay with: PYTHONPATH=tests python -m simulation --seeds {seed}..{seed}{options} --trace"
        )
        self.seed = seed


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tested: the real thing, or a mutant, which has a name."""

    name: str = ""
    ledger: type[Ledger] = Ledger
    broker: type[Broker[Slot]] = Broker
    trainer: type[Trainer] = Trainer


THE_REAL_THING: Final = Subject()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a world. ``reached`` counts what happened: a simulator that provokes nothing finds nothing."""

    seed: int
    seconds: float
    reached: Counter[str]


def play(seed: int, subject: Subject = THE_REAL_THING, say: Callable[[str], None] | None = None) -> Outcome:
    """Play the world of a seed to its end. Raises Failure when something does not hold, or anything breaks.

    ``say`` is told everything that happens, a line each.
    """
    return play_scenario(draw(seed), subject, say)


def play_scenario(
    scenario: Scenario, subject: Subject = THE_REAL_THING, say: Callable[[str], None] | None = None
) -> Outcome:
    """Play a world of one's own."""
    world = World(scenario, subject, say)
    with patch.object(limits, "OUTSTANDING", scenario.outstanding):
        try:
            world.play()
        except Exception as error:
            raise Failure(scenario.seed, subject.name, world.clock.now, error) from error
    return Outcome(scenario.seed, world.clock.now, world.reached)


class World:
    """Everything there is, for one seed."""

    def __init__(self, scenario: Scenario, subject: Subject, say: Callable[[str], None] | None) -> None:
        self.clock = Clock()
        self.reached: Counter[str] = Counter()
        self._scenario = scenario
        self._write = say
        self._at_peace = False
        self._wires = count(1)
        self._gone: Counter[int] = Counter()  # servers whose name does not resolve
        tell = self._tell if say else None
        servers, trainers = range(scenario.servers), range(scenario.trainers)
        self._servers = [Server(number, scenario, self.clock, subject.broker, self.reached, tell) for number in servers]
        self._trainers = [
            subject.trainer(rank, scenario, self.clock, self, subject.ledger, self.reached, tell) for rank in trainers
        ]
        self._links = [
            [Link(self.clock, Random(f"{scenario.seed} link {rank} {server}"), scenario.latency) for server in servers]
            for rank in trainers
        ]

    def play(self) -> None:
        """Let everything happen, and check that it ends as it must."""
        self._begin()
        while not all(trainer.over for trainer in self._trainers):
            if self.clock.due > HORIZON:
                raise Violation(f"after {HORIZON:g} s, trainers still have not got everything")
            self.clock.step()
        self._check_epochs()
        self._make_peace()
        end = self.clock.now + AFTERMATH
        while self.clock.due < end:
            self.clock.step()
        for server in self._servers:
            self._check_idle(server)

    # What trainers know of it.

    def addresses(self) -> list[str]:
        """Return what the servers' names resolve to."""
        return [server.address for server in self._servers if not self._gone[server.number]]

    def dial(self, trainer: Trainer, address: str) -> Wire | None:
        """Return a new connection, or None where that cannot be had now."""
        server = next(server for server in self._servers if server.address == address)
        link = self._links[trainer.rank][server.number]
        if not server.up or server.frozen or any(link.cuts):
            return None
        wire = Wire(next(self._wires), link, trainer, server, through_codec=self._scenario.through_codec)
        server.wires[wire.id] = wire
        return wire

    def well_since(self, trainer: Trainer) -> float:
        """Return since when some server has been well and connected to a trainer without a break; inf if none is."""
        return min(
            (
                max(server.well_since, self._links[trainer.rank][server.number].whole_since, wire.since)
                for server in self._servers
                if (wire := trainer.wires.get(server.address))
            ),
            default=inf,
        )

    # What befalls it.

    def _begin(self) -> None:
        for server in self._servers:
            self.clock.at(0.0, server.start)
        for fault in self._scenario.faults:
            self.clock.at(fault.begin, self._strike, fault)
            self.clock.at(fault.end, self._lift, fault)
        for trainer in self._trainers:
            self.clock.at(0.0, trainer.begin)

    def _strike(self, fault: Fault) -> None:
        """Begin a fault."""
        if not self._at_peace:
            self._tell("fault", f"begins: {fault}")
            self.reached[fault.kind.name] += 1
            for victim in self._victims(fault):
                victim.strike(fault)
            self._rename(fault, 1)

    def _lift(self, fault: Fault) -> None:
        """End a fault."""
        if not self._at_peace:
            self._tell("fault", f"ends: {fault}")
            for victim in self._victims(fault):
                victim.lift(fault)
            self._rename(fault, -1)

    def _victims(self, fault: Fault) -> Sequence[Server | Trainer | Link]:
        """Return what a fault happens to. One of links that names no trainer happens to the links of all."""
        if fault.server is None:
            return [trainer for trainer in self._trainers if trainer.rank == fault.trainer]
        if fault.kind not in LINK:
            return [self._servers[fault.server]]
        return [links[fault.server] for rank, links in enumerate(self._links) if fault.trainer in (None, rank)]

    def _rename(self, fault: Fault, gone: int) -> None:
        if fault.kind is Kind.LEAVE and fault.server is not None:
            self._gone[fault.server] += gone
            for trainer in self._trainers:
                trainer.resolve()

    def _make_peace(self) -> None:
        """End all faults, those too that were for good, and begin no more."""
        self._at_peace = True
        for links in self._links:
            for link in links:
                link.heal()
        for server in self._servers:
            server.heal()

    # What must hold in the end.

    def _check_epochs(self) -> None:
        """Check that those who share an epoch got every sample once, if all of them finished it, and none twice."""
        world_size = self._scenario.world_size
        for first in range(0, len(self._trainers), world_size):
            sharers = [trainer.record for trainer in self._trainers[first : first + world_size]]
            for epoch in range(self._scenario.epochs):
                got = [sample for record in sharers for sample in record.samples.get(epoch, [])]
                whole = all(record.whole(epoch) for record in sharers)
                if len(set(got)) < len(got) or (whole and len(got) < sum(self._scenario.counts)):
                    raise Violation(f"in epoch {epoch}, {len(got)} samples came, {len(set(got))} different ones")
                self.reached["a whole epoch"] += whole

    def _check_idle(self, server: Server) -> None:
        """Check that a server that nobody asks for anything holds nothing for anybody."""
        if not server.up:
            return
        broker = server.broker
        left = {"clients": broker.clients, "open requests": broker.open, "queued parts": broker.queued}
        left["pinned slots"] = sum(bool(slot.pins) for slot in server.pool.slots)
        left["unfinished builds"] = sum(not build.done for build in broker._builds.values())
        left["builds without a name"] = len(broker._building)
        left["slots without a build"] = len(server.pool.slots) - len(broker._builds)
        if any(left.values()):
            raise Violation(f"{server.address} has no clients, and still has {left}")

    def _tell(self, who: str, what: str) -> None:
        if self._write:
            self._write(f"{self.clock.now:9.4f}  {who:10} {what}")
