"""A worker: reads, decodes and transforms samples, each straight into its row of a slot.

A process forked by the fork server. It serves one channel, one part of a batch at a time, and ends when the channel
closes. It decides nothing: what becomes of bad samples, dead workers and finished parts is the broker's business.

Conversation: the broker sends ``part``, ``probe`` and ``drop``; the worker answers ``done``, ``probed`` or ``unfit``.
What it is at stands in its watch.

A worker that runs out of memory or descriptors ends: earlier samples may have left it so, and the next worker, which
has all of them, should decide about this one.
"""

import errno
import math
import mmap
import os
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from feedmill_protocol import limits
from feedmill_protocol.errors import ShardError
from feedmill_protocol.hashing import sample_seeds
from feedmill_protocol.messages import shorten
from feedmill_protocol.tensors import FieldSpec, offsets

from .channel import Channel, ChannelClosed
from .phases import Phase
from .pipeline import Pipeline, dtype_name
from .stores import Store
from .watch import Watch

__all__ = ["Exhausted", "Mill", "reason_of", "work"]


class Exhausted(Exception):
    """This process has run out of ``memory``, or of something else."""

    def __init__(self, reason: str, *, memory: bool) -> None:
        super().__init__(reason)
        self.memory = memory


@dataclass(frozen=True, slots=True)
class Mill:
    """What a worker needs of a stream."""

    pipeline: Pipeline
    store: Store

    def sample(
        self, shard: int, index: int, seed: int, rows: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Return the value of every field of one sample; see `Pipeline.sample`."""
        return self.pipeline.sample(self.store.open(shard), index, seed, rows)

    def members(self, shard: int, index: int) -> dict[str, Any]:
        """Return what the pipeline wants of one sample; see `Pipeline.members`."""
        return self.pipeline.members(self.store.open(shard), index)

    def key(self, shard: int, index: int) -> str:
        """Return a sample's key."""
        return self.store.open(shard).index.key(index)


def work(channel: Channel, mills: Sequence[Mill], watch: Watch) -> None:
    """Serve a channel until it closes. Raises Exhausted."""
    torch.set_num_threads(1)  # the workers are the parallelism
    watch.beat()
    for mill in mills:
        mill.store.alive = watch.alive
    slots: dict[int, mmap.mmap] = {}
    try:
        while True:
            (kind, *message), fds = channel.receive()
            for fd in fds:
                slots[message[0]] = mmap.mmap(fd, 0)
                os.close(fd)
            if kind == "part":
                channel.send("done", *_part(watch, mills, slots, *message))
            elif kind == "probe":
                channel.send(*_probe(mills[message[0]], *message[1:]))
            elif kind == "drop":
                del slots[message[0]]  # unmapped with its last tensor, for which close() would not wait
    except ChannelClosed:
        return


def _part(
    watch: Watch,
    mills: Sequence[Mill],
    slots: dict[int, mmap.mmap],
    slot: int,
    stream: int,
    fields: list[list[Any]],
    rows: int,
    first: int,
    seed: int,
    epoch: int,
    samples: bytes,
) -> tuple[list[str], list[tuple[int, int, str, str]]]:
    """Fill the rows from ``first`` on of a batch of ``rows``; return all keys, and what was bad.

    ``samples`` is an int64 array of (shard, index). A bad sample is (row, shard, key, reason); a key of "" says that
    the whole shard is bad.
    """
    mill = mills[stream]
    mill.pipeline.lap = watch.lap
    specs = [FieldSpec(name, dtype, tuple(shape), channels_last) for name, dtype, shape, channels_last in fields]
    targets = _views(slots[slot], specs, rows)
    wanted = np.frombuffer(samples, np.int64).reshape(-1, 2)
    seeds = sample_seeds(seed, epoch, wanted[:, 0], wanted[:, 1])
    keys: list[str] = []
    bad = []
    for row, ((shard, index), sample_seed) in enumerate(zip(wanted.tolist(), seeds.tolist(), strict=True), first):
        key = ""
        watch.begin(row, key)
        try:
            key = mill.key(shard, index)
            watch.begin(row, key)
            places = [target[row] for target in targets]
            values = mill.sample(shard, index, sample_seed, places)
            for place, spec, value in zip(places, specs, values, strict=True):
                _require(spec, value)
                if value is not place:
                    place.copy_(value)
        except ShardError as error:
            _live_on(error.__cause__)
            bad.append((row, shard, "", error.reason))
        except Exception as error:  # noqa: BLE001 # the user's transforms may raise anything
            _live_on(error)
            bad.append((row, shard, key, reason_of(error)))
        keys.append(key)
        watch.lap(Phase.TRANSFORM)
        watch.beat()
    return keys, bad


def _probe(mill: Mill, shard: int, index: int) -> tuple[Any, ...]:
    """Run one sample to learn what the rows of a stream look like."""
    try:
        specs = mill.pipeline.specs(mill.sample(shard, index, 0))
    except Exception as error:  # noqa: BLE001
        _live_on(error)
        reason = error.reason if isinstance(error, ShardError) else reason_of(error)
        return "unfit", reason
    return "probed", [astuple(spec) for spec in specs]


def _views(slot: mmap.mmap, specs: Sequence[FieldSpec], rows: int) -> list[torch.Tensor]:
    """Return the tensors of a batch in a slot's memory."""
    starts, _ = offsets(spec.rows(rows) for spec in specs)
    return [_view(slot, start, spec, rows) for spec, start in zip(specs, starts, strict=True)]


def _view(slot: mmap.mmap, start: int, spec: FieldSpec, rows: int) -> torch.Tensor:
    dtype, shape = getattr(torch, spec.dtype), (rows, *spec.shape)
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(slot, dtype=dtype, count=count, offset=start)
    if spec.channels_last:
        channels, height, width = spec.shape
        return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def _require(spec: FieldSpec, value: torch.Tensor) -> None:
    if tuple(value.shape) != spec.shape or dtype_name(value) != spec.dtype:
        raise ValueError(
            f"field {spec.name!r} is {dtype_name(value)} {list(value.shape)}, but the stream's first sample had "
            f"{spec.dtype} {list(spec.shape)}; end its transforms with a fixed size and dtype"
        )


def _live_on(error: BaseException | None) -> None:
    """Raise Exhausted for an error that may be this process's rather than the sample's."""
    # torch's allocator has no exception of its own
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        raise Exhausted(reason_of(error), memory=True) from None
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        raise Exhausted(reason_of(error), memory=False) from None


def reason_of(error: Exception) -> str:
    """Say what went wrong, and in which line of the user's code if it did there."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    if theirs:
        text += f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})"
    return shorten(text, limits.REASON_BYTES)


_NOT_THEIRS: Final = (str(Path(__file__).parent), *sysconfig.get_paths().values(), "<")
"""Where files are that a user has not written: this package, the standard library, and what is installed."""
