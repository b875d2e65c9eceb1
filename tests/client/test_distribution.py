import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feedmill.distribution import BINS, Distribution, Histogram, Moments

NUMBERS = st.lists(st.floats(-1e12, 1e12), max_size=40)
ANYTHING = st.lists(st.floats(width=64), max_size=40)


def array(values: list[float]) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def moments(pieces: list[NDArray[np.float64]]) -> Moments:
    found = Moments()
    for piece in pieces:
        found.add(piece)
    return found


def histogram(pieces: list[list[float]], *, whole: bool = False) -> Histogram:
    found = Histogram(whole)
    for piece in pieces:
        found.add(array(piece))
    return found


@given(st.lists(NUMBERS, max_size=5))
def test_moments_are_numpys_however_the_numbers_are_cut(pieces: list[list[float]]) -> None:
    """Count, mean, standard deviation and extremes of the pieces are those of the whole."""
    found = moments([array(piece) for piece in pieces])
    whole = array([value for piece in pieces for value in piece])
    assert found.count == whole.size
    if whole.size:
        scale = max(1.0, float(np.abs(whole).max()))
        assert (found.low, found.high) == (whole.min(), whole.max())
        assert found.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-12 * scale)
        assert found.std == pytest.approx(whole.std(), rel=1e-9, abs=1e-7 * scale)


def test_a_large_mean_costs_few_digits() -> None:
    """Where E[x²] - E[x]² would have nothing left, the deviation is right to seven digits."""
    values = np.random.default_rng(0).normal(1e9, 1e-1, 100_000)
    found = moments(np.split(values, 50))
    assert found.std == pytest.approx(values.std(), rel=1e-7)
    assert math.isnan(Moments().std)


@given(st.lists(NUMBERS, max_size=5))
def test_every_number_is_in_its_bin(pieces: list[list[float]]) -> None:
    """Whatever range the pieces turn out to have, the counts are those of one pass over the whole with these edges."""
    found = histogram(pieces)
    whole = array([value for piece in pieces for value in piece])
    start, width, counts = found.bars()
    assert len(counts) <= BINS
    assert sum(counts) == whole.size
    bins = np.where(whole < 0, np.minimum(np.floor(whole / width), -1), np.floor(whole / width))  # -5e-324 / 2 is -0
    expected = np.bincount((bins - start / width).astype(int), minlength=len(counts))
    assert expected.tolist() == counts


@example([0.0], [1.0])
@example([63.0], [-5e-324])
@given(NUMBERS, NUMBERS)
def test_the_order_of_pieces_does_not_matter(first: list[float], second: list[float]) -> None:
    """Bins that were merged on the way are those that were wide from the beginning."""
    assert histogram([first, second]).bars() == histogram([second, first]).bars() == histogram([first + second]).bars()


def test_whole_numbers_have_bins_of_whole_numbers() -> None:
    """Ten labels make ten bars; as floats the bins are finer."""
    assert histogram([[0, 3, 3, 9]], whole=True).bars() == (0.0, 1.0, [1, 0, 0, 2, 0, 0, 0, 0, 0, 1])
    assert histogram([[0, 3, 3, 9]]).bars()[1] == 0.25


def test_no_number_has_no_bars() -> None:
    """An empty field is not an error."""
    assert histogram([[]]).bars() == (0.0, 1.0, [])
    assert histogram([[0.0, 0.0], [0.0]]).bars() == (0.0, 1.0, [3])


@given(st.lists(ANYTHING, max_size=4))
def test_nan_and_infinity_are_counted_apart(pieces: list[list[float]]) -> None:
    """They are in no moment and in no bin, and whatever the numbers are, nothing fails."""
    found = Distribution()
    for piece in pieces:
        found.add(array(piece))
    whole = array([value for piece in pieces for value in piece])
    assert found.count == whole.size
    assert found.nan == np.isnan(whole).sum()
    assert found.infinite == np.isinf(whole).sum()
    assert sum(found.histogram.bars()[2]) == found.moments.count == np.isfinite(whole).sum()
