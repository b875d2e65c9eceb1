"""What fuzzing found: how many cases ended how, how fast, and with how much memory."""

import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Bug", "Outcome", "fuzz"]


class Bug(AssertionError):
    """A case that ended as no case may."""


@dataclass
class Outcome:
    """The result of fuzzing one thing."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    grown_bytes: int = 0
    """How much the process's memory grew at its peak."""
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Cases a second."""
        return self.cases / self.seconds if self.seconds else 0.0


def fuzz(
    name: str, run: Callable[[random.Random], str | Counter[str]], cases: int, seed: int, first: int = 0
) -> Outcome:
    """Run until there were so many cases. A run draws what it needs, and returns how its case, or its cases, ended.

    Whatever it raises is a bug, told by seed and number of the run, which can be repeated with ``first``.
    """
    outcome = Outcome(name)
    before = _peak()
    begun = time.monotonic()
    number = first
    while outcome.cases < cases:
        try:
            ends = run(random.Random(f"{seed} {name} {number}"))
        except Exception as error:
            raise Bug(f"{name}: seed {seed}, run {number}: {type(error).__name__}: {error}") from error
        outcome.ends.update([ends] if isinstance(ends, str) else ends)
        outcome.cases = outcome.ends.total()
        number += 1
    outcome.seconds = time.monotonic() - begun
    outcome.grown_bytes = _peak() - before
    return outcome


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
