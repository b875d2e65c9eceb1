import random
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedmill_protocol import spans
from feedmill_protocol.errors import SampleError, ShardError, UsageError
from feedmill_protocol.hashing import sample_seeds
from feedmill_protocol.plan import Plan
from feedmill_server import Pipeline
from feedmill_server.loader import Loader, of_iterable, of_shards
from feedmill_server.shards import ShardStore
from feedmill_server.worker import Mill
from shardmaker import write_tar

SAMPLES = 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ShardStore]:
    """Make two shards of ten numbers each."""
    paths = [
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{n}", {"cls": b"%d%d" % (shard, n)}) for n in range(SAMPLES)])
        for shard in (1, 2)
    ]
    with ShardStore(paths) as opened:
        yield opened


def draw(value: int) -> torch.Tensor:
    """Return the value and a number from each generator."""
    return torch.tensor([value, random.random(), np.random.rand(), torch.rand(())], dtype=torch.float64)  # noqa: NPY002


def planned(store: ShardStore, **options: Any) -> Plan:
    """Return a shuffled plan over the shards."""
    return Plan([SAMPLES] * len(store), batch_size=4, **options)


def test_samples_are_those_that_a_worker_makes_in_the_order_of_the_plan(store: ShardStore) -> None:
    """From the same seeds; groups are as large as they are said to be, and the last as large as it can be."""
    mill, plan = Mill(Pipeline("cls", transforms=[draw]), store), planned(store, seed=3)
    groups = list(Loader(of_shards(mill, plan), mill.pipeline).groups(1, repeat(6)))
    assert [len(group) for group in groups] == [6, 6, 6, 2]
    names = np.concatenate([spans.expand(plan.batch(1, step)) for step in range(len(plan))])
    seeds = sample_seeds(3, 1, names[:, 0], names[:, 1])
    for made, (shard, index), seed in zip(chain.from_iterable(groups), names.tolist(), seeds.tolist(), strict=True):
        assert (made.shard, made.key) == (store.names[shard], mill.key(shard, index))
        assert torch.equal(made.values[0], mill.sample(shard, index, seed)[0])


def test_a_rank_has_its_share(store: ShardStore) -> None:
    """All ranks together have every sample once."""
    mill = Mill(Pipeline("cls"), store)
    shares = [
        [
            made.values[0]
            for group in Loader(of_shards(mill, plan), mill.pipeline).groups(0, repeat(1))
            for made in group
        ]
        for plan in (planned(store, rank=rank, world_size=2) for rank in range(2))
    ]
    assert sorted(shares[0] + shares[1]) == [*range(10, 20), *range(20, 30)]


def test_generators_are_as_they_were_between_groups_and_after_an_error(store: ShardStore) -> None:
    """They are the trainer's."""

    def fail(value: int) -> torch.Tensor:
        return draw(value) if value != 23 else draw(value // 0)

    mill = Mill(Pipeline("cls", transforms=[fail]), store)
    groups = Loader(of_shards(mill, planned(store, shuffle=False)), mill.pipeline).groups(0, repeat(4))
    before = draw(0), random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    with pytest.raises(SampleError, match=r"^shard 2\.tar, sample 23: ZeroDivisionError"):
        list(groups)
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.random.get_state()[1].tolist() == before[3]  # type: ignore[index] # noqa: NPY002


def test_nothing_is_made_before_it_is_asked_for() -> None:
    """A source may be endless, and slow."""
    taken: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        while True:
            taken.append(len(taken))
            yield {"cls": len(taken)}

    groups = Loader(of_iterable(source(), seed=0), Pipeline("cls")).groups(0, repeat(3))
    assert taken == []
    assert [made.values for made in next(groups)] == [[1], [2], [3]]
    assert taken == [0, 1, 2]


def test_samples_of_an_iterable_have_seeds_of_their_own_in_every_epoch() -> None:
    """The same whenever they are made."""
    loader = Loader(of_iterable([{"cls": n} for n in range(5)], seed=1), Pipeline("cls", transforms=[draw]))

    def epoch(number: int) -> list[list[float]]:
        return [made.values[0].tolist() for group in loader.groups(number, repeat(2)) for made in group]

    assert epoch(0) == epoch(0) != epoch(1)
    assert len({tuple(values[1:]) for values in epoch(0)}) == 5


@pytest.mark.parametrize("samples", [[], iter([])])
def test_an_iterable_without_samples_is_an_error(samples: Any) -> None:
    """An epoch of nothing would go unnoticed."""
    with pytest.raises(UsageError, match=r"^the source has no sample for epoch 0; "):
        list(Loader(of_iterable(samples, seed=0, shuffle=3), Pipeline("cls")).groups(0, repeat(1)))


def test_a_missing_member_and_a_damaged_shard_are_named(store: ShardStore) -> None:
    """Before a pipeline runs."""
    mill = Mill(Pipeline("png"), store)
    loader = Loader(of_shards(mill, planned(store, shuffle=False)), mill.pipeline)
    with pytest.raises(SampleError, match=r"^shard 1\.tar, sample 10: MissingField: has no member png, only cls$"):
        next(loader.groups(0, [1]))
    store.open(0)
    store.paths[0].write_bytes(b"")
    with pytest.raises(ShardError, match=r"^shard 1\.tar: changed since it was indexed"):
        next(loader.groups(0, [1]))


def test_a_stage_that_fails_names_the_sample_in_hand() -> None:
    """The one that it took last."""

    def stage(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return ({"cls": 1 // (sample["cls"] - 2)} for sample in samples)

    pipeline = Pipeline("cls", pipeline=stage)
    with pytest.raises(SampleError, match=r"^shard source, sample 1: ZeroDivisionError"):
        next(Loader(of_iterable([{"cls": 1}, {"cls": 2}], seed=0), pipeline).groups(0, [2]))
