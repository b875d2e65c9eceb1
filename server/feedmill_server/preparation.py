"""Before the first client: load pipelines, index shards, start workers, and learn what they make of a sample.

Whatever cannot be served is found out here, and said in one error.
"""

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_protocol.tensors import FieldSpec, offsets

from .builds import Stream
from .catalog import Catalog
from .channel import ChannelClosed
from .config import ServerConfig, StreamConfig
from .descriptions import PipelineFacts, StoreFacts
from .folders import FolderStore
from .listing import expand
from .shards import OPEN_SHARDS, ShardStore
from .tree import Tree
from .workers import LOAD_TIMEOUT, Workers

__all__ = ["Served", "check_memory", "prepare"]

_PROBES: Final = 4
"""How many samples may fail before a pipeline is called unfit: the first one may be a bad one."""


class Served(NamedTuple):
    """A stream as it is served, and what it comes from."""

    stream: Stream
    source: str
    fusion: Sequence[str]
    extensions: dict[str, int]


def prepare(config: ServerConfig, workers: Workers, progress: Callable[[str, int, int], None]) -> list[Served]:
    """Start the workers of a server, and say what it serves. Raises what `feedmill_protocol.errors` has for it."""
    workers.start(time.monotonic())

    def indexed(stream: str, done: int, total: int) -> None:
        progress(stream, done, total)
        workers.check_loaded()  # a pipeline that does not load is known before a long index is done

    stores = {name: _store(config, stream, partial(indexed, name)) for name, stream in config.streams.items()}
    catalogs = [Catalog.build(store, partial(indexed, name)) for name, store in stores.items()]
    pipelines, versions = workers.wait_loaded(LOAD_TIMEOUT)
    for name, pipeline, catalog in zip(stores, pipelines, catalogs, strict=True):
        _check_fields(name, pipeline, catalog)
    open_shards = max(1, OPEN_SHARDS // len(stores))
    workers.open([_facts(config, store, open_shards) for store in stores.values()])
    numbers = workers.fill(time.monotonic())
    if not numbers:
        raise UsageError("no worker can be started; the reason is above")
    served = []
    for number, (name, catalog, pipeline) in enumerate(zip(stores, catalogs, pipelines, strict=True)):
        fields = _probe(workers, numbers[0], number, name, catalog)
        served.append(_describe(config.streams[name], number, name, fields, catalog, pipeline, versions))
    return served


def _describe(
    config: StreamConfig,
    number: int,
    name: str,
    fields: tuple[FieldSpec, ...],
    catalog: Catalog,
    pipeline: PipelineFacts,
    versions: str,
) -> Served:
    identity = repr((catalog.digest, pipeline.source, pipeline.fusion, fields, versions))
    stream = Stream(
        number=number,
        name=name,
        fields=fields,
        batch_size=config.batch_size or pipeline.batch_size,
        shards=catalog.names,
        counts=catalog.counts,
        catalog=catalog.digest,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:32],
    )
    return Served(stream, config.preset or config.pipeline, pipeline.fusion, catalog.extensions)


def _probe(workers: Workers, worker: int, number: int, name: str, catalog: Catalog) -> tuple[FieldSpec, ...]:
    """Have a worker make one of the first samples of a stream; return what its rows look like."""
    reasons = []
    for shard, index in _first_samples(catalog):
        channel, which = workers.channels[worker], f"sample {index} of {catalog.names[shard]}"
        try:
            channel.send("probe", number, shard, index)
            kind, *answer = _answer(workers, worker)
        except TimeoutError:
            workers.end_stuck(worker)
            how = f"took more than {workers.timeout:g} s (--sample-timeout) for {which}"
            raise PipelineError(f"stream {name}: the pipeline {how}{_last_words(workers, worker)}") from None
        except ChannelClosed:
            how = f"ended the worker process on {which}"
            raise PipelineError(f"stream {name}: the pipeline {how}{_last_words(workers, worker)}") from None
        if kind == "probed":
            return tuple(
                FieldSpec(field, dtype, tuple(shape), channels_last, tuple(scale), tuple(bias))
                for field, dtype, shape, channels_last, scale, bias in answer[0]
            )
        reasons.append(f"shard {catalog.names[shard]}, sample {index}: {answer[0]}")
    raise PipelineError(f"stream {name}: the pipeline fails on the first samples; {reasons[0]}")


def _answer(workers: Workers, worker: int) -> list[Any]:
    """Return what a worker says, as soon as it does. Raises TimeoutError if it shows no sign of life for so long."""
    beats = workers.beats(worker)
    while True:
        try:
            return workers.channels[worker].receive(workers.timeout)[0]
        except TimeoutError:
            before, beats = beats, workers.beats(worker)
            if before == beats:
                raise


def _last_words(workers: Workers, worker: int) -> str:
    words = workers.words(worker)
    return f": {words}" if words else ""


def _check_fields(stream: str, pipeline: PipelineFacts, catalog: Catalog) -> None:
    """Raise PipelineError for a field that no sample has."""
    for name, extensions in pipeline.fields:
        if not any(extension in catalog.extensions for extension in extensions):
            raise PipelineError(
                f"stream {stream}: no sample has the field {name!r}; the samples have {', '.join(catalog.extensions)}"
            )


def check_memory(stream: Stream, memory: int) -> None:
    """Raise UsageError if not even one batch of the stream fits."""
    _, batch = offsets(field.rows(stream.batch_size) for field in stream.fields)
    if batch > memory:
        raise UsageError(
            f"memory={memory}: a batch of stream {stream.name} takes {batch:,} bytes; "
            "give --memory several times that, or make batches smaller with --batch-size"
        )


def _first_samples(catalog: Catalog) -> list[tuple[int, int]]:
    """Return shard and index of the first few samples."""
    firsts = ((shard, index) for shard, count in enumerate(catalog.counts.tolist()) for index in range(count))
    return list(itertools.islice(firsts, _PROBES))


def _store(
    config: ServerConfig, stream: StreamConfig, progress: Callable[[int, int], None]
) -> ShardStore | FolderStore:
    if stream.dir:
        return FolderStore(Tree.scan(stream.dir, progress))
    cache = Path(config.cache) if config.cache else None
    return ShardStore(expand(stream.shards, repeated=stream.repeated), cache=cache, inflated_bytes=config.cache_bytes)


def _facts(config: ServerConfig, store: ShardStore | FolderStore, open_shards: int) -> StoreFacts:
    if isinstance(store, FolderStore):
        return StoreFacts((), (), "", 0, open_shards, store.tree.to_bytes())
    paths = [os.fsencode(path) for path in store.paths]
    return StoreFacts(paths, store.stamps, config.cache, config.cache_bytes, open_shards)
