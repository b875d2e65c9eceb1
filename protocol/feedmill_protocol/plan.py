"""The plan: which samples make up which batch, by arithmetic alone.

An epoch is one long sequence of samples. Its shards are shuffled and cut into windows; a shard is cut into runs of
consecutive samples; inside a window the runs are shuffled. That order depends on the sample counts, seed, epoch,
`window` and `run`, and on nothing else; it is cut into batches, and the batches are dealt to the ranks in turn.
Any batch is found without those before it, at the cost of shuffling the window that it lies in.

What a round of batches takes depends only on how many samples are left. So what is left of an epoch can be dealt out
again at the end of any round, to as many ranks as there are then: that is all that resuming needs.
"""

import copy
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt

from . import limits
from .arguments import integer
from .errors import UsageError
from .hashing import Domain, hash64
from .spans import Spans

__all__ = ["Last", "Plan", "Shuffle"]

Last = Literal["keep", "drop", "pad"]
Shuffle = Literal[True, False, "within"]

_WINDOWS_KEPT: Final = 4  # a batch touches two windows at most unless windows are smaller than batches


@dataclass(frozen=True, slots=True)
class _Window:
    """The runs of a window in shuffled order; `ends[i]` is where run i ends, counted in samples."""

    shards: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def spans(self, begin: int, end: int) -> Spans:
        first = int(np.searchsorted(self.ends, begin, "right"))
        last = int(np.searchsorted(self.ends, end, "left"))
        shards = self.shards[first : last + 1]
        stops = np.diff(self.ends[first : last + 1], prepend=self.ends[first - 1] if first else 0)
        starts = self.starts[first : last + 1].copy()
        stops += starts
        stops[-1] -= self.ends[last] - end
        starts[0] += begin - (int(self.ends[first - 1]) if first else 0)
        return np.stack([shards, starts, stops], axis=1).astype(np.uint32)


class _Epoch:
    """The sequence of samples of one epoch."""

    def __init__(self, plan: "Plan", epoch: int) -> None:
        self._plan = plan
        self._epoch = epoch
        shards = np.arange(len(plan.counts), dtype=np.uint32)
        if plan.shuffle is True:
            shards = shards[np.argsort(hash64(Domain.SHARDS, plan.seed, epoch, shards), kind="stable")]
        self._shards = shards
        sizes = np.add.reduceat(plan.counts[shards], np.arange(0, len(shards), plan.window), dtype=np.int64)
        self._bounds = np.concatenate([[0], np.cumsum(sizes)])
        self._windows: dict[int, _Window] = {}

    def spans(self, begin: int, end: int) -> Spans:
        """Return samples begin..end of the sequence."""
        pieces = []
        number = int(np.searchsorted(self._bounds, begin, "right")) - 1
        while begin < end:
            base, limit = int(self._bounds[number]), int(self._bounds[number + 1])
            stop = min(end, limit)
            if begin < stop:
                pieces.append(self._window(number).spans(begin - base, stop - base))
            begin, number = stop, number + 1
        return _merge(np.concatenate(pieces))

    def _window(self, number: int) -> _Window:
        window = self._windows.pop(number, None) or self._shuffle(number)
        self._windows[number] = window  # the most recently used is last
        if len(self._windows) > _WINDOWS_KEPT:
            del self._windows[next(iter(self._windows))]
        return window

    def _shuffle(self, number: int) -> _Window:
        plan = self._plan
        shards = self._shards[number * plan.window : (number + 1) * plan.window]
        shards = shards[plan.counts[shards] > 0]
        counts = plan.counts[shards].astype(np.int64)
        if not plan.shuffle:
            return _Window(shards, np.zeros(len(shards), np.int64), np.cumsum(counts))
        runs = -(-counts // plan.run)
        owner = np.repeat(np.arange(len(shards)), runs)
        ordinal = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
        order = np.argsort(hash64(Domain.RUNS, plan.seed, self._epoch, shards[owner], ordinal), kind="stable")
        owner, starts = owner[order], ordinal[order] * plan.run
        lengths = np.minimum(plan.run, counts[owner] - starts)
        return _Window(shards[owner], starts, np.cumsum(lengths))


def _merge(spans: Spans) -> Spans:
    """Join neighbours that continue each other: one name for one batch."""
    joined = (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] == spans[:-1, 2])
    first = np.concatenate([[True], ~joined])
    merged: Spans = spans[first]
    merged[:, 2] = spans[np.concatenate([~joined, [True]]), 2]
    return merged


class Plan:
    """The batches of one rank.

    ``counts`` are the samples of each shard. ``window`` is how many shards are shuffled together, ``run`` how many
    consecutive samples stay together (1 shuffles a window fully; more makes longer reads). ``shuffle=False`` keeps
    the order of the catalog, ``"within"`` that of its shards: windows are shuffled, and come in order.

    A round is one batch for every rank. ``last`` says what happens to the samples that do not fill a round: "keep"
    deals them out evenly in smaller batches, so that every sample comes exactly once; "drop" leaves them out; "pad"
    fills up with the first samples of the sequence. Every rank has the same number of steps whatever it is.

    `rest` is the plan of an epoch that goes on from a `start`.

    Raises UsageError for arguments out of range, and where ``last`` cannot be kept.
    """

    def __init__(
        self,
        counts: npt.ArrayLike,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = True,
        window: int = 16,
        run: int = 1,
        rank: int = 0,
        world_size: int = 1,
        last: Last = "keep",
    ) -> None:
        if last not in ("keep", "drop", "pad"):
            raise UsageError(f"last={last!r}: expected 'keep', 'drop' or 'pad'")
        if type(shuffle) is not bool and shuffle != "within":  # 1 is True to some, and not to others
            raise UsageError(f"shuffle={shuffle!r}: expected True, False or 'within'")
        self.counts = _counts(counts)
        self.samples = int(self.counts.sum(dtype=np.int64))
        self.start = 0
        self.batch_size = integer("batch_size", batch_size, 1, limits.BATCH_SAMPLES)
        self.seed = integer("seed", seed, 0, limits.INT63)
        self.shuffle = shuffle
        self.window = min(integer("window", window, 1, limits.INT63), max(1, len(self.counts)))
        self.run = min(integer("run", run, 1, limits.INT63), limits.SHARD_SAMPLES)
        self.world_size = integer("world_size", world_size, 1, limits.INT63)
        self.rank = integer("rank", rank, 0, self.world_size - 1)
        self.last = last
        if not self.samples:
            raise UsageError("the stream has no samples")
        if shuffle:
            self._check_window()
        if not len(self):
            raise UsageError(f"last='drop': {self.samples} samples do not fill one batch of {batch_size} on every rank")
        self._even = self._even_steps()
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        """Return the number of steps, the same on every rank."""
        whole, rest = divmod(self.samples - self.start, self._round)
        return whole if self.last == "drop" else whole + bool(rest)

    def rest(self, start: int) -> Self:
        """Return the plan of what is left of an epoch when ``start`` samples were dealt out, to however many ranks.

        ``start`` is what `dealt` said at the end of a round. The samples that are left are dealt out by the same rules;
        steps count from 0 again, and there may be none. Raises UsageError where ``last`` cannot be kept.
        """
        plan = copy.copy(self)
        plan.start = integer("start", start, 0, self.samples)
        plan._even = plan._even_steps()  # noqa: SLF001 # a copy of this very class
        return plan

    def dealt(self, steps: int) -> int:
        """Return how many samples of the sequence all ranks together have had after so many steps."""
        return min(self._begin(integer("steps", steps, 0, len(self))), self.samples)

    def bounds(self, step: int) -> tuple[int, int]:
        """Return where this rank's batch of a step begins and ends in the sequence of samples.

        A "pad" batch may begin or end beyond the sequence, which starts over there.
        """
        if not 0 <= step < len(self):
            raise UsageError(f"step {step} is not in 0..{len(self) - 1}")
        begin = self._begin(step)
        samples = self._begin(step + 1) - begin
        return begin + samples * self.rank // self.world_size, begin + samples * (self.rank + 1) // self.world_size

    def batch(self, epoch: int, step: int) -> Spans:
        """Return the samples of this rank's batch."""
        return self.spans(epoch, *self.bounds(step))

    def spans(self, epoch: int, begin: int, end: int) -> Spans:
        """Return samples begin..end of an epoch's sequence, which starts over where it ends."""
        order = self._epoch(epoch)
        pieces = []
        while begin < end:
            start = begin % self.samples
            stop = min(start + end - begin, self.samples)
            pieces.append(order.spans(start, stop))
            begin += stop - start
        return pieces[0] if len(pieces) == 1 else _merge(np.concatenate(pieces))

    @property
    def _round(self) -> int:
        """The samples of a whole round."""
        return self.batch_size * self.world_size

    def _check_window(self) -> None:
        """Raise UsageError if a window may have more runs than can be shuffled."""
        runs = -(-self.counts.astype(np.int64) // self.run)
        most = int(np.partition(runs, -self.window)[-self.window :].sum())
        if most > limits.WINDOW_RUNS:
            raise UsageError(
                f"window={self.window}, run={self.run}: {most:,} runs might be shuffled together, more than "
                f"{limits.WINDOW_RUNS:,}; make window smaller, or run larger"
            )

    def _even_steps(self) -> int:
        """Return how many rounds are whole; the rest share what is left evenly.

        When a last round would have less than one sample for every rank, it shares with the round before it.
        """
        left = self.samples - self.start
        rest = left % self._round
        if self.last != "keep" or not rest:
            return len(self)
        if rest >= self.world_size:
            return len(self) - 1
        if len(self) < 2 or self.batch_size < 2:
            remedy = (
                "resume with another number of ranks, or go on to the next epoch with set_epoch"
                if self.start
                else "use last='pad' or 'drop', or other batch sizes"
            )
            raise UsageError(
                f"last='keep': {left} samples cannot be dealt to {self.world_size} ranks in equal numbers "
                f"of batches of 1 to {self.batch_size}; {remedy}"
            )
        return len(self) - 2

    def _begin(self, step: int) -> int:
        """Return where the round of a step begins in the sequence; that of the step after the last is its end."""
        base = self.start + self._round * min(step, self._even)
        if step <= self._even:
            return base
        return base + (self.samples - base) * (step - self._even) // (len(self) - self._even)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            integer("epoch", epoch, 0, limits.INT63)
            if len(self._epochs) > 1:  # the current and the next: prefetching crosses the border
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = _Epoch(self, epoch)
        return self._epochs[epoch]


def _counts(counts: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    given = np.asarray(counts)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise UsageError("counts: expected one integer for each shard")
    if given.size and not 0 <= int(given.min()) <= int(given.max()) <= limits.SHARD_SAMPLES:
        raise UsageError(f"counts: a shard has 0..{limits.SHARD_SAMPLES} samples, not {given.min()} or {given.max()}")
    return given.astype(np.uint32, copy=False)
