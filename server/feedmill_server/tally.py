"""The tally: what a broker has done so far, for the log, the metrics and the page. Numbers only ever grow."""

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Self

__all__ = ["BadSample", "Tally"]

_RECENT: Final = 20
"""Bad samples that are told one by one; all are counted."""


class BadSample(NamedTuple):
    """A sample that could not be had; a ``key`` of "" blames the whole shard.

    ``skipped`` says that it was left out of a batch; otherwise the trainer was told, and its iteration ended.
    """

    stream: str
    shard: str
    key: str
    reason: str
    skipped: bool


@dataclass(slots=True)
class Tally:
    """Counts of one broker.

    ``parts`` and ``made`` are parts of batches and their samples that workers have reported; ``batches``, ``samples``
    and ``payload`` (in bytes) were sent, of which ``cache_hits`` batches had not to be made; ``failed`` requests were
    answered with an error of the data. ``skipped`` has samples left out of batches, by reason: "shard" for one that
    cannot be read, "worker" for a sample that its worker died of, "sample" for any other error.
    """

    parts: int = 0
    made: int = 0
    batches: int = 0
    samples: int = 0
    payload: int = 0
    cache_hits: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=lambda: Counter(shard=0, sample=0, worker=0))
    recent: deque[BadSample] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def tell(self, bad: BadSample) -> None:
        """Keep a bad sample among the recent ones. A shard that all samples of a batch want is told once."""
        if not self.recent or self.recent[-1] != bad:
            self.recent.append(bad)

    def copy(self) -> Self:
        """Return what will not change any more."""
        return replace(self, skipped=self.skipped.copy(), recent=self.recent.copy())
