"""``WebLoader``: webloader's loader, on feedmill.

It runs a pipeline in this process. The plan is that of a feed, and the code that makes a sample is the servers'; so for
the same seed it gives the same batches as a feed does.

``docs/from-webloader.md`` says what has changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice, repeat
from os import PathLike, fspath
from typing import Any, Final, Self, TypeAlias, TypedDict, cast

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import SampleError, UsageError
from feedmill_protocol.plan import Last, Plan, Shuffle
from feedmill_server import jpeg
from feedmill_server.catalog import Catalog
from feedmill_server.decode import Decode
from feedmill_server.listing import expand
from feedmill_server.loader import Loader, Made, of_iterable, of_shards
from feedmill_server.shards import ShardStore
from feedmill_server.worker import Mill

from .collation import Column
from .recipe import Batch, Functions, Recipe, Stages

__all__ = ["ENDLESS", "Options", "Samples", "Shards", "WebLoader"]

Samples: TypeAlias = Iterable[Mapping[str, Any]]
Shards: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]

ENDLESS: Final = 1_000_000_000
"""Batches: more than anybody will live to see."""

_SINGLES: Final = 32
"""How many samples are dealt out and sent together where they are handed out one by one."""


class Order(TypedDict):
    """What makes a plan, as both `Plan` and `feedmill.connect` call it."""

    batch_size: int
    seed: int
    shuffle: Shuffle
    window: int
    run: int
    rank: int
    world_size: int
    last: Last


class Options(TypedDict, total=False):
    """The arguments of `WebLoader` by name."""

    epochs: int
    fields: str | Sequence[str] | None
    batch_size: int | None
    tensor_batches: bool
    partial_batches: bool
    shuffle: int
    shardshuffle: bool | int | None
    transforms: Functions
    batch_transforms: Functions
    converters: Functions
    decode: Decode
    pipeline: Stages
    source: Samples | None
    subset: tuple[int, int] | None
    seed: int
    exact: bool


class WebLoader:
    """Samples of tar shards, in batches, made in this process.

    ``urls`` are shards (one, a list, with braces or globs), or like ``source`` any iterable of samples: dicts of
    members by extension, bytes or decoded already. ``batches`` is how many come at most (samples, where ``batch_size``
    is None) from ``epochs`` passes over the data. A batch is a list with an entry for each of ``fields``
    ("ppm;png;jpg cls"; ``__key__`` is the key); without them it is a dict of all members.

    ``decode`` makes objects of bytes ("PIL", "rgb8", "torchrgb", …, False, a callable, a dict by extension; True is
    "rgb": float32 arrays [H, W, 3] in 0..1). ``pipeline`` maps an iterator of decoded sample dicts to another.
    ``transforms`` change the fields of a sample, ``batch_transforms`` and then ``converters`` those of a batch: lists
    over the fields, which start over where they are shorter. Tensors, arrays and numbers of a batch are stacked, the
    first two only with ``tensor_batches``. ``partial_batches`` keeps the smaller batch that an epoch may end with.

    ``shardshuffle`` shuffles the shards, ``shuffle`` also the samples, of as many shards together as hold so many;
    ``seed`` decides about both, and about augmentation. ``subset=(part, parts)`` is every ``parts``-th batch from
    number ``part`` on. ``exact`` runs the usual image transforms as they are written.

    Each iteration goes on with the next epochs. Raises UsageError for arguments, ShardError and SampleError for data.
    """

    sampler = None
    """What takes a DataLoader may look for one."""

    def __init__(
        self,
        urls: Shards | Samples | None,
        batches: int = ENDLESS,
        epochs: int = 1,
        fields: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        tensor_batches: bool = True,
        partial_batches: bool = True,
        shuffle: int = 0,
        shardshuffle: bool | int | None = None,
        transforms: Functions = None,
        batch_transforms: Functions = None,
        converters: Functions = None,
        decode: Decode = True,
        pipeline: Stages = None,
        source: Samples | None = None,
        subset: tuple[int, int] | None = None,
        seed: int = 0,
        exact: bool = False,
    ) -> None:
        self.batches = integer("batches", batches, 0, limits.INT63)
        self.epochs = integer("epochs", epochs, 0, limits.INT63)
        self.batch_size = None if batch_size is None else integer("batch_size", batch_size, 1, limits.BATCH_SAMPLES)
        self._partial = partial_batches or batch_size is None
        self._part, self._parts = _part_of(subset)
        self._seed = integer("seed", seed, 0, limits.INT63)
        self._shuffle = integer("shuffle", shuffle, 0, limits.INT63)
        self._shardshuffle = self._shuffle > 0 if shardshuffle is None else bool(shardshuffle)
        self._recipe = Recipe(
            fields,
            decode=decode,
            pipeline=pipeline,
            transforms=transforms,
            batch_transforms=batch_transforms,
            converters=converters,
            exact=exact,
        )
        self._stack = tensor_batches
        self._epoch = 0  # with which the next iteration begins
        running, _ = self._recipe.pipeline().fused(jpeg.choose())
        self._columns = [
            Column(field.name, finishing, stack=tensor_batches)
            for field, finishing in zip(running.fields, running.finishing, strict=True)
        ]
        self._shards, self._samples = _data(urls, source)
        self._store = ShardStore(expand(self._shards, repeated=True) if self._samples is None else [])
        if self._samples is None:
            counts = Catalog.build(self._store).counts
            self._order = self._order_of(int(counts.sum()))
            self._plan = Plan(counts, **self._order)
            read = of_shards(Mill(running, self._store), self._plan)
        else:
            read = of_iterable(self._samples, seed=self._seed, shuffle=self._shuffle)
        self._loader = Loader(read, running, whole=self._recipe.fields is None)

    def __repr__(self) -> str:
        shards = f"{len(self._store):,} shard{'s' * (len(self._store) != 1)}"
        what = f"{self._plan.samples:,} samples of {shards}" if self._samples is None else "an iterable"
        return (
            f"<{type(self).__name__}: {len(self):,} {'samples' if self.batch_size is None else 'batches'} from {what}>"
        )

    def __len__(self) -> int:
        """Return how many batches an iteration has (samples, where there are no batches).

        Exact unless a ``pipeline`` leaves samples out or makes more. Of an iterable that does not know its length,
        ``batches`` is all that is known.
        """
        if self._samples is None:
            of_epoch = len(self._plan) if self.batch_size else sum(self._sizes_of_plan())
        elif isinstance(self._samples, Sized):
            whole, rest = divmod(len(self._samples), self.batch_size or 1)
            of_epoch = len(range(self._part, whole + (rest > 0 and self._partial), self._parts))
        else:
            return self.batches
        return min(self.batches, self.epochs * of_epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over batches, from the epochs behind those that the last iteration has begun."""
        left = self.batches
        for _ in range(self.epochs):
            epoch, self._epoch = self._epoch, self._epoch + 1
            for batch in islice(self._batches_of(epoch), left):
                left -= 1
                yield self._recipe.finish(batch)
            if not left:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and processes. May be called twice; iterating takes them up again."""
        self._store.close()

    def _batches_of(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, or its samples if there are no batches."""
        groups = self._loader.groups(epoch, self._sizes())
        if self._samples is not None:
            groups = islice(groups, self._part, None, self._parts)
        for group in groups:
            if self._partial or len(group) == self.batch_size:
                yield self._batch(group)

    def _batch(self, group: list[Made]) -> Batch:
        values = [made.values for made in group]
        if self._recipe.fields is None:
            return self._dictionary(group) if self.batch_size else self._single_dictionary(group[0])
        if self.batch_size is None:
            return [column.single(group[0], value) for column, value in zip(self._columns, values[0], strict=True)]
        of_fields = zip(*values, strict=True)
        return [column.batch(group, list(found)) for column, found in zip(self._columns, of_fields, strict=True)]

    def _single_dictionary(self, made: Made) -> dict[str, Any]:
        return {name: Column(name, stack=self._stack).single(made, value) for name, value in made.values.items()}

    def _dictionary(self, group: list[Made]) -> dict[str, Any]:
        first = group[0].values
        for made in group:
            if made.values.keys() != first.keys():
                reason = f"has {' '.join(made.values)}, but the batch begins with {' '.join(first)}; give fields="
                raise SampleError(made.shard, made.key, reason)
        return {
            name: Column(name, stack=self._stack).batch(group, [made.values[name] for made in group]) for name in first
        }

    def _sizes(self) -> Iterator[int]:
        """Return how many samples the groups have: for single samples 1, else as planned, as long as samples come."""
        if self.batch_size is None:
            return repeat(1)
        return chain(self._sizes_of_plan() if self._samples is None else (), repeat(self.batch_size))

    def _sizes_of_plan(self) -> Iterator[int]:
        return (end - begin for begin, end in map(self._plan.bounds, range(len(self._plan))))

    def _order_of(self, samples: int) -> Order:
        size, parts = self.batch_size or _SINGLES, self._parts
        if not self._partial and samples < size * parts:
            raise UsageError(
                f"partial_batches=False: {samples:,} samples are no full batch for each, of {size * parts:,}"
            )
        # What Plan would say in its own words.
        if self._partial and 0 < samples % (size * parts) < parts and (samples < size * parts or size == 1):
            raise UsageError(
                f"subset=({self._part}, {parts}): {samples:,} samples cannot be dealt to {parts} in equal numbers of "
                f"batches of at most {size}; have fewer parts, or another batch_size"
            )
        return {
            "batch_size": size,
            "seed": self._seed,
            "shuffle": "within" if self._shuffle and not self._shardshuffle else self._shardshuffle,
            "window": max(1, -(-self._shuffle * len(self._store) // samples)),
            # Shards alone are shuffled by keeping each of them together.
            "run": 1 if self._shuffle else limits.SHARD_SAMPLES,
            "rank": self._part,
            "world_size": parts,
            "last": "keep" if self._partial else "drop",
        }


def _data(urls: Shards | Samples | None, source: Samples | None) -> tuple[list[str], Samples | None]:
    """Return the shards that are meant, or the iterable."""
    if (urls is None) == (source is None):
        raise UsageError("give either urls or source=")
    if isinstance(urls, (str, PathLike)):
        return [fspath(urls)], None
    if isinstance(urls, Sequence) and all(isinstance(url, (str, PathLike)) for url in urls):
        return [fspath(url) for url in cast("Sequence[str]", urls)], None
    samples = cast("Samples", urls if source is None else source)
    if not isinstance(samples, Iterable):
        raise UsageError(f"{samples!r}: expected shards, or an iterable of samples")
    return [], samples


def _part_of(subset: tuple[int, int] | None) -> tuple[int, int]:
    if subset is None:
        return 0, 1
    if not isinstance(subset, Sequence) or len(subset) != 2:
        raise UsageError(f"subset={subset!r}: expected (part, parts)")
    parts = integer("subset, parts", subset[1], 1, limits.INT63)
    return integer("subset, part", subset[0], 0, parts - 1), parts
