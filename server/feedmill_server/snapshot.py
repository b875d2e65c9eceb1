"""What can be seen of a server at one moment: plain values, for the metrics and the page.

The rule of this file: nothing changes once it is in a snapshot, so the thread that answers HTTP needs no lock.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .tally import Tally

__all__ = ["STAGES", "Point", "SeenClient", "SeenWorker", "Snapshot"]

STAGES: Final = ("read", "decode", "transform", "send")
"""The first three are a worker's phases; the last is for how long batches were on their way."""


class Point(NamedTuple):
    """How far a server was ``at`` a time: what was sent, samples that were made, and seconds in each of `STAGES`."""

    at: float
    batches: int = 0
    samples: int = 0
    payload: int = 0
    made: int = 0
    seconds: tuple[float, ...] = (0.0,) * len(STAGES)


class SeenWorker(NamedTuple):
    """A worker, and what it has in hand: nothing if ``stream`` is "", no sample if ``row`` is -1.

    ``stalled`` is for how many seconds it has been seen at this sample.
    """

    number: int
    stream: str = ""
    epoch: int = 0
    batch: int = 0
    row: int = -1
    key: str = ""
    stalled: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""
        return bool(self.stream)


class SeenClient(NamedTuple):
    """A client: its name on the socket and its address, requests unanswered, and bytes on their way to it."""

    name: str
    address: str
    requests: int
    unsent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A server ``at`` a time (of time.monotonic()); it was ``begun`` at another.

    ``state`` is "starting", "serving" or "draining". ``history`` has a point every few seconds of the last minutes, the
    oldest first, and ``last`` is the point of this moment. ``workforce`` is how many workers there should be.
    ``queued`` counts parts that wait for a worker. ``pictures`` says that there may be a picture of the newest batch.
    """

    at: float
    begun: float
    state: str
    last: Point
    history: tuple[Point, ...] = ()
    tally: Tally = field(default_factory=Tally)
    workforce: int = 0
    workers: tuple[SeenWorker, ...] = ()
    restarts: int = 0
    clients: tuple[SeenClient, ...] = ()
    queued: int = 0
    slots: int = 0
    memory: int = 0
    memory_limit: int = 0
    pictures: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken, and there is somebody to work on them."""
        return self.state == "serving" and bool(self.workers)
