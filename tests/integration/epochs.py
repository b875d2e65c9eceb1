"""What the tests expect of epochs."""

from collections.abc import Callable

import torch

import feedmill

TIMEOUT = 30.0
"""Seconds in which a server that is well makes progress, however busy the machine."""

Reference = Callable[[str], list[feedmill.Batch]]


def assert_same(found: list[feedmill.Batch], expected: list[feedmill.Batch]) -> None:
    """Assert that batches are the same in every bit, in whatever order they came."""
    by_index = {batch.index: batch for batch in found}
    assert sorted(by_index) == [batch.index for batch in expected], "every batch once"
    assert len(found) == len(expected)
    for batch in expected:
        other = by_index[batch.index]
        assert other.keys == batch.keys
        assert other.epoch == batch.epoch
        for ours, theirs in zip(other.tensors, batch.tensors, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), f"batch {batch.index} differs"


def keys(batches: list[feedmill.Batch]) -> list[str]:
    """Return the keys of all samples, in the order in which they came."""
    return [key for batch in batches for key in batch.keys]
