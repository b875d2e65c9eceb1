"""One 64-bit hash, from which every random decision of feedmill is drawn.

Python's and NumPy's generators may change their streams between releases. The order of an epoch and the seed of a
sample must not, so they come from this hash: SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014, constants of variant 13), folded over a sequence of words.
"""

from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Domain", "hash64", "sample_seeds"]

Words: TypeAlias = int | npt.NDArray[np.integer]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_C1: Final = np.uint64(0xBF58476D1CE4E5B9)
_C2: Final = np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


class Domain(IntEnum):
    """What a hash decides. The first word of every hash, so that no two decisions share a stream."""

    SHARDS = 1
    RUNS = 2
    SAMPLE = 3
    PACKING = 4  # the order of pictures in shards that are made; not of the wire


def hash64(domain: Domain, *words: Words) -> npt.NDArray[np.uint64]:
    """Hash words, each an integer in 0..2^63-1 or an array of them, to a uint64 array of their broadcast shape.

    Integers alone give an array of one.

    ``h = 0; for each word: h = mix((h xor word) + 0x9E3779B97F4A7C15)``, all modulo 2^64.
    """
    h = np.zeros(1, np.uint64)
    for word in (int(domain), *words):
        z = (h ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
        z = (z ^ (z >> _30)) * _C1
        z = (z ^ (z >> _27)) * _C2
        h = z ^ (z >> _31)
    return h


def sample_seeds(seed: int, epoch: int, shards: Words, indices: Words) -> npt.NDArray[np.uint64]:
    """Return the 64-bit seed of each sample, from which its augmentation draws.

    ``shards`` are positions in the catalog, ``indices`` positions in the shard.
    """
    return hash64(Domain.SAMPLE, seed, epoch, shards, indices)
