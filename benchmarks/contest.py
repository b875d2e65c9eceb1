"""What contenders share: their arguments, how they are measured, and what they print.

Runs in other interpreters than ours, too: nothing here needs more than NumPy.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .processes import adopt_orphans, cpu_seconds, descendants, pss_bytes

__all__ = ["MEAN", "SIDE", "STD", "Entry", "cycle", "draw_crop", "entry", "epochs", "measure", "say"]

SIDE: Final = 224
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

_WARM_UP: Final = 12
"""Batches before the clock starts: processes are up, queues are full."""

_EPOCHS: Final = 500
"""More than any run uses: a contender never runs dry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a contender is to do: ``images`` of ``shards`` in batches of ``batch``, as ``dtype``."""

    shards: tuple[str, ...]
    images: int
    workers: int
    batch: int
    dtype: str
    variant: str
    cache: str
    """A folder for what a contender makes of the shards before the clock starts."""


def entry(times: int = 1) -> Entry:
    """Read the command line of a contender, who makes so many times the images that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "uint8"), default="float32")
    parser.add_argument("--variant", default="")
    parser.add_argument("--cache", required=True)
    said = vars(parser.parse_args())
    adopt_orphans()
    return Entry(**said | {"shards": tuple(said["shards"]), "images": times * said["images"]})


def say(**figures: float) -> None:
    """Print what was measured."""
    print(json.dumps({"figures": figures}), flush=True)


def measure(batches: Iterable[Sequence[Any]], given: Entry, warm_up: int = _WARM_UP) -> None:
    """Consume batches of (images, labels), and print how fast they came and what that cost.

    Images must be [N, 3, 224, 224] or [N, 224, 224, 3] of the dtype asked for, labels int64. One value of each batch is
    read, as a trainer would read all.
    """
    stream = iter(batches)
    for _ in range(warm_up):
        _check(next(stream), given)
    before, started = cpu_seconds(descendants()), time.perf_counter()
    done = 0
    while done < given.images:
        images, _ = next(stream)
        float(images[0, 0, 0, 0])
        done += len(images)
    elapsed = time.perf_counter() - started
    tree = descendants()
    cpu = cpu_seconds(tree) - before
    say(img_s=done / elapsed, cpu_s_per_1k=1000 * cpu / done, cores=cpu / elapsed, pss_mb=pss_bytes(tree) / 2**20)


def _check(batch: Sequence[Any], given: Entry) -> None:
    images, labels = batch
    n = given.batch
    shape, dtypes = tuple(images.shape), tuple(str(part.dtype).rpartition(".")[2] for part in (images, labels))
    if shape not in {(n, 3, SIDE, SIDE), (n, SIDE, SIDE, 3)} or len(labels) != n:
        raise ValueError(f"a batch of {shape} with {len(labels)} labels")
    if dtypes != (given.dtype, "int64"):
        raise ValueError(f"a batch of {dtypes}, where {given.dtype} and int64 were asked for")


def epochs(shards: Iterable[str], seed: int = 0) -> list[str]:
    """Return the shards many times over, each time in another order: every image comes equally often."""
    shuffler = random.Random(seed)
    names = list(shards)
    return [name for _ in range(_EPOCHS) for name in shuffler.sample(names, len(names))]


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw top, left, height and width as torchvision's RandomResizedCrop does, without torch.

    For libraries that cut and resize but draw no such crop.
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = (3 / 4) ** random.uniform(-1, 1)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def cycle(batches: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Yield the batches of something that may be iterated over again and again, for ever."""
    while True:
        yield from batches
