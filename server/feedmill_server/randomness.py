"""Randomness: every sample is augmented from its own seed, so that its pixels do not depend on who makes them.

Before a sample is decoded, the global generators that transforms draw from are seeded: Python's `random` and torch's
with the sample's 64-bit seed (`feedmill_protocol.hashing.sample_seeds`), of which torch's heeds the lower 32 bits,
NumPy's legacy one with those.
"""

import random

import numpy as np
import torch

__all__ = ["seed_generators"]


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generator with a sample's seed."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 # transforms draw from the legacy generator
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also wake the GPU libraries
