"""Loops without a service, to compare it with. Variants: one, all, decode.

"one" is the pipeline as a worker runs it, in one process that does nothing else; "all" is one such process for each
worker; "decode" decodes the regions alone, one process for each worker: what no service can be faster than.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torchvision.transforms import RandomResizedCrop

from benchmarks import contest
from feedmill_protocol import spans
from feedmill_protocol.hashing import sample_seeds
from feedmill_protocol.plan import Plan
from feedmill_server import imagenet, jpeg
from feedmill_server.randomness import seed_generators
from feedmill_server.shards import ShardStore
from feedmill_server.worker import Mill

_WARM_UP: Final = 300


class _Ran(NamedTuple):
    images: int
    seconds: float
    cpu: float


class Samples(NamedTuple):
    """Everything that a worker has."""

    mill: Mill
    backend: jpeg.Backend
    names: list[tuple[int, int, int]]
    """Shard, index and seed of each sample, in the order of epoch 0."""


def samples(shards: tuple[str, ...]) -> Samples:
    """Open shards as a worker does."""
    store = ShardStore([Path(shard) for shard in shards])
    plan = Plan([len(store.index(shard)) for shard in range(len(store))], batch_size=1)
    epoch = [spans.expand(plan.batch(0, step))[0] for step in range(len(plan))]
    pairs = [(int(shard), int(index)) for shard, index in epoch]
    seeds = sample_seeds(0, 0, *torch.tensor(pairs).numpy().T)
    backend = jpeg.choose()
    pipeline, _ = imagenet.train.fused(backend)
    names = [(shard, index, seed) for (shard, index), seed in zip(pairs, seeds.tolist(), strict=True)]
    return Samples(Mill(pipeline, store), backend, names)


def regions(given: Samples) -> Iterator[tuple[bytes, jpeg.Region]]:
    """Yield every sample's JPEG and the region that the pipeline takes of it."""
    crop = RandomResizedCrop(contest.SIDE)
    for shard, index, seed in given.names:
        opened = given.mill.store.open(shard)
        data = opened.read(*opened.index.members(index)["jpg"])
        width, height = given.backend.size(data)
        seed_generators(seed)
        canvas = torch.zeros((1, 1, 1), dtype=torch.uint8).expand(1, height, width)
        yield data, jpeg.Region(*crop.get_params(canvas, list(crop.scale), list(crop.ratio)))


def _pipeline(given: contest.Entry) -> Callable[[int], object]:
    """Return what makes the n-th image, in its row of a batch."""
    mill, _, names = samples(given.shards)
    side = contest.SIDE
    batch = torch.empty((given.batch, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    label = torch.empty((), dtype=torch.int64)

    def make(number: int) -> None:
        row = batch[number % given.batch]
        picture, _label = mill.sample(*names[number % len(names)], [row, label])
        if picture is not row:
            row.copy_(picture)

    return make


def _decoding(given: contest.Entry) -> Callable[[int], object]:
    opened = samples(given.shards)
    wanted = list(regions(opened))
    return lambda number: opened.backend.decode(*wanted[number % len(wanted)])


def _run(prepare: Callable[[contest.Entry], Callable[[int], object]], given: contest.Entry) -> _Ran:
    torch.set_num_threads(1)
    make = prepare(given)
    for number in range(_WARM_UP):
        make(number)
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(given.images):
        make(number)
    return _Ran(given.images, time.perf_counter() - started, time.process_time() - cpu)


def main() -> None:
    """Run it."""
    given = contest.entry()
    prepare = _decoding if given.variant == "decode" else _pipeline
    if given.variant == "one":
        ran = [_run(prepare, given)]
    else:
        with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
            ran = pool.starmap(_run, [(prepare, given)] * given.workers, chunksize=1)
    contest.say(
        img_s=sum(one.images / one.seconds for one in ran),
        cpu_s_per_1k=1000 * sum(one.cpu for one in ran) / sum(one.images for one in ran),
    )


if __name__ == "__main__":
    main()
