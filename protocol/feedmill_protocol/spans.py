"""Spans: which samples make up a batch, as rows of ``(shard, start, stop)``.

A uint32 array of shape [n, 3]. Row order is sample order. On the wire a span is three little-endian 32-bit
integers, so that neither end spends time per sample.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from . import limits
from .errors import ProtocolError

__all__ = ["SPAN_BYTES", "Spans", "count", "expand", "pack", "unpack"]

Spans: TypeAlias = npt.NDArray[np.uint32]

SPAN_BYTES: Final = 12


def count(spans: Spans) -> int:
    """Return the number of samples that the spans hold."""
    return int((spans[:, 2].astype(np.int64) - spans[:, 1]).sum())


def expand(spans: Spans) -> npt.NDArray[np.int64]:
    """Return every sample as a row of ``(shard, index)``: int64 [count, 2]."""
    lengths = spans[:, 2].astype(np.int64) - spans[:, 1]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.stack(
        [np.repeat(spans[:, 0].astype(np.int64), lengths), np.repeat(spans[:, 1], lengths) + within], axis=1
    )


def pack(spans: Spans) -> bytes:
    """Return the wire form of spans."""
    return spans.astype("<u4", copy=False).tobytes()


def unpack(payload: bytes | memoryview, counts: npt.NDArray[np.uint32]) -> Spans:
    """Read spans from their wire form and check that every one lies in a shard of ``counts``.

    Raises ProtocolError for a span that is empty, that leaves its shard, or for too many samples.
    """
    if not len(payload) or len(payload) % SPAN_BYTES:
        raise ProtocolError(f"spans: {len(payload)} bytes are not a positive multiple of {SPAN_BYTES}")
    spans = np.frombuffer(payload, "<u4").reshape(-1, 3).astype(np.uint32, copy=False)
    shards, starts, stops = spans.T
    if int(shards.max()) >= len(counts):
        raise ProtocolError(f"spans: shard {int(shards.max())} of {len(counts)} does not exist")
    wrong = (starts >= stops) | (stops > counts[shards])
    if wrong.any():
        shard, start, stop = (int(x) for x in spans[wrong.argmax()])
        raise ProtocolError(
            f"spans: {start}..{stop} is no part of shard {shard}, which has {int(counts[shard])} samples"
        )
    if (samples := count(spans)) > limits.BATCH_SAMPLES:
        raise ProtocolError(f"spans: {samples} samples exceed the {limits.BATCH_SAMPLES} of a batch")
    return spans
