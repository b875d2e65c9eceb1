"""What a seed means: how many of what there are, how fast they are, and what befalls them when.

A fault has a beginning and an end. In most worlds one server, the hero, is spared what lasts for good, so that in the
end everybody must have got everything; in hopeless worlds no server is left, and everybody must be told so.
"""

from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from random import Random
from typing import Final, TypeAlias

from feedmill_server.broker import PART_SAMPLES

__all__ = ["LINK", "Fault", "Kind", "Sample", "Scenario", "draw"]

Sample: TypeAlias = tuple[int, int]
"""Shard and index."""

COUNTS: Final = ((140, 0, 190, 61, 133), (450,), (40,) * 12, (1, 300, 7, 164))
"""Samples of each shard. Few different streams: what is planned for one world is used again in others."""

BATCH_SIZES: Final = (8, 20, 40)  # of one part, two, and three
PLAN_SEEDS: Final = 6
OPTIMISTIC: Final = 0.88  # of all worlds; the others are hopeless


class Kind(Enum):
    """What may happen, and to whom."""

    # To the link between a trainer and a server:
    DROP = "the connection is lost, with everything under way"
    DELAY = "everything takes seconds longer"
    THIN = "a batch takes seconds to get through, and all behind it waits"
    DUPLICATE = "messages come twice, the second time later"
    CORRUPT = "messages are damaged"
    CUT = "nothing gets through"
    CUT_OUT = "nothing gets through to the server"
    CUT_IN = "nothing gets through to the trainer"
    # To a server:
    KILL = "the server dies, and is started again in the end"
    FREEZE = "the server is stopped: it hears nothing and says nothing"
    WEDGE = "the server answers, but gets nothing done"
    SLOW = "the server takes many times as long"
    DRAIN = "the server shuts down in good order, and is started again in the end"
    MISHAP = "a worker process dies"
    LEAVE = "the server's name no longer resolves"
    # To a trainer:
    CRASH = "the trainer dies, and is resumed from its state in the end"
    STALL = "the trainer's thread does not get to run"
    SKIP = "the trainer leaves its epoch early"


LINK: Final = (
    *(Kind.DROP, Kind.DELAY, Kind.THIN, Kind.DUPLICATE, Kind.CORRUPT),
    *(Kind.CUT, Kind.CUT_OUT, Kind.CUT_IN),
)
SERVER: Final = (Kind.KILL, Kind.FREEZE, Kind.WEDGE, Kind.SLOW, Kind.DRAIN, Kind.MISHAP, Kind.LEAVE)
TRAINER: Final = (Kind.CRASH, Kind.STALL, Kind.SKIP)
FATAL: Final = (Kind.CUT, Kind.CUT_OUT, Kind.CUT_IN, Kind.KILL, Kind.FREEZE, Kind.WEDGE, Kind.DRAIN, Kind.LEAVE)
"""What makes a server useless while it lasts. The others a client must cope with for ever."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens: to a server, to a trainer, or to the link between them (between all and it: no trainer).

    ``strength`` is seconds for DELAY and THIN, a factor for SLOW, a probability for DUPLICATE and CORRUPT.
    """

    kind: Kind
    begin: float
    end: float
    server: int | None = None
    trainer: int | None = None
    strength: float = 0.0

    def __str__(self) -> str:
        """Say what happens, for a trace."""
        where = " ".join(
            f"{what} {number}"
            for what, number in (("server", self.server), ("trainer", self.trainer))
            if number is not None
        )
        how = f" ({self.strength:.3g})" if self.strength else ""
        return f"{self.begin:.3f}..{self.end:.3f} {where}: {self.kind.name}{how}, {self.kind.value}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that is drawn from a seed before the world begins."""

    seed: int
    # The stream and its plan.
    counts: tuple[int, ...]
    batch_size: int
    plan_seed: int
    epochs: int
    steps: int  # of an epoch, at most: worlds are small
    on_error: str
    bad: frozenset[Sample]  # cannot be decoded
    poison: frozenset[Sample]  # kill the worker that tries
    # The trainers.
    trainers: int
    alike: bool  # whether they all want the same batches, as trainings that are compared do, or share them
    prefetch: int
    timeout: float
    pace: float  # seconds that a trainer spends on a batch
    # The servers.
    servers: int
    workers: tuple[int, ...]
    part_seconds: float
    memory: int  # batches that fit
    # The world.
    latency: float
    outstanding: int  # the credit of a client at a server
    through_codec: bool  # whether messages are encoded and decoded on their way
    hopeless: bool
    faults: tuple[Fault, ...]

    @property
    def world_size(self) -> int:
        """Among how many ranks an epoch is shared."""
        return 1 if self.alike else self.trainers

    @property
    def seconds(self) -> float:
        """About how long everything would take if nothing went wrong: the time in which things go wrong."""
        steps = self.epochs * min(self.steps, sum(self.counts) // (self.batch_size * self.world_size))
        parts = self.trainers * steps * -(-self.batch_size // PART_SAMPLES)
        return max(parts * self.part_seconds / sum(self.workers), steps * self.pace, 1.0)


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    random = Random(seed)
    servers = random.choices((1, 2, 3, 4), (3, 4, 3, 2))[0]
    trainers = random.choices((1, 2), (3, 2))[0]
    counts = random.choice(COUNTS)
    samples = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    broken = random.sample(samples, random.choice((0, 0, 0, 1, 2, 5)))
    poisonous = random.randint(0, len(broken))
    hopeless = random.random() > OPTIMISTIC
    scenario = Scenario(
        seed=seed,
        counts=counts,
        batch_size=random.choice(BATCH_SIZES),
        plan_seed=random.randrange(PLAN_SEEDS),
        epochs=random.choice((1, 2, 4)),
        steps=random.choice((8, 16, 40)),
        on_error=random.choice(("skip", "skip", "skip", "skip", "raise")),
        bad=frozenset(broken[poisonous:]),
        poison=frozenset(broken[:poisonous]),
        trainers=trainers,
        alike=random.random() < 0.3,
        prefetch=random.choice((1, 2, 4, 8, 8)),
        timeout=random.choice((20.0, 20.0, 30.0, 60.0)),
        pace=random.choice((0.0, 0.1, 0.4)),
        servers=servers,
        workers=tuple(random.choice((1, 2, 3)) for _ in range(servers)),
        part_seconds=random.choice((0.05, 0.2, 0.5)),
        memory=random.choice((1, 2, 4, 40)),
        latency=random.choice((0.0002, 0.02, 0.2, 0.6)),
        outstanding=random.choice((2, 4, 256)),
        through_codec=random.random() < 0.15,
        hopeless=hopeless,
        faults=(),
    )
    return replace(scenario, faults=tuple(_faults(random, scenario)))


def _faults(random: Random, scenario: Scenario) -> list[Fault]:
    """Draw what happens, in the order in which it begins.

    Most worlds know a few kinds of faults only. Some bugs need several of one kind, or of two, and where everything may
    happen that hardly ever does (Groce et al.: "Swarm Testing", ISSTA 2012).
    """
    hero = random.randrange(scenario.servers)
    doom = random.uniform(0.0, scenario.seconds) if scenario.hopeless else inf
    kinds = random.sample(list(Kind), random.choice((1, 2, 3, 5, len(Kind))))
    faults = [_fault(random, scenario, random.choice(kinds), hero) for _ in range(random.choice((0, 4, 8, 12, 20)))]
    if random.random() < 0.4:
        faults += _storm(random, scenario, random.choice(kinds))
    if random.random() < 0.25:
        faults += _storm(random, scenario, Kind.DRAIN)  # what happens most: servers are updated
    if scenario.hopeless:
        faults = [_before(doom, fault) for fault in faults] + _doom(random, scenario, doom)
    return sorted(faults, key=lambda fault: fault.begin)


def _fault(random: Random, scenario: Scenario, kind: Kind, hero: int) -> Fault:
    """Draw something that happens to one of all there are. What is fatal to the hero has an end."""
    server = random.randrange(scenario.servers) if kind not in TRAINER else None
    trainer = random.randrange(scenario.trainers) if kind not in SERVER else None
    begin = random.uniform(0.0, scenario.seconds) * random.choice((0.0, 1.0, 1.0, 1.0))  # some from the start
    end = begin + _seconds(random)
    if random.random() < 0.4 and kind in FATAL and server != hero:
        end = inf
    return Fault(kind, begin, end, server, trainer, _strength(random, kind))


def _storm(random: Random, scenario: Scenario, kind: Kind) -> list[Fault]:
    """Draw what happens to all alike, at once or one after the other: a switch fails, a fleet is restarted."""
    begin, lasts, apart = random.uniform(0.0, scenario.seconds), _seconds(random), random.choice((0.0, 0.1, 2.0))
    strength = _strength(random, kind)
    count = scenario.trainers if kind in TRAINER else scenario.servers
    times = [(begin + number * apart, begin + number * apart + lasts) for number in range(count)]
    if kind in TRAINER:
        return [Fault(kind, *time, trainer=number) for number, time in enumerate(times)]
    return [Fault(kind, *time, server=number, strength=strength) for number, time in enumerate(times)]


def _doom(random: Random, scenario: Scenario, begin: float) -> list[Fault]:
    """Draw something fatal for every server, or for what connects everybody with it, for good."""
    kinds = [*FATAL[:-1], Kind.WEDGE]  # not LEAVE: if no name resolves any more, all keep what they had
    if random.random() < 0.5:
        kinds = [random.choice(kinds)]
    return [
        Fault(random.choice(kinds), begin + random.uniform(0.0, 1.0), inf, server) for server in range(scenario.servers)
    ]


def _before(doom: float, fault: Fault) -> Fault:
    """Move a fault to before the doom: the end of none may save anybody from that."""
    begin = min(fault.begin, doom)
    return replace(fault, begin=begin, end=min(fault.end, doom))


def _seconds(random: Random) -> float:
    """Draw how long something lasts: around the limits of the ledger and the broker, and far below."""
    return random.choice((0.05, 0.5, 1.5, 2.5, 4.0, 8.0, 14.0)) * random.uniform(0.7, 1.4)


def _strength(random: Random, kind: Kind) -> float:
    match kind:
        case Kind.DELAY:
            return random.choice((0.3, 1.0, 2.5))
        case Kind.THIN:
            return random.choice((0.2, 1.0, 2.5))
        case Kind.SLOW:
            return random.choice((3.0, 6.0))
        case Kind.DUPLICATE:
            return random.choice((0.1, 0.5))
        case Kind.CORRUPT:
            return random.choice((0.03, 0.2))
        case _:
            return 0.0
