"""What batches are made of here: a row is one number, a pure function of its sample and of the seeds in its name.

Workers write rows into slots, the network reads them out when it delivers, and the oracle computes them again from the
plan. Memory that is given back or reused too early therefore shows as a wrong row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from feedmill_protocol import spans
from feedmill_protocol.plan import Plan
from feedmill_protocol.tensors import FieldSpec, offsets
from feedmill_server.broker import Stream

from .scenario import Sample, Scenario

__all__ = ["Block", "Name", "Pool", "Slot", "batch_bytes", "key", "name", "plan", "row", "stream"]

FIELDS: Final = (FieldSpec("x", "uint8", (3, 4, 4), channels_last=True), FieldSpec("n", "int64", ()))


class Block(NamedTuple):
    """The payload of a batch as it arrives: a number for each row, and the trailer of keys."""

    rows: tuple[int | None, ...]
    keys: bytes


class Name(NamedTuple):
    """The name of a batch: its samples, as they are and as they travel."""

    samples: tuple[Sample, ...]
    spans: int
    payload: bytes


def row(seed: int, epoch: int, shard: int, index: int) -> int:
    """Return what a sample becomes."""
    return hash((seed, epoch, shard, index))  # of integers, which is the same in every process


def key(shard: int, index: int) -> str:
    """Return the key of a sample."""
    return f"{shard}/{index}"


@lru_cache
def plan(counts: tuple[int, ...], batch_size: int, seed: int, rank: int, world_size: int) -> Plan:
    """Return the real plan of a rank. Plans are few, and cost more than anything else in a world: worlds share them."""
    return Plan(counts, batch_size=batch_size, seed=seed, window=3, rank=rank, world_size=world_size)


@lru_cache(maxsize=100_000)
def name(whose: Plan, epoch: int, step: int) -> Name:
    """Return the name of a batch of a plan."""
    found = whose.batch(epoch, step)
    samples = tuple((shard, index) for shard, index in spans.expand(found).tolist())
    return Name(samples, len(found), spans.pack(found))


@lru_cache
def stream(counts: tuple[int, ...], batch_size: int) -> Stream:
    """Return the stream that every server serves."""
    return Stream(
        number=0,
        name="train",
        fields=FIELDS,
        batch_size=batch_size,
        shards=tuple(f"{shard}.tar" for shard in range(len(counts))),
        counts=np.array(counts, np.uint32),
        catalog=f"catalog of {sum(counts)}",
        fingerprint="f00d",
    )


def batch_bytes(scenario: Scenario) -> int:
    """Return what the largest batch takes."""
    return offsets(spec.rows(scenario.batch_size) for spec in FIELDS)[1]


@dataclass(eq=False, slots=True)
class Slot:
    """Memory for a batch. It says when the last that pinned it lets go."""

    nbytes: int
    unpinned: Callable[[], None]
    pins: int = 0
    lent: bool = True
    rows: dict[int, int | None] = field(default_factory=dict)

    def write(self, first: int, rows: Sequence[int | None]) -> None:
        """Write what a worker has made; None is a row that could not be made."""
        if not self.lent:
            raise AssertionError("a worker writes into memory that was given back")
        self.rows.update(enumerate(rows, first))

    def read(self, rows: int) -> tuple[int | None, ...]:
        """Return the first rows, as they are now."""
        return tuple(map(self.rows.get, range(rows)))

    def checksum(self, nbytes: int, trailer: bytes) -> int:
        """Return what changes when a row or the trailer does."""
        return hash((tuple(map(self.rows.get, range(len(self.rows)))), trailer))

    def unpin(self) -> None:
        """Let go of what was pinned once."""
        self.pins -= 1
        if not self.pins:
            self.unpinned()

    def compact(self, fields: Sequence[FieldSpec], samples: int, missing: Sequence[int]) -> None:
        """Close the gaps that missing rows leave."""
        gone = frozenset(missing)
        self.rows = dict(enumerate(self.rows.get(number) for number in range(samples) if number not in gone))


class Pool:
    """The memory of a server. What is given back must be lent, and pinned by nobody."""

    def __init__(self, max_bytes: int, unpinned: Callable[[], None]) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.slots: list[Slot] = []
        self._unpinned = unpinned

    def take(self, nbytes: int) -> Slot | None:
        """Return fresh memory, or None where there is not enough."""
        if self.used + nbytes > self.max_bytes:
            return None
        slot = Slot(nbytes, self._unpinned)
        self.used += nbytes
        self.slots.append(slot)
        return slot

    def give(self, slot: Slot) -> None:
        """Take memory back."""
        if slot.pins or not slot.lent:
            raise AssertionError(f"memory is given back {'while it is being sent' if slot.pins else 'twice'}")
        slot.lent = False
        slot.rows.clear()  # whoever still reads it gets it wrong
        self.used -= slot.nbytes
        self.slots.remove(slot)
