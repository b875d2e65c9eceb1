import random

import numpy as np
import pytest
import torch

from feedmill_server.randomness import seed_generators

SEEDS = [0, 1, 2**32, 2**63, 2**64 - 1]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_seeds_give_equal_draws(seed: int) -> None:
    """Whatever was drawn before, from all three generators."""
    seed_generators(seed)
    first = draws()
    draws()
    seed_generators(seed)
    assert draws() == first


def test_other_seeds_give_other_draws() -> None:
    """Python sees all 64 bits, NumPy's and torch's generators the lower 32 of them."""
    drawn = []
    for seed in SEEDS:
        seed_generators(seed)
        drawn.append(draws())
    pythons, numpys, torches = (set(values) for values in zip(*drawn, strict=True))
    assert len(pythons) == len(SEEDS)
    assert len(numpys) == 3  # the lower halves are 0, 1, and all ones
    assert len(torches) >= 3


def test_the_generators_are_those_that_transforms_draw_from() -> None:
    """Not copies of them: the values are those of the libraries' own functions."""
    seed_generators(2**32 + 5)
    drawn = draws()
    random.seed(2**32 + 5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(2**32 + 5)
    assert draws() == drawn
