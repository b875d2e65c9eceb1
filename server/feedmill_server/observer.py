"""The observer: looks at a server from its own thread now and then, and leaves a snapshot for others.

The rule of this file: whoever looks at the page or asks for metrics costs the serving nothing but this, whatever he
does. What is counted is counted anyway; a look takes some microseconds for each worker and client, twice a second.
"""

import time
from collections import deque
from typing import Final

from .broker import Broker
from .contact import Strip, copy, shows
from .sending import Sender
from .slots import Slot, SlotPool
from .snapshot import Point, SeenClient, SeenWorker, Snapshot
from .workers import Workers

__all__ = ["Observer"]

_EVERY: Final = 0.5
"""Seconds between two looks: half of what the page waits between two questions."""

_POINT_EVERY: Final = 2.0
_POINTS: Final = 151
"""Five minutes of history."""

_SOONEST: Final = 0.001
_LATEST: Final = 0.05
"""Seconds; see `Observer.patience`."""

_STRIP_EVERY: Final = 2.0
"""Seconds between two copies of pictures, however many ask for them: a copy takes a millisecond or two."""


class Observer:
    """Keeps the ``snapshot`` of a server up to date, and the ``strip`` of pictures of its newest batch if asked to.

    `want_strip` may be called, and both may be read, by any thread; the rest is for the server's own.
    """

    def __init__(self, workers: Workers, pool: SlotPool, sender: Sender) -> None:
        now = time.monotonic()
        self.snapshot = Snapshot(at=now, begun=now, state="starting", last=Point(now))
        self.strip: Strip | None = None
        self._workers, self._pool, self._sender = workers, pool, sender
        self._history: deque[Point] = deque(maxlen=_POINTS)
        self._addresses: dict[bytes, str] = {}
        self._strip_wanted = False
        self._strip_at = 0.0

    def want_strip(self) -> None:
        """Have pictures of the newest batch copied at the next look, unless those that there are have just been."""
        self._strip_wanted = True

    def came(self, client: bytes, address: str) -> None:
        """Take note of where a client is."""
        self._addresses[client] = address

    def patience(self, now: float) -> float:
        """Return in how many seconds to look whether the batches that are on their way have left.

        Soon after they were sent, and less and less often: how long they took is then known to a third or so.
        """
        return min(max((now - self._sender.since) / 2, _SOONEST), _LATEST)

    def tick(self, now: float, broker: Broker[Slot]) -> None:
        """Look, if it is time to."""
        if now - self.snapshot.at >= _EVERY or self.snapshot.state != _state(broker):
            self._look(now, broker)
            if self._strip_wanted and now - self._strip_at >= _STRIP_EVERY:
                self._strip_wanted = False
                if broker.newest is not None:
                    self._strip_at = now
                    self.strip = copy(broker.newest) or self.strip

    def _look(self, now: float, broker: Broker[Slot]) -> None:
        tally, demand = broker.tally, broker.demand()
        self._addresses = {client: self._addresses.get(client, "") for client, _, _ in demand}
        seconds = (*self._workers.seconds(), self._sender.seconds)
        last = Point(now, tally.batches, tally.samples, tally.payload, tally.made, seconds)
        if not self._history or now - self._history[-1].at >= _POINT_EVERY:
            self._history.append(last)
        self.snapshot = Snapshot(
            at=now,
            begun=self.snapshot.begun,
            state=_state(broker),
            last=last,
            history=tuple(self._history),
            tally=tally.copy(),
            workforce=self._workers.count,
            workers=tuple(self._worker(number, broker) for number in self._workers.channels),
            restarts=self._workers.restarts,
            clients=tuple(
                SeenClient(client.hex()[2:], self._addresses[client], requests, unsent)
                for client, requests, unsent in demand
            ),
            queued=broker.queued,
            slots=self._pool.slots,
            memory=self._pool.bytes,
            memory_limit=self._pool.max_bytes,
            pictures=broker.newest is not None and shows(broker.newest.stream.fields),
        )

    def _worker(self, number: int, broker: Broker[Slot]) -> SeenWorker:
        if (work := broker.at(number)) is None:
            return SeenWorker(number)
        get = work.build.get
        return SeenWorker(number, get.stream, get.epoch, get.batch, *self._workers.at(number))


def _state(broker: Broker[Slot]) -> str:
    return "draining" if broker.draining else "serving"
