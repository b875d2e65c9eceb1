"""Randomness: every sample is augmented from its own seed, so that its pixels do not depend on who makes them.

Before a sample is decoded, the global generators that transforms draw from are seeded: Python's `random` and torch's
with the sample's 64-bit seed (`feedmill_protocol.hashing.sample_seeds`), of which torch's heeds the lower 32 bits,
NumPy's legacy one with those.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["generators_kept", "seed_generators"]


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generator with a sample's seed."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 # transforms draw from the legacy generator
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also wake the GPU libraries


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave these generators as they were: in a trainer, they are the trainer's own."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(torchs)
