"""What undisturbed servers would send, computed here: by the plan's arithmetic and the pipeline, without any server.

The samples of these tests are numbered through all shards; a sample's content and its key are its number.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from faults.digests import Note, digest
from feedmill_protocol import spans
from feedmill_protocol.hashing import sample_seeds
from feedmill_protocol.plan import Plan
from feedmill_server.randomness import seed_generators
from shardmaker import write_tar

__all__ = ["Transform", "assert_undisturbed", "expected", "write_shards"]

Transform = Callable[[int], torch.Tensor]


def write_shards(folder: Path, shards: int, samples: int) -> list[Path]:
    """Write shards of so many samples each."""
    return [
        write_tar(
            folder / f"numbers-{shard:03d}.tar",
            [(f"{n:06d}", {"cls": b"%d" % n}) for n in range(shard * samples, (shard + 1) * samples)],
        )
        for shard in range(shards)
    ]


def expected(plan: Plan, transform: Transform, epoch: int, step: int) -> Note:
    """Return what there is to note of a batch."""
    samples = spans.expand(plan.batch(epoch, step))
    seeds = sample_seeds(plan.seed, epoch, samples[:, 0], samples[:, 1])
    numbers = [int(plan.counts[:shard].sum()) + index for shard, index in samples.tolist()]
    rows = []
    for number, seed in zip(numbers, seeds.tolist(), strict=True):
        seed_generators(seed)
        rows.append(transform(number))
    keys = tuple(f"{number:06d}" for number in numbers)
    return Note(epoch, step * plan.world_size + plan.rank, keys, digest(keys, [torch.stack(rows)]))


def assert_undisturbed(found: Sequence[Note], plan: Plan, transform: Transform, first: int = 0) -> None:
    """Assert that notes are those of whole epochs from the first on: no batch lost, none twice, no bit wrong."""
    assert found, "there is something to compare"
    assert len(found) % len(plan) == 0, "epochs are whole"
    for number, batch in enumerate(found):
        epoch, step = divmod(number, len(plan))
        assert batch == expected(plan, transform, first + epoch, step)
