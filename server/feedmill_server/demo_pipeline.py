"""The pipeline that the servers of ``feedmill demo`` run; start from it when you write your own.

``feedmill serve SHARDS… --pipeline demo_pipeline.py:TRAIN``
"""

from typing import Final

from torchvision import transforms

from feedmill_server import Pipeline

__all__ = ["MEAN", "SIDE", "STD", "TRAIN"]

SIDE: Final = 64
"""Pixels: enough to tell the patterns apart, and few enough to train on a laptop."""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""ImageNet's, as in every torchvision example."""

TRAIN = Pipeline(
    fields="jpg cls",
    decode="PIL",
    transforms=[
        transforms.Compose(
            [
                # At least a third of the picture: a smaller piece of some patterns looks like another.
                transforms.RandomResizedCrop(SIDE, scale=(0.35, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
        None,
    ],
    batch_size=32,
)
