import numpy as np
import pytest
import torch

from feedmill.tensors import allocate, device_of, to_device, views, world
from feedmill_protocol.errors import UsageError
from feedmill_protocol.tensors import ITEM_BYTES, TensorSpec, offsets

CPU = torch.device("cpu")


def test_views_share_the_memory_of_the_block() -> None:
    """Each tensor begins where the wire format says; what is written to one is written to the block."""
    specs = [TensorSpec("float32", (2, 3)), TensorSpec("int64", (2,)), TensorSpec("uint8", (2, 1, 5))]
    starts, size = offsets(specs)
    block = torch.zeros(size, dtype=torch.uint8)
    images, labels, bytes_ = views(block, specs)
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
    specs = [TensorSpec("uint8", (1,)), TensorSpec(name, (2, 3))]
    block = torch.zeros(offsets(specs)[1], dtype=torch.uint8)
    block[64 : 64 + values.nbytes] = values.view(-1).view(torch.uint8)
    _, found = views(block, specs)
    assert found.dtype == dtype
    assert found.tolist() == values.tolist()


def test_tensors_without_elements_have_their_shape() -> None:
    """A batch all of whose samples were skipped has no rows, and a row may have no elements."""
    specs = [TensorSpec("float32", (0, 3, 4)), TensorSpec("int64", (2, 0)), TensorSpec("int16", (2,))]
    block = torch.tensor([1, 0, 2, 0], dtype=torch.uint8)
    none, empty, full = views(block, specs)
    assert (tuple(none.shape), none.dtype) == ((0, 3, 4), torch.float32)
    assert (tuple(empty.shape), empty.dtype) == ((2, 0), torch.int64)
    assert full.tolist() == [1, 2]


def test_blocks_are_bytes_that_can_be_written_to() -> None:
    """Of any size; not page-locked unless that is asked for."""
    for nbytes in (0, 1, 100):
        block = allocate(nbytes, pinned=False)
        assert (block.dtype, tuple(block.shape), block.is_pinned()) == (torch.uint8, (nbytes,), False)


def test_a_block_that_is_where_it_should_be_is_not_copied() -> None:
    """Elsewhere it goes in one copy."""
    block = torch.zeros(8, dtype=torch.uint8)
    assert to_device(block, CPU) is block
    moved = to_device(block, torch.device("meta"))
    assert (moved.device.type, moved.shape) == ("meta", block.shape)


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


def test_rank_and_world_size_are_those_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is initialised; one process alone is everybody."""
    assert world() == (0, 1)
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 8)
    assert world() == (3, 8)
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    assert world() == (0, 1)
