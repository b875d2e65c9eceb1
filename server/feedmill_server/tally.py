"""The tally: what a broker has done so far, for the log, the metrics and the page. Its counts never go down."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Self

__all__ = ["BadSample", "Tally"]

_RECENT: Final = 20
"""Bad samples that are told one by one; all are counted."""


class BadSample(NamedTuple):
    """A sample that could not be had; a ``key`` of "" blames the whole shard.

    It was ``skipped``, left out of a batch, so many times, and ``failed``, with its trainer told, so many. ``reason``
    is the last one.
    """

    stream: str
    shard: str
    key: str
    reason: str
    skipped: int = 0
    failed: int = 0


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
    recent: dict[tuple[str, str, str], BadSample] = field(default_factory=dict)  # the latest last

    def tell(self, stream: str, shard: str, key: str, reason: str, *, skipped: bool) -> None:
        """Keep a bad sample among the recent ones."""
        place = stream, shard, key
        known = self.recent.pop(place, BadSample(*place, reason))
        self.recent[place] = known._replace(
            reason=reason, skipped=known.skipped + skipped, failed=known.failed + (not skipped)
        )
        if len(self.recent) > _RECENT:
            del self.recent[next(iter(self.recent))]

    def copy(self) -> Self:
        """Return what will not change any more."""
        return replace(self, skipped=self.skipped.copy(), recent=self.recent.copy())
