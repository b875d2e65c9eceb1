"""The pipelines that the servers under test load, as a user would write them."""

import os
import random
import time

import numpy as np
import torch
from torchvision import transforms

from feedmill_server import Pipeline

BAD = 13
"""The sample that the pipelines below cannot bear."""


def _draws(value: int) -> torch.Tensor:
    """Return the value, and numbers from all three generators."""
    drawn = np.random.rand(100)  # noqa: NPY002 # what transforms draw from
    return torch.cat([torch.tensor([value, random.random()]), torch.from_numpy(drawn), torch.rand(100)]).double()


def _slow(value: int) -> torch.Tensor:
    time.sleep(0.015)
    return _draws(value)


def _very_slow(value: int) -> torch.Tensor:
    time.sleep(1)
    return _draws(value)


def _raises(value: int) -> torch.Tensor:
    if value == BAD:
        raise ValueError("thirteen brings bad luck")
    return _draws(value)


def _kills(value: int) -> torch.Tensor:
    if value == BAD:
        os._exit(7)
    return _draws(value)


def _varies(value: int) -> torch.Tensor:
    return torch.zeros(3 if value == BAD else 2)


DRAWS = Pipeline("cls", transforms=[_draws], batch_size=8)
SLOW = Pipeline("cls", transforms=[_slow], batch_size=8)
VERY_SLOW = Pipeline("cls", transforms=[_very_slow], batch_size=8)
RAISES = Pipeline("cls", transforms=[_raises], batch_size=8)
KILLS = Pipeline("cls", transforms=[_kills], batch_size=8)
VARIES = Pipeline("cls", transforms=[_varies], batch_size=8)

PNG = Pipeline(
    "png cls",
    decode="rgb8",
    transforms=[
        transforms.Compose([transforms.ToPILImage(), transforms.Resize((32, 32)), transforms.ToTensor()]),
        None,
    ],
    batch_size=20,
)

NOT_A_PIPELINE = "just a string"
