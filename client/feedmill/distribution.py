"""The distribution of a stream of numbers: moments and a histogram, the same however the numbers are cut into pieces.

The rule of this file: nothing is kept but a few numbers, everything is counted in float64, and every finite number is
in the histogram.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BINS", "Distribution", "Histogram", "Moments"]

BINS: Final = 64
"""Bins of a histogram at most: as many as a terminal has room for."""

_MANTISSA: Final = 52
"""Bits of a float64: finer bins than that, near the largest number, would tell nothing apart."""


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations of the numbers so far; ``low`` and ``high`` are the extremes."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Add finite numbers.

        Pieces are merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances" (1979): no large sums are subtracted, so a large mean costs few digits. Mean and deviation of
        numbers beyond 1e150 or so are infinite or NaN.
        """
        if not values.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
        total = self.count + values.size
        apart = mean - self.mean
        self.squares += squares + apart * apart * self.count * values.size / total
        self.mean += apart * values.size / total
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def std(self) -> float:
        """Standard deviation of the numbers themselves (divided by n), NaN of none."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@dataclass(slots=True)
class Histogram:
    """Counts in bins whose width is a power of two, and whose edges are multiples of it.

    So bins can be merged in pairs when numbers come that lie further out, without a guess at the range. ``exponent`` is
    that of the width; there are at most `BINS`. Bins of ``whole`` numbers are never narrower than 1.
    """

    whole: bool = False
    exponent: int = -1074
    counts: Counter[int] = field(default_factory=Counter)
    """By the number of the bin: bin k is from k to k + 1, times the width."""
    _low: float = math.inf
    _high: float = -math.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Add finite numbers."""
        if not values.size:
            return
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._widen()
        bins, counts = np.unique(_bins(values, self.exponent), return_counts=True)
        self.counts.update({int(k): int(n) for k, n in zip(bins, counts, strict=True)})

    def bars(self) -> tuple[float, float, list[int]]:
        """Return the lower edge of the first bin, the width of all, and their counts, zeros included."""
        if not self.counts:
            return 0.0, 1.0, []
        if self._low == self._high == 0:  # bins of any width hold that
            return 0.0, 1.0, [self.counts[0]]
        first, last = min(self.counts), max(self.counts)
        width = 2.0**self.exponent
        start = max(first * width, -sys.float_info.max)  # the edge below the least float is infinite
        return start, width, [self.counts[k] for k in range(first, last + 1)]

    def _widen(self) -> None:
        """Choose the narrowest bins that hold everything so far, and bring what was counted into them."""
        largest = max(abs(self._low), abs(self._high))
        least = math.frexp(largest)[1] - _MANTISSA if largest else self.exponent
        exponent = max(self.exponent, least, 0 if self.whole else -1074)
        extremes = np.array([self._low, self._high])
        while np.ptp(_bins(extremes, exponent)) >= BINS:
            exponent += 1
        shift, self.exponent = exponent - self.exponent, exponent
        if shift:
            merged: Counter[int] = Counter()
            for k, n in self.counts.items():
                merged[k >> shift] += n
            self.counts = merged


def _bins(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """Return the bin of each number. One just below 0 is in the bin below it, though scaling may make it 0."""
    bins = np.floor(np.ldexp(values, -exponent))
    return np.where(values < 0, np.minimum(bins, -1), bins)


class Distribution:
    """What is known of the numbers so far: how many were NaN and infinite, and of the others everything else."""

    def __init__(self, *, whole: bool = False) -> None:
        self.moments = Moments()
        self.histogram = Histogram(whole)
        self.nan = 0
        self.infinite = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add numbers of any shape."""
        finite = values[np.isfinite(values)]
        nan = int(np.isnan(values).sum())
        self.nan += nan
        self.infinite += values.size - finite.size - nan
        self.moments.add(finite)
        self.histogram.add(finite)

    @property
    def count(self) -> int:
        """Numbers so far, of any kind."""
        return self.moments.count + self.nan + self.infinite
