"""The course of a feed through its epochs: what comes next, what was handed out, and where that can go on.

Arithmetic on a `Plan`; it asks nobody for anything. A position in an epoch is how many samples and batches of it all
ranks together have had, so it means the same to any number of ranks. Only a feed that hands batches out as they come,
or shares those of its rank with other feeds, has to remember more: which of its own batches it has handed out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from feedmill_protocol.plan import Plan

__all__ = ["Course", "Place", "Position"]


class Place(NamedTuple):
    """A batch: epoch, number in the epoch over all ranks, and where it lies in the epoch's sequence of samples."""

    epoch: int
    number: int
    begin: int
    end: int

    @property
    def key(self) -> tuple[int, int]:
        """What the batch is asked for as: epoch and number."""
        return self.epoch, self.number


@dataclass(frozen=True, slots=True)
class Position:
    """Where an epoch goes on: after so many ``batches`` of all ranks, with so many ``samples`` together.

    Counted from there, this feed has handed out the first ``done`` of its own batches already, and those numbered
    ``beyond``.
    """

    epoch: int
    batches: int = 0
    samples: int = 0
    done: int = 0
    beyond: tuple[int, ...] = ()


class Course:
    """The batches of one feed, epoch after epoch: every ``parts``-th of its rank's, from number ``part`` on.

    ``ordered`` says that every rank hands its batches out in the order of the plan.
    """

    def __init__(self, plan: Plan, *, ordered: bool, part: int = 0, parts: int = 1) -> None:
        self.plan = plan
        self.ordered = ordered
        self.part = part
        self.parts = parts
        self._next = Position(0)  # where the next iteration begins
        self._seek(self._next)
        self._under_way = False

    @property
    def epoch(self) -> int:
        """The epoch of the iteration that is under way, or else of the next one."""
        return self.position.epoch

    @property
    def remaining(self) -> int:
        """How many batches of that epoch are still to be handed out."""
        return self.of(self.position)

    @property
    def position(self) -> Position:
        """Where to go on: in the epoch that is under way, or else where the next iteration begins."""
        if not self._under_way:
            return self._next
        start, done, world = self._start, self._done, self.plan.world_size
        others_are_as_far = self.parts == 1 and (self.ordered or world == 1 or done in (0, len(self._rest)))
        if self._beyond or not others_are_as_far:
            return Position(start.epoch, start.batches, start.samples, done, tuple(sorted(self._beyond)))
        return Position(start.epoch, start.batches + done * world, self._rest.dealt(done))

    def of(self, position: Position) -> int:
        """Return how many batches are left to this feed in the epoch of a position. Raises UsageError, as Plan.rest."""
        return len(self._own(self.plan.rest(position.samples))) - position.done - len(position.beyond)

    def go_to(self, position: Position) -> None:
        """Have the next iteration begin there."""
        self._next = position
        self._under_way = False

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration be an epoch; where it would go on in that very epoch, it still does."""
        self.go_to(self._next if self._next.epoch == epoch else Position(epoch))

    def begin(self) -> None:
        """Begin the next iteration. The one after it is the next epoch."""
        self._seek(self._next)
        self._next = Position(self._start.epoch + 1)
        self._under_way = True

    def end(self) -> None:
        """End the iteration: the next one is what comes next."""
        self._under_way = False

    def ahead(self) -> Iterator[Place]:
        """Yield what is still to come of this epoch, in the order of the plan, and then the next epochs, without end.

        Ends only if this feed's share of an epoch is nothing at all.
        """
        yield from self._places(self._start, self._rest, self._done, frozenset(self._beyond))
        if self._own(self.plan):
            for epoch in count(self._start.epoch + 1):
                yield from self._places(Position(epoch), self.plan, 0, frozenset())

    def took(self, number: int) -> None:
        """Count a batch of this epoch as handed out."""
        step = (number - self._start.batches) // self.plan.world_size
        self._beyond.add(step // self.parts)
        while self._done in self._beyond:
            self._beyond.remove(self._done)
            self._done += 1
        self._under_way = True

    def _seek(self, start: Position) -> None:
        self._start = start
        self._rest = self.plan.rest(start.samples)
        self._done = start.done
        self._beyond = set(start.beyond)

    def _own(self, plan: Plan) -> range:
        """Return which steps of a plan are this feed's."""
        return range(self.part, len(plan), self.parts)

    def _places(self, start: Position, plan: Plan, done: int, beyond: frozenset[int]) -> Iterator[Place]:
        for ordinal, step in enumerate(self._own(plan)[done:], done):
            if ordinal not in beyond:
                number = start.batches + step * plan.world_size + plan.rank
                yield Place(start.epoch, number, *plan.bounds(step))
