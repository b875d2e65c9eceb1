"""Blocks become tensors, and what is left to do to them is done."""

import pytest
import torch

from feedmill.tensors import Tensors, device_of, dtype_of, world
from feedmill_protocol.errors import UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec, offsets

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PICTURE = FieldSpec(
    "jpg",
    "uint8",
    (3, 5, 7),
    channels_last=True,
    scale=tuple((1 / (255 * STD)).tolist()),
    bias=tuple((-MEAN / STD).tolist()),
)
LABEL = FieldSpec("cls", "int64", ())


def block(maker: Tensors, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block of pictures and labels, and the pictures as [N, H, W, C]."""
    (start, _), nbytes = offsets(field.rows(samples) for field in (PICTURE, LABEL))
    memory = maker.allocate(nbytes)
    pixels = torch.randint(0, 256, (samples, 5, 7, 3), dtype=torch.uint8)
    memory[start : start + pixels.numel()] = pixels.flatten()
    return memory, pixels


def test_the_tensors_of_a_block_share_its_memory() -> None:
    """Nothing is copied between the socket and the tensor."""
    maker = Tensors(CPU, torch.uint8)
    memory, pixels = block(maker, 4)
    images, labels = maker.unpack(memory, (PICTURE, LABEL), 4)
    assert torch.equal(images, pixels.permute(0, 3, 1, 2))
    assert images.untyped_storage().data_ptr() == labels.untyped_storage().data_ptr() == memory.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_of_the_wire_is_one_of_torchs(dtype: str) -> None:
    """The table of dtypes has torch's names and sizes."""
    field = FieldSpec("x", dtype, (2, 3))
    (tensor,) = Tensors(CPU, None).unpack(torch.zeros(field.rows(4).nbytes, dtype=torch.uint8), (field,), 4)
    assert tensor.shape == (4, 2, 3)
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.element_size() == ITEM_BYTES[dtype]


def test_a_batch_without_rows_has_tensors_without_rows() -> None:
    """Where all samples were skipped, shapes are still those of the fields."""
    images, labels = Tensors(CPU, None).unpack(torch.empty(0, dtype=torch.uint8), (PICTURE, LABEL), 0)
    assert images.shape == (0, 3, 5, 7)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(None, 1e-6), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_pictures_are_finished_as_torchvision_would(dtype: torch.dtype | None, tolerance: float) -> None:
    """To float and normalised, in channels_last memory, as the dtype that was asked for; labels stay as they are."""
    maker = Tensors(CPU, dtype)
    memory, pixels = block(maker, 4)
    images, labels = maker.finish(maker.unpack(memory, (PICTURE, LABEL), 4), (PICTURE, LABEL))
    expected = ((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    assert images.dtype == (dtype or torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.to(torch.float32), expected, rtol=tolerance, atol=tolerance)
    assert labels.dtype == torch.int64


def test_pictures_of_another_layout_are_finished_too() -> None:
    """What a user made of the bytes (a crop, a copy in planes) can be finished as well."""
    maker = Tensors(CPU, torch.uint8)
    memory, pixels = block(maker, 4)
    images, _ = maker.unpack(memory, (PICTURE, LABEL), 4)
    expected = ((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    for changed, wanted in ((images.contiguous(), expected), (images[:, :, 1:4, 2:5], expected[:, :, 1:4, 2:5])):
        (finished,) = maker.finish((changed,), (PICTURE,))
        torch.testing.assert_close(finished, wanted, rtol=1e-6, atol=1e-6)


def test_uint8_is_left_unfinished() -> None:
    """dtype=torch.uint8 leaves the finishing to the user."""
    assert not Tensors(CPU, torch.uint8).finishing
    assert Tensors(CPU, None).finishing


def test_devices_and_dtypes_that_are_none_are_refused() -> None:
    """A clear error names the argument."""
    assert device_of("cpu") == CPU
    with pytest.raises(UsageError, match="device="):
        device_of("nonsense")
    with pytest.raises(UsageError, match="dtype="):
        dtype_of(torch.int32)


def test_a_process_alone_is_rank_0_of_1() -> None:
    """Without torch.distributed there is one rank."""
    assert world() == (0, 1)
