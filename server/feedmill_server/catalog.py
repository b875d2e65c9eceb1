"""The catalog of a stream: its shards in order, and how many samples each has.

The rule of this file: servers that have the same shards have the same digest, whatever machine, folder or cache they
have them on; anything that would change a plan changes the digest.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from .stores import Store

__all__ = ["Catalog"]

DIGEST_DIGITS: Final = 32

THREADS: Final = 8
"""Scans that wait for storage at the same time."""

SUBMITTED: Final = 1024
"""Scans handed to the threads at a time: a million futures would take a gigabyte."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """The shards of a stream: ``names``, and ``counts`` of samples (uint32).

    ``digest`` stands for names, counts, sizes in bytes, and what lies where in each shard; ``extensions`` says how many
    samples have each extension.
    """

    names: tuple[str, ...]
    counts: NDArray[np.uint32]
    digest: str
    extensions: dict[str, int]

    @classmethod
    def build(cls, store: Store, progress: Callable[[int, int], None] | None = None) -> Self:
        """Index every shard of ``store``, calling ``progress(done, total)`` after each. Raises `ShardError`."""
        total = len(store)
        counts = np.zeros(total, np.uint32)
        extensions: Counter[str] = Counter()
        indexes = hashlib.sha256()

        def scan(i: int) -> tuple[int, dict[str, int], bytes]:
            index = store.index(i)
            return len(index), index.counts(), index.digest()

        with ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, total, SUBMITTED):
                block = range(first, min(first + SUBMITTED, total))
                for i, (samples, found, contents) in zip(block, pool.map(scan, block), strict=True):
                    counts[i] = samples
                    extensions.update(found)
                    indexes.update(contents)
                    if progress:
                        progress(i + 1, total)
        digest = hashlib.sha256(indexes.digest())
        for name, count, size in zip(store.names, counts, store.sizes, strict=True):
            digest.update(f"{name}\0{count}\0{size}\n".encode())
        return cls(store.names, counts, digest.hexdigest()[:DIGEST_DIGITS], dict(extensions))
