"""A shard for the loaders, and how their batches are compared."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from shardmaker import write_tar

Sample: TypeAlias = dict[str, Any]

COMPOSED = transforms.Compose(
    [
        transforms.RandomResizedCrop(32),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def picture(number: int) -> bytes:
    """Return a small PNG; no two of these have one size."""
    file = io.BytesIO()
    Image.new("RGB", (40 + number, 60), (number, 255 - number, number // 2)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, count: int) -> str:
    """Write a shard of samples that have a png, a cls, a txt and a json; return its path."""
    samples = [
        (f"{n:03d}", {"png": picture(n), "cls": b"%d" % n, "txt": b"number %d" % n, "json": b'{"half": %f}' % (n / 2)})
        for n in range(count)
    ]
    return str(write_tar(path, samples))


def labels(loader: Iterable[Any]) -> list[int]:
    """Return the classes of an iteration over batches that end with them."""
    return [label for batch in loader for label in batch[-1].tolist()]


def equal(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, type and dtype and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (np.ndarray, torch.Tensor)):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    return bool(one == other)
