"""What the servers under fire serve: cheap samples that draw from all three random generators."""

import random
import time

import numpy as np
import torch

from feedmill_server import Pipeline

WIDE_NUMBERS = 16 * 1024
"""64 KiB for each sample, so that a batch of 16 is cut anywhere by whatever harms its bytes."""


def tiny(value: int) -> torch.Tensor:
    """Return the value and a number from each generator: float64 [4]."""
    drawn = [random.random(), np.random.random(), torch.rand(()).item()]  # noqa: NPY002 # what transforms draw from
    return torch.tensor([value, *drawn], dtype=torch.float64)


def wide(value: int) -> torch.Tensor:
    """Return the value and many numbers: float32 [`WIDE_NUMBERS`]."""
    numbers = torch.rand(WIDE_NUMBERS)
    numbers[0] = value
    return numbers


def slow(value: int) -> torch.Tensor:
    """Return what `tiny` does, after a while that costs no CPU."""
    time.sleep(0.005)
    return tiny(value)


TINY = Pipeline("cls", transforms=[tiny], batch_size=4)
WIDE = Pipeline("cls", transforms=[wide], batch_size=16)
SLOW = Pipeline("cls", transforms=[slow], batch_size=4)
