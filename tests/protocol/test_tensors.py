"""Dtypes, shapes, and where the tensors of a batch lie in its block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec, TensorSpec, align, offsets

unhurried = settings(deadline=None)

SHAPES = st.lists(st.integers(0, 50), max_size=limits.RANK).map(tuple)
TENSORS = st.builds(TensorSpec, st.sampled_from(sorted(ITEM_BYTES)), SHAPES)


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_dtype_is_torchs_of_that_name_and_size(dtype: str) -> None:
    """The table holds for the library whose names it borrows."""
    assert getattr(torch, dtype).itemsize == ITEM_BYTES[dtype]


@unhurried
@given(st.lists(TENSORS, max_size=limits.FIELDS))
def test_the_tensors_of_a_block_are_aligned_and_do_not_meet(tensors: list[TensorSpec]) -> None:
    """Each starts at the first multiple of the alignment after the one before it, and so does what follows the last."""
    starts, end = offsets(tensors)
    position = 0
    for tensor, start in zip(tensors, starts, strict=True):
        assert start % limits.ALIGNMENT == 0
        assert 0 <= start - position < limits.ALIGNMENT
        position = start + tensor.nbytes
    assert end % limits.ALIGNMENT == 0
    assert 0 <= end - position < limits.ALIGNMENT


@unhurried
@given(st.integers(0, 2**62))
def test_align_rounds_up_to_the_next_multiple(position: int) -> None:
    """A multiple stays, everything else goes up by less than one."""
    aligned = align(position)
    assert aligned % limits.ALIGNMENT == 0
    assert 0 <= aligned - position < limits.ALIGNMENT


def test_a_scalar_is_one_element() -> None:
    """Rank 0 holds one element, not none."""
    assert TensorSpec("complex128", ()).nbytes == 16


def test_huge_shapes_do_not_overflow() -> None:
    """Sizes are exact whatever a hostile peer announces."""
    assert TensorSpec("float64", (2**40,) * 8).nbytes == 2**323


def test_a_fields_rows_stand_before_its_own_dimensions() -> None:
    """The batch dimension comes first."""
    assert FieldSpec("image", "uint8", (3, 224, 224)).rows(7) == TensorSpec("uint8", (7, 3, 224, 224))
    assert FieldSpec("label", "int64", ()).rows(0) == TensorSpec("int64", (0,))
