"""The verdict: whether the trainer is fed, and if not, what would feed it.

It compares three things that were measured: how long the trainer waited for batches, how long it took between them, and
which share of the servers' workers had work. Nothing here reads a clock.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Verdict", "judge"]

_LEAST: Final = 16
"""Batches from which on there is a verdict: before, queues fill."""

_WAITS: Final = 0.05
"""A trainer that waits for a smaller share of its time is fed."""

_WORKS: Final = 0.7
"""Servers of which such a share has work are what is waited for. Others wait for requests, which come when a batch has
arrived: then the way is what takes long, or too few batches are asked for."""

_IDLES: Final = 0.5
"""Servers of which less than this has work would feed twice such a trainer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What limits the rate, and how many ``more`` servers like the present ones would feed the trainer."""

    limit: Literal["unknown", "fed", "decode-bound", "network-bound", "trainer-bound"]
    more: int = 0

    def __str__(self) -> str:
        if self.limit == "decode-bound":
            servers = "1 more server" if self.more == 1 else f"{self.more:,} more servers"
            return f"decode-bound: {servers} would feed this trainer"
        return {
            "unknown": "unknown: ask again when more batches have come",
            "fed": "fed: the trainer hardly waits",
            "network-bound": "network-bound: the trainer waits, and the servers wait for requests; prefetch more, or "
            "see to the network",
            "trainer-bound": "trainer-bound: the servers could feed it twice",
        }[self.limit]


def judge(batches: int, elapsed: float, waited: float, *, working: float | None, servers: int) -> Verdict:
    """Return the verdict on the last ``batches``, which took ``elapsed`` seconds, of which the trainer ``waited`` some.

    ``working`` is the share of the workers of all ``servers`` that had work, from 0 to 1; None if nobody knows.
    """
    if batches < _LEAST or working is None or elapsed <= 0:
        return Verdict("unknown")
    if waited < _WAITS * elapsed:
        return Verdict("trainer-bound" if working < _IDLES else "fed")
    if working < _WORKS:
        return Verdict("network-bound")
    # A trainer that never waited would take elapsed - waited: so many times faster must the servers be.
    own = max(elapsed - waited, elapsed / 1000)
    return Verdict("decode-bound", max(1, math.ceil(servers * elapsed / own) - servers))
