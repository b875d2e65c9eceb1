"""How fast batches come, from whom: arrivals go in, rates over the last seconds come out.

The rule of this file: time is an argument. When nothing comes, rates fall.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

__all__ = ["Arrival", "Meter", "Rates", "Reading"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A batch of ``samples`` and ``nbytes`` that came from ``server`` at ``at``, awaited for ``waited`` seconds."""

    at: float
    server: str
    samples: int
    nbytes: int
    waited: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What came in a second; ``wait_p50`` and ``wait_p99`` are seconds that a batch was waited for, None of none."""

    batches_per_second: float
    samples_per_second: float
    bytes_per_second: float
    wait_p50: float | None
    wait_p99: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """The rates over the last ``seconds``, in all and by server; ``batches`` and ``samples`` count from the start."""

    seconds: float
    total: Rates
    servers: dict[str, Rates]
    batches: int
    samples: int


class Meter:
    """Arrivals of the last ``window`` seconds. The first batch only starts the clock: what it took was connecting.

    One thread may add while another reads.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._arrivals: deque[Arrival] = deque()
        self._begun: float | None = None
        self._servers: dict[str, None] = {}
        self._batches = 0
        self._samples = 0
        self._lock = threading.Lock()

    def add(self, arrival: Arrival) -> None:
        """Count a batch."""
        with self._lock:
            self._batches += 1
            self._samples += arrival.samples
            self._servers[arrival.server] = None
            if self._begun is None:
                self._begun = arrival.at
            else:
                self._arrivals.append(arrival)

    def read(self, now: float) -> Reading:
        """Return the rates over the last seconds; of a server that sent nothing in them, zeros."""
        with self._lock:
            while self._arrivals and self._arrivals[0].at <= now - self._window:
                self._arrivals.popleft()
            arrivals = [*self._arrivals]
            seconds = 0.0 if self._begun is None else min(self._window, now - self._begun)
            by_server: dict[str, list[Arrival]] = {server: [] for server in self._servers}
            batches, samples = self._batches, self._samples
        for arrival in arrivals:
            by_server[arrival.server].append(arrival)
        servers = {server: _rates(some, seconds) for server, some in by_server.items()}
        return Reading(seconds, _rates(arrivals, seconds), servers, batches, samples)


def _rates(arrivals: list[Arrival], seconds: float) -> Rates:
    if not arrivals:
        return Rates(0.0, 0.0, 0.0, None, None)
    seconds = max(seconds, 1e-9)  # a clock may be too coarse for one batch
    p50, p99 = (float(value) for value in np.percentile([arrival.waited for arrival in arrivals], (50, 99)))
    return Rates(
        len(arrivals) / seconds,
        sum(arrival.samples for arrival in arrivals) / seconds,
        sum(arrival.nbytes for arrival in arrivals) / seconds,
        p50,
        p99,
    )
