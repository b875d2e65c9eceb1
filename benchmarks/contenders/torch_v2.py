"""torch DataLoader over webdataset: torchvision's own decoder and its second transforms on uint8 tensors.

Floats are made of whole batches, by the consumer: the best that torchvision's documentation leads to.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import webdataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks import contest

from .torch_pil import one_thread

_transform = v2.Compose([v2.RandomResizedCrop(contest.SIDE, antialias=True), v2.RandomHorizontalFlip()])


def _decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
    pixels = decode_jpeg(torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return _transform(pixels), int(sample["cls"])


def main() -> None:
    """Run it."""
    warnings.filterwarnings("ignore")  # the decoder is deprecated
    given = contest.entry()
    one_thread()
    dataset = (
        webdataset.WebDataset(contest.epochs(given.shards), shardshuffle=False, empty_check=False)
        .shuffle(300)
        .map(_decode)
        .batched(given.batch, partial=False)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=given.workers, worker_init_fn=one_thread)
    contest.measure(loader if given.dtype == "uint8" else _normalised(loader), given)


def _normalised(loader: Any) -> Iterator[tuple[Any, Any]]:
    mean, std = (255 * torch.tensor(numbers).view(3, 1, 1) for numbers in (contest.MEAN, contest.STD))
    for images, labels in loader:
        yield images.float().sub_(mean).div_(std), labels


if __name__ == "__main__":
    main()
