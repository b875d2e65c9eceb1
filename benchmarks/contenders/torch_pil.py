"""torch DataLoader over webdataset: Pillow decodes, torchvision's first transforms, in worker processes."""

from collections.abc import Sequence
from typing import Any

import torch
import webdataset
from torchvision import transforms

from benchmarks import contest

_SHUFFLE = 300  # samples: webdataset's recipes have 100 to 1000


def transform(dtype: str) -> Any:
    """Return the pipeline of every torchvision example."""
    end = (
        [transforms.ToTensor(), transforms.Normalize(contest.MEAN, contest.STD)]
        if dtype == "float32"
        else [transforms.PILToTensor()]
    )
    return transforms.Compose([transforms.RandomResizedCrop(contest.SIDE), transforms.RandomHorizontalFlip(), *end])


def _itself(label: int) -> int:
    return label


def dataset(shards: Sequence[str], given: contest.Entry) -> Any:
    """Return an iterable dataset of batches."""
    return (
        webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        .shuffle(_SHUFFLE)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform(given.dtype), _itself)
        .batched(given.batch, partial=False)
    )


def one_thread(_worker: int = 0) -> None:
    """Keep torch to one thread: the workers are the parallelism."""
    torch.set_num_threads(1)


def main() -> None:
    """Run it."""
    given = contest.entry()
    one_thread()
    loader = torch.utils.data.DataLoader(
        dataset(contest.epochs(given.shards), given),
        batch_size=None,
        num_workers=given.workers,
        worker_init_fn=one_thread,
    )
    contest.measure(loader, given)


if __name__ == "__main__":
    main()
