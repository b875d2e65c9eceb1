"""The stages of an image: read, seed, decode (every back end), resize, the whole of a sample, finish."""

from itertools import islice
from typing import Final

import torch
from torchvision.transforms.v2 import functional

from benchmarks import contest
from benchmarks.contenders.loops import regions, samples
from feedmill.tensors import Tensors
from feedmill_protocol.errors import PipelineError
from feedmill_protocol.tensors import FieldSpec
from feedmill_server import jpeg
from feedmill_server.randomness import seed_generators
from feedmill_server.stores import Opened

from .timing import microseconds

_IMAGES: Final = 500


def main() -> None:
    """Run it."""
    given = contest.entry()
    torch.set_num_threads(1)
    opened = samples(given.shards)
    mill, _, every = opened
    names = every[:_IMAGES]
    wanted = list(islice(regions(opened), _IMAGES))
    found = {
        "read_us": microseconds(lambda s, i, _: _read(mill.store.open(s), i), names),
        "seed_us": microseconds(lambda _s, _i, seed: seed_generators(seed), names),
    }
    for name in jpeg.BACKENDS:
        try:
            backend = jpeg.choose(name)
        except PipelineError:
            continue
        found[f"size_{name}_us"] = microseconds(lambda data, _: backend.size(data), wanted)  # noqa: B023 # called here
        found[f"decode_{name}_us"] = microseconds(backend.decode, wanted)
    pieces = [(opened.backend.decode(*one).contiguous().permute(2, 0, 1),) for one in wanted]
    found["resize_us"] = microseconds(_resize, pieces)
    found["sample_us"] = microseconds(mill.sample, names)
    contest.say(**found, **_finishing(given))


def _read(shard: Opened, index: int) -> None:
    for place in shard.index.members(index).values():
        shard.read(*place)


def _resize(pixels: torch.Tensor) -> torch.Tensor:
    resized: torch.Tensor = functional.resize_image(pixels, [contest.SIDE] * 2, antialias=True)
    return resized


def _finishing(given: contest.Entry) -> dict[str, float]:
    """Return what the client spends on an image, once its memory has been used before."""
    scale, bias = tuple(1 / (255 * s) for s in contest.STD), tuple(-m / s for m, s in zip(contest.MEAN, contest.STD))  # noqa: B905
    field = FieldSpec("jpg", "uint8", (3, contest.SIDE, contest.SIDE), channels_last=True, scale=scale, bias=bias)
    tensors = Tensors(torch.device("cpu"), None)
    batch = torch.zeros((given.batch, contest.SIDE, contest.SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    cost = microseconds(lambda: tensors.finish([batch], [field]), [()] * 60)
    return {"finish_us": cost / given.batch}


if __name__ == "__main__":
    main()
