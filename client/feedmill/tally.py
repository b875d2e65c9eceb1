"""The tally: what a feed has done, and what follows from that."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from feedmill_protocol.ledger import State

from .connection import Arrived, Connection
from .verdict import Verdict, judge

__all__ = ["RECENT", "Stats", "Tally"]

RECENT: Final = 128
"""Batches that the verdict is about."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a feed has done since it was opened.

    ``waited`` seconds of ``elapsed`` (from the first request to the last batch) the trainer waited for a batch.
    ``asked_again`` counts requests that were repeated because a server was lost, silent or failed; ``hedged`` those
    that were sent to a second server because they were late; ``duplicates`` replies that were not needed any more;
    ``damaged`` messages whose checksum was wrong, at either end, and whose answer was asked for again. ``in_flight``
    batches are asked for and have not come; ``by_server`` counts those that came by where they came from. ``verdict``
    says whether the trainer is fed, and what would feed it, by the last `RECENT` batches: print it.
    """

    batches: int
    samples: int
    bytes: int
    skipped: int
    waited: float
    elapsed: float
    asked_again: int
    hedged: int
    duplicates: int
    damaged: int
    in_flight: int
    by_server: dict[str, int]
    verdict: Verdict


@dataclass(slots=True)
class Tally:
    """What is counted meanwhile: by the feed, which has one."""

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    skipped: int = 0
    waited: float = 0.0
    begun: float = 0.0
    last: float = 0.0
    by_server: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """When batches were taken, and how long all of them until then were waited for."""

    def took(self, arrived: Arrived, samples: int, begun: float, now: float) -> None:
        """Take note of a batch, for which the trainer waited since ``begun``."""
        message = arrived.message
        self.batches += 1
        self.samples += samples
        self.bytes += message.payload_bytes
        self.skipped += message.missing
        self.last = now
        self.waited += now - begun
        self.by_server[arrived.server] += 1
        self.recent.append((now, self.waited))

    def stats(self, connection: Connection) -> Stats:
        """Return all that is known."""
        ready = sum(state == State.READY.value for state in connection.servers().values())
        return Stats(
            self.batches,
            self.samples,
            self.bytes,
            self.skipped,
            self.waited,
            max(0.0, self.last - self.begun),
            **connection.counters(),
            in_flight=connection.in_flight(),
            by_server=dict(self.by_server),
            verdict=self._verdict(connection.working(), ready),
        )

    def _verdict(self, working: float | None, servers: int) -> Verdict:
        if not self.recent:
            return judge(0, 0, 0, working=working, servers=servers)
        (first, before), (last, waited) = self.recent[0], self.recent[-1]
        return judge(len(self.recent) - 1, last - first, waited - before, working=working, servers=servers)
