"""feedmill.MultiWebLoader: the seed's way of saying it, processes of its own and all."""

from typing import Final

import torch
from torchvision import transforms

import feedmill
from benchmarks import contest

_EPOCHS: Final = 1000
"""More than any run uses."""


def main() -> None:
    """Run it."""
    given = contest.entry()
    torch.set_num_threads(1)
    preproc = transforms.Compose(
        [
            transforms.RandomResizedCrop(contest.SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(contest.MEAN, contest.STD),
        ]
    )
    with feedmill.MultiWebLoader(
        given.shards,
        epochs=_EPOCHS,
        fields="jpg cls",
        decode="PIL",
        transforms=[preproc, None],
        converters="torch",
        batch_size=given.batch,
        partial_batches=False,
        shuffle=300,  # as torch_pil
        processes=given.workers,
    ) as loader:
        contest.measure(loader, given)


if __name__ == "__main__":
    main()
