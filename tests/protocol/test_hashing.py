"""The hash that every random decision is drawn from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.hashing import Domain, hash64, sample_seeds

unhurried = settings(deadline=None)

WORDS = st.integers(0, limits.INT63)
MASK = 2**64 - 1
GOLDEN_SHARDS = [0xE28195DDD9EE4956, 0x3FA25E1657E024C1, 0x90C24400C9510BF2]
GOLDEN_SEEDS = [0xDE233348DCADBF14, 0x4E21D653204EA6D3, 0x411657B7ADCC6B55]


def reference(*words: int) -> int:
    """Hash as the docstring and docs/wire.md say, on Python's own integers."""
    h = 0
    for word in words:
        z = ((h ^ word) + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        h = z ^ (z >> 31)
    return h


@unhurried
@given(st.sampled_from(Domain), st.lists(WORDS, max_size=6))
def test_the_hash_is_what_the_specification_says(domain: Domain, words: list[int]) -> None:
    """NumPy's wrapping integers and Python's unbounded ones give the same 64 bits."""
    assert hash64(domain, *words).tolist() == [reference(domain, *words)]


@unhurried
@given(st.sampled_from(Domain), WORDS, st.lists(WORDS, min_size=1, max_size=20), WORDS)
def test_an_array_of_words_hashes_as_each_of_them(domain: Domain, before: int, words: list[int], after: int) -> None:
    """Broadcasting changes nothing but the speed."""
    hashed = hash64(domain, before, np.array(words), after)
    assert hashed.tolist() == [reference(domain, before, word, after) for word in words]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_the_dtype_of_the_words_does_not_matter(dtype: type[np.integer]) -> None:
    """The value is hashed, not how it happens to be stored."""
    words = np.arange(100, dtype=dtype)
    assert hash64(Domain.RUNS, words).tolist() == [reference(2, i) for i in range(100)]


def test_no_words_in_an_array_give_no_hashes() -> None:
    """An empty window has nothing to shuffle."""
    assert hash64(Domain.RUNS, 1, np.zeros(0, np.uint32)).shape == (0,)


def test_arrays_broadcast() -> None:
    """A column and a row give a table."""
    table = hash64(Domain.SAMPLE, np.arange(3)[:, None], np.arange(4))
    assert table.tolist() == [[reference(3, i, j) for j in range(4)] for i in range(3)]


def test_splitmix64_is_the_published_one() -> None:
    """From state 0, the generator's first output is the one that its authors' code prints."""
    assert reference(0) == 0xE220A8397B1DCDAF


def test_the_hash_never_changes() -> None:
    """These values are part of the wire format: another release must not shuffle or augment differently."""
    assert hash64(Domain.SHARDS, 0, 0, np.arange(3)).tolist() == GOLDEN_SHARDS
    assert sample_seeds(42, 7, 3, np.arange(3)).tolist() == GOLDEN_SEEDS


def test_a_samples_seed_depends_on_everything_that_names_it() -> None:
    """Seed, epoch, shard and index each change it, and the domains do not meet."""
    seeds = {
        int(hash64(domain, *words)[0])
        for domain in Domain
        for words in [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (2, 1, 3, 4)]
    }
    assert len(seeds) == 6 * len(Domain)
    assert sample_seeds(1, 2, 3, 4).tolist() == [reference(3, 1, 2, 3, 4)]


def test_the_seeds_of_an_epoch_look_random() -> None:
    """Of 100,000 consecutive samples no two share a seed, and every bit is set in half of them."""
    seeds = sample_seeds(0, 0, np.arange(100)[:, None], np.arange(1000)).ravel()
    assert len(np.unique(seeds)) == 100_000
    set_bits = [int(((seeds >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert all(abs(n - 50_000) < 800 for n in set_bits)  # five standard deviations of 158
