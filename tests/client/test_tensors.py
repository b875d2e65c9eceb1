"""Blocks as tensors, and what is left to do to them."""

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill.feed import Feed
from feedmill.tensors import Tensors, device_of, dtype_of
from feedmill_protocol.errors import UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec, offsets

unhurried = settings(deadline=None)

CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, BIAS = tuple(1 / (255 * s) for s in STD), tuple(-m / s for m, s in zip(MEAN, STD, strict=True))
TENSORS = Tensors(CPU, None)


def picture(height: int = 4, width: int = 5, channels: int = 3, *, channels_last: bool = True) -> FieldSpec:
    """Return a field that is to be normalised."""
    scale, bias = (tuple((numbers * 3)[:channels]) for numbers in (SCALE, BIAS))
    return FieldSpec("image", "uint8", (channels, height, width), channels_last, scale, bias)


def pictures(samples: int, field: FieldSpec, seed: int = 0) -> torch.Tensor:
    """Return random rows of a field, laid out as it says."""
    channels, height, width = field.shape
    random = torch.Generator().manual_seed(seed)
    if field.channels_last:
        bytes_ = torch.randint(0, 256, (samples, height, width, channels), dtype=torch.uint8, generator=random)
        return bytes_.permute(0, 3, 1, 2)
    return torch.randint(0, 256, (samples, *field.shape), dtype=torch.uint8, generator=random)


def normalised(rows: torch.Tensor, field: FieldSpec) -> torch.Tensor:
    """Return what torchvision's ToTensor and Normalize make of rows, in float64."""
    scale, bias = (torch.tensor(n, dtype=torch.float64).view(1, -1, 1, 1) for n in (field.scale, field.bias))
    std = 1 / (255 * scale)
    return (rows.double() / 255 + bias * std) / std


def close(finished: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Tell whether numbers are equal up to the precision of their dtype, counted at the size of what was added."""
    return bool((finished.double() - wanted).abs().max() <= 4 * torch.finfo(finished.dtype).eps)


# Blocks.


def test_the_tensors_of_a_block_share_its_memory() -> None:
    """Each begins where the wire format says; what is written to one is written to the block."""
    fields = [FieldSpec("a", "float32", (3,)), FieldSpec("b", "int64", ()), FieldSpec("c", "uint8", (1, 5))]
    starts, size = offsets(field.rows(2) for field in fields)
    block = torch.zeros(size, dtype=torch.uint8)
    images, labels, bytes_ = TENSORS.unpack(block, fields, 2)
    assert [tensor.data_ptr() - block.data_ptr() for tensor in (images, labels, bytes_)] == starts == [0, 64, 128]
    assert [tuple(tensor.shape) for tensor in (images, labels, bytes_)] == [(2, 3), (2,), (2, 1, 5)]
    images[1, 2] = 1.5
    labels[1] = -2
    assert block[20:24].numpy().view(np.float32).item() == 1.5
    assert block[72:80].numpy().view(np.int64).item() == -2
    assert all(tensor.is_contiguous() for tensor in (images, labels, bytes_))


@pytest.mark.parametrize("name", ITEM_BYTES)
def test_every_dtype_of_the_wire_is_one_of_torch(name: str) -> None:
    """With as many bytes, and values that come through."""
    dtype = getattr(torch, name)
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    assert values.element_size() == ITEM_BYTES[name]
    fields = [FieldSpec("a", "bool", ()), FieldSpec("b", name, (3,))]
    block = torch.zeros(offsets(field.rows(2) for field in fields)[1], dtype=torch.uint8)
    block[64 : 64 + values.nbytes] = values.view(-1).view(torch.uint8)
    _, found = TENSORS.unpack(block, fields, 2)
    assert found.dtype == dtype
    assert found.tolist() == values.tolist()


def test_tensors_without_elements_have_their_shape() -> None:
    """A batch all of whose samples were skipped has no rows, and a row may have no elements."""
    block = torch.tensor([1, 0, 2, 0], dtype=torch.uint8)
    fields = [FieldSpec("a", "int64", (0,)), FieldSpec("b", "uint8", (0, 4, 5), channels_last=True)]
    empty, none, full = TENSORS.unpack(block, [*fields, FieldSpec("c", "int16", ())], 2)
    assert (tuple(empty.shape), empty.dtype) == ((2, 0), torch.int64)
    assert (tuple(none.shape), none.dtype) == ((2, 0, 4, 5), torch.uint8)
    assert full.tolist() == [1, 2]
    assert [tuple(t.shape) for t in TENSORS.unpack(block, [picture(), fields[0]], 0)] == [(0, 3, 4, 5), (0, 0)]


def test_pictures_with_channels_last_are_nchw_all_the_same() -> None:
    """As torch knows it: the shape says NCHW, the memory is NHWC."""
    field = picture(2, 3)
    block = torch.arange(2 * 18, dtype=torch.uint8)
    (images,) = TENSORS.unpack(block, [field], 2)
    assert tuple(images.shape) == (2, 3, 2, 3)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.data_ptr() == block.data_ptr()
    assert images[0, :, 0, 1].tolist() == [3, 4, 5]  # the channels of the second pixel
    assert images[1, 2].tolist() == [[20, 23, 26], [29, 32, 35]]


def test_blocks_are_memory_that_is_used_again() -> None:
    """When the last tensor on them is gone."""
    tensors = Tensors(CPU, None)
    block = tensors.allocate(1000)
    assert (block.dtype, tuple(block.shape), block.is_pinned()) == (torch.uint8, (1000,), False)
    place = block.data_ptr()
    (view,) = tensors.unpack(block, [FieldSpec("a", "float32", (5,))], 50)
    del block
    gc.collect()
    other = tensors.allocate(1000)
    assert other.data_ptr() != place
    del view
    assert tensors.allocate(1000).data_ptr() == place


def test_a_block_that_is_where_it_should_be_is_not_copied() -> None:
    """Elsewhere it goes in one copy, and its tensors are views of that."""
    fields = [picture(), FieldSpec("b", "int64", ())]
    block = torch.zeros(offsets(field.rows(2) for field in fields)[1], dtype=torch.uint8)
    images, labels = Tensors(torch.device("meta"), None).unpack(block, fields, 2)
    assert images.device.type == labels.device.type == "meta"
    assert images.untyped_storage()._cdata == labels.untyped_storage()._cdata
    assert images.is_contiguous(memory_format=torch.channels_last)


# Finishing.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_finished_pictures_are_normalised(dtype: torch.dtype, channels: int, *, channels_last: bool) -> None:
    """As ToTensor and Normalize would have it, in the dtype that was asked for, rounded once; the layout stays."""
    field = picture(33, 21, channels, channels_last=channels_last)
    rows = pictures(5, field)
    (finished,) = Tensors(CPU, dtype).finish([rows], [field])
    assert (finished.dtype, finished.shape) == (dtype, rows.shape)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert finished.is_contiguous(memory_format=layout)
    assert close(finished, normalised(rows, field).to(dtype).double())


def test_the_bytes_are_left_alone() -> None:
    """Finishing makes new tensors."""
    field = picture()
    rows = pictures(2, field)
    before = rows.clone()
    TENSORS.finish([rows], [field])
    assert torch.equal(rows, before)


def test_what_is_finished_already_passes() -> None:
    """Labels, and pictures whose bytes are what was wanted, are handed through."""
    fields = [FieldSpec("bytes", "uint8", (3, 4, 5), channels_last=True), picture(), FieldSpec("label", "int64", ())]
    rows = [pictures(2, fields[0]), pictures(2, fields[1]), torch.tensor([1, 2])]
    bytes_, images, labels = TENSORS.finish(rows, fields)
    assert bytes_ is rows[0]
    assert labels is rows[2]
    assert images.dtype == torch.float32


def test_without_a_dtype_floats_are_32_bits() -> None:
    """uint8 leaves bytes as they are, until `finish` is called."""
    assert [Tensors(CPU, dtype).finishing for dtype in (None, *FLOATS, torch.uint8)] == [True] * 4 + [False]
    field = picture()
    rows = pictures(2, field)
    (default,), (later,) = (Tensors(CPU, dtype).finish([rows], [field]) for dtype in (None, torch.uint8))
    assert default.dtype == later.dtype == torch.float32
    assert torch.equal(default, later)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_batches_of_any_size_are_finished(samples: int, dtype: torch.dtype) -> None:
    """None of whose samples could be read, too."""
    field = picture()
    (finished,) = Tensors(CPU, dtype).finish([pictures(samples, field)], [field])
    assert (tuple(finished.shape), finished.dtype) == ((samples, 3, 4, 5), dtype)


def changed(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what users may have done to a batch of bytes."""
    return {
        "cropped": rows[:, :, 1:3, 1:],
        "every other": rows[::2],
        "mirrored": rows.flip(3),
        "turned": rows.transpose(2, 3),
        "packed": rows.contiguous(),
        "mixed": 0.25 * rows + 0.75 * rows.flip(0),
        "in halves": rows.half(),
        "expanded": rows[:1].expand(6, -1, -1, -1),
    }


@pytest.mark.parametrize("kind", changed(torch.zeros(4, 3, 4, 5)))
def test_a_batch_may_be_changed_before_it_is_finished(kind: str) -> None:
    """On the device, in bytes or in floats: finishing is one multiplication and addition."""
    field = picture()
    rows = changed(pictures(4, field))[kind]
    (finished,) = Tensors(CPU, torch.uint8).finish([rows], [field])
    assert finished.dtype == torch.float32
    assert close(finished, normalised(rows, field))


@unhurried
@given(
    st.integers(0, 4),
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(FLOATS),
)
def test_any_numbers_are_done_to_any_shape(
    samples: int,
    height: int,
    width: int,
    numbers: Sequence[tuple[float, float]],
    channels_last: bool,  # noqa: FBT001
    dtype: torch.dtype,
) -> None:
    """What is multiplied and added is, in float32, and then rounded."""
    scale, bias = zip(*numbers, strict=True)
    field = FieldSpec("x", "uint8", (len(numbers), height, width), channels_last, scale, bias)
    rows = pictures(samples, field)
    (finished,) = Tensors(CPU, dtype).finish([rows], [field])
    s, b = (torch.tensor(n, dtype=torch.float64).view(1, -1, 1, 1) for n in (scale, bias))
    wanted = rows.double() * s + b
    assert finished.shape == rows.shape
    tolerance = 2 * torch.finfo(dtype).eps * (rows.double() * s.abs() + b.abs() + 1)
    assert ((finished.double() - wanted).abs() <= tolerance).all()


def test_finished_pictures_are_memory_that_is_used_again() -> None:
    """Once nobody holds them; a gradient or a list of batches does."""
    field = picture()
    tensors = Tensors(CPU, None)
    rows = pictures(4, field)
    (first,) = tensors.finish([rows], [field])
    (second,) = tensors.finish([pictures(4, field, seed=1)], [field])
    assert close(first, normalised(rows, field))
    place = first.data_ptr()
    assert second.data_ptr() != place
    del first
    (third,) = tensors.finish([rows], [field])
    assert third.data_ptr() == place


def test_pictures_can_be_finished_in_inference_mode_and_then_in_training() -> None:
    """What is kept from one batch to the next is no part of anybody's graph."""
    field = FieldSpec("x", "uint8", (3, 4, 5), True, (0.123,) * 3, (0.5,) * 3)
    tensors = Tensors(CPU, None)
    with torch.inference_mode():
        tensors.finish([pictures(2, field)], [field])
        tensors.finish([pictures(2, field).contiguous()], [field])
    weight = torch.ones(3, 1, 1, requires_grad=True)
    for rows in (pictures(2, field), pictures(2, field).contiguous()):
        (finished,) = tensors.finish([rows], [field])
        (finished * weight).sum().backward()
    assert weight.grad is not None


def test_a_feed_whose_batches_come_finished_finishes_nothing_twice() -> None:
    """To normalise twice would be a silent mistake."""
    feed = object.__new__(Feed)
    feed._tensors = Tensors(CPU, None)
    with pytest.raises(UsageError, match=r"^batches of this feed are finished already; connect\(dtype=torch.uint8\)"):
        feed.finish([torch.zeros(1)])


# Arguments.


def test_devices_are_named_as_in_torch() -> None:
    """Or given as they are."""
    assert device_of("cpu") == device_of(CPU) == CPU


@pytest.mark.parametrize("device", ["banana", "cpu:x", ""])
def test_what_is_no_device_is_an_error_of_usage(device: str) -> None:
    """In one line that names it."""
    with pytest.raises(UsageError, match=rf"^device='{device}': [^\n]+$"):
        device_of(device)


def test_a_device_that_is_not_there_is_an_error_of_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch without CUDA says so by an AssertionError, in several lines."""

    def empty(_size: int, *, device: torch.device) -> torch.Tensor:
        raise AssertionError(f"Torch not compiled with {device} enabled\nand more")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(UsageError, match=r"^device='cuda': Torch not compiled with cuda enabled$"):
        device_of("cuda")


@pytest.mark.parametrize("dtype", [None, *FLOATS, torch.uint8])
def test_dtypes_that_pictures_can_have(dtype: torch.dtype | None) -> None:
    """Three kinds of floats, and bytes."""
    assert dtype_of(dtype) is dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "float32", 32])
def test_other_dtypes_are_errors_of_usage(dtype: Any) -> None:
    """The message has all that would do."""
    with pytest.raises(UsageError, match=r"^dtype=.*: expected one of None, torch.float32, torch.bfloat16, torch.fl"):
        dtype_of(dtype)
