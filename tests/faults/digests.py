"""What is noted of a batch: which it is, whose samples it has, and a digest of every bit of it."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

import feedmill

__all__ = ["DIGEST_BYTES", "Note", "digest", "note"]

DIGEST_BYTES = 16


class Note(NamedTuple):
    """A batch, as far as two of them are compared."""

    epoch: int
    batch: int
    keys: tuple[str, ...]
    digest: bytes


def digest(keys: Sequence[str], tensors: Sequence[torch.Tensor]) -> bytes:
    """Return the digest of the keys, and of dtype, shape and bits of every tensor."""
    found = hashlib.blake2b("\0".join(keys).encode(), digest_size=DIGEST_BYTES)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().data)
    return found.digest()


def note(batch: feedmill.Batch) -> Note:
    """Note a batch that came."""
    return Note(batch.epoch, batch.index, tuple(batch.keys), digest(batch.keys, batch.tensors))
