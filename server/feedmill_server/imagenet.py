"""The presets ``imagenet-train`` and ``imagenet-eval``: the two pipelines that most people mean.

As torchvision's reference training writes them, for samples that have an image and a class number.
"""

from typing import Final

from torchvision import transforms

from .pipeline import Pipeline

__all__ = ["evaluate", "train"]

_FIELDS: Final = "ppm;png;jpg;jpeg cls"

# The statistics of ImageNet's pixels, as every torchvision recipe has them.
_normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

train = Pipeline(
    _FIELDS,
    decode="PIL",
    transforms=[
        transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                _normalize,
            ]
        ),
        None,
    ],
)

evaluate = Pipeline(
    _FIELDS,
    decode="PIL",
    transforms=[
        transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                _normalize,
            ]
        ),
        None,
    ],
)
