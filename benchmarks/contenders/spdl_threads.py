"""SPDL: torchvision's operations in its pipeline of threads, which was faster here than its own FFmpeg decoder."""

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks import contest

_SHUFFLE: Final = 300

Sample = tuple[bytes, int]
Decoded = tuple[torch.Tensor, int]


class _Source:
    """The samples of shards, shuffled in a buffer."""

    def __init__(self, shards: Sequence[str]) -> None:
        self._shards = shards

    def __iter__(self) -> Iterator[Sample]:
        buffer: list[Sample] = []
        for sample in self._read():
            if len(buffer) < _SHUFFLE:
                buffer.append(sample)
                continue
            place = random.randrange(_SHUFFLE)
            yield buffer[place]
            buffer[place] = sample

    def _read(self) -> Iterator[Sample]:
        for shard in self._shards:
            jpeg = b""
            for name, data in spdl.io.iter_tarfile(Path(shard).read_bytes()):
                if name.endswith(".jpg"):
                    jpeg = bytes(data)
                elif name.endswith(".cls"):
                    yield jpeg, int(bytes(data))


def _decode(sample: Sample) -> Decoded:
    data, label = sample
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    crop = contest.draw_crop(pixels.shape[2], pixels.shape[1])
    pixels = functional.resized_crop(pixels, *crop, [contest.SIDE] * 2, antialias=True)
    return (functional.horizontal_flip(pixels) if random.random() < 0.5 else pixels), label


def _collate(batch: Sequence[Decoded], *, as_float: bool) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([image for image, _ in batch])
    return _normalise(images) if as_float else images, torch.tensor([label for _, label in batch])


def _normalise(images: torch.Tensor) -> torch.Tensor:
    mean, std = (255 * torch.tensor(numbers).view(3, 1, 1) for numbers in (contest.MEAN, contest.STD))
    return images.float().sub_(mean).div_(std)


def main() -> None:
    """Run it."""
    warnings.filterwarnings("ignore")  # torchvision's decoder is deprecated
    given = contest.entry()
    torch.set_num_threads(1)
    pipeline = (
        PipelineBuilder()
        .add_source(_Source(contest.epochs(given.shards)))
        .pipe(_decode, concurrency=given.workers)
        .aggregate(given.batch, drop_last=True)
        .pipe(partial(_collate, as_float=given.dtype == "float32"))
        .add_sink(2)
        .build(num_threads=given.workers + 1)
    )
    with pipeline.auto_stop():
        contest.measure(pipeline, given)
        os._exit(0)  # the source is far from its end


if __name__ == "__main__":
    main()
