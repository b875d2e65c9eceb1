"""The loader: the samples of a stream, made in this process, in the order of a plan.

What a server's workers do for batches that are asked for, in a loop: the same reading, the same seeds, the same
pipeline. So for the same seed and epoch the values are those that servers send, to the bit.

The rule of this file: it runs in somebody's trainer, whose random generators it leaves as they were.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from feedmill_protocol import spans
from feedmill_protocol.errors import FeedmillError, SampleError, UsageError
from feedmill_protocol.hashing import Domain, hash64, sample_seeds
from feedmill_protocol.plan import Plan

from .fields import MissingField
from .pipeline import KEY, Pipeline
from .randomness import generators_kept, seed_generators
from .worker import Mill, reason_of

__all__ = ["Loader", "Made", "Raw", "Source", "of_iterable", "of_shards"]


class Raw(NamedTuple):
    """A sample before the pipeline: the shard it is from, its seed, and its members as `Pipeline.values` wants them."""

    shard: str
    seed: int
    members: Mapping[str, Any]


class Made(NamedTuple):
    """A sample behind the pipeline: its values, one for each field, or a dict of all there are."""

    shard: str
    key: str
    values: Any


Source: TypeAlias = Callable[[int], Iterator[Raw]]
"""The samples of an epoch, in order."""


def of_shards(mill: Mill, plan: Plan) -> Source:
    """Return the samples that a plan deals to its rank, read from a mill's shards.

    They raise ShardError where they cannot be read, SampleError where a field is missing.
    """

    def source(epoch: int) -> Iterator[Raw]:
        for step in range(len(plan)):
            samples = spans.expand(plan.batch(epoch, step))
            seeds = sample_seeds(plan.seed, epoch, samples[:, 0], samples[:, 1])
            for (shard, index), seed in zip(samples.tolist(), seeds.tolist(), strict=True):
                name = mill.store.names[shard]
                try:
                    members = mill.members(shard, index)
                except MissingField as error:
                    raise SampleError(name, mill.key(shard, index), reason_of(error)) from None
                yield Raw(name, seed, members)

    return source


def of_iterable(samples: Iterable[Mapping[str, Any]], *, seed: int, shuffle: int = 0) -> Source:
    """Return the samples of any iterable: dicts of members by extension, bytes or decoded already, with their key.

    They are shuffled in a buffer of ``shuffle``. Each epoch iterates anew; it raises UsageError if nothing comes.
    """

    def source(epoch: int) -> Iterator[Raw]:
        number = -1
        for number, sample in enumerate(_shuffled(samples, seed, epoch, shuffle)):
            yield Raw("source", int(sample_seeds(seed, epoch, 0, number)[0]), {KEY: str(number), **sample})
        if number < 0:
            raise UsageError(
                f"the source has no sample for epoch {epoch}; an iterator ends for good: give what can be iterated "
                "over again, like a list, or an object with __iter__"
            )

    return source


def _shuffled(samples: Iterable[Mapping[str, Any]], seed: int, epoch: int, size: int) -> Iterator[Mapping[str, Any]]:
    coming = iter(samples)
    buffer = list(islice(coming, size))
    for number, sample in enumerate(coming):
        if buffer:
            place = int(hash64(Domain.RUNS, seed, epoch, number)[0]) % size
            sample, buffer[place] = buffer[place], sample  # noqa: PLW2901 # one goes in, another comes out
        yield sample
    for place in hash64(Domain.SHARDS, seed, epoch, np.arange(len(buffer))).argsort():
        yield buffer[place]


class Loader:
    """Makes the samples of a source.

    The stages of ``pipeline`` see an epoch as one stream, of which they may leave samples out, or make more. With
    ``whole`` the values are all that the last stage has left in a sample, and no fields are taken.
    """

    def __init__(self, source: Source, pipeline: Pipeline, *, whole: bool = False) -> None:
        self._source = source
        self._pipeline = pipeline
        self._whole = whole

    def groups(self, epoch: int, sizes: Iterable[int]) -> Iterator[list[Made]]:
        """Yield the samples of an epoch, so many at a time, until there are no more. The last group may be smaller.

        Raises SampleError for one that cannot be made, ShardError for a shard that cannot be read.
        """
        samples = self._samples(epoch)
        for size in sizes:
            with generators_kept():
                group = list(islice(samples, size))
            if not group:
                return
            yield group

    def _samples(self, epoch: int) -> Iterator[Made]:
        pipeline = self._pipeline
        at = Raw("", 0, {})  # the sample in hand, which is to blame
        reading = True  # an error of the source itself is no sample's

        def seeded() -> Iterator[Mapping[str, Any]]:
            nonlocal at, reading
            for at in self._source(epoch):
                reading = False
                seed_generators(at.seed)
                yield at.members
                reading = True

        try:
            if not pipeline.stages:
                for members in seeded():
                    yield Made(at.shard, members[KEY], pipeline.values(members))
                return
            for sample in pipeline.through(map(pipeline.decoded, seeded())):
                values = sample if self._whole else pipeline.extract(sample)
                yield Made(at.shard, str(sample.get(KEY, "")), values)
        except FeedmillError:
            raise
        except Exception as error:
            if reading:
                raise
            raise SampleError(at.shard, at.members[KEY], reason_of(error)) from error
