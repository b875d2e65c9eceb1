from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from feedmill.converters import choose, pipe, tonumpy, totorch
from feedmill_protocol.errors import UsageError


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("float16", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float32),
        ("int8", torch.int64),
        ("int16", torch.int64),
        ("uint16", torch.int64),
        ("int32", torch.int64),
        ("uint32", torch.int64),
        ("int64", torch.int64),
        ("uint8", torch.uint8),
        ("bool", torch.bool),
        ("complex64", torch.complex64),
    ],
)
def test_numbers_to_compute_with_become_float32_and_int64(given: str, becomes: torch.dtype) -> None:
    """Bytes, booleans and complex numbers stay what they are."""
    array = np.array([[0, 1], [1, 0]], given)
    tensor = totorch()(array)
    assert tensor.dtype == becomes
    assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5, 7, 3), (3, 5, 7)),
        ((5, 7, 4), (4, 5, 7)),
        ((2, 5, 7, 3), (2, 3, 5, 7)),
        ((5, 7), (5, 7)),
        ((5, 7, 2), (5, 7, 2)),
        ((3,), (3,)),
        ((1, 2, 3, 4, 3), (1, 2, 3, 4, 3)),
    ],
)
def test_pictures_change_their_layout_there_and_back(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Those with three or four channels, one or a batch of them; nothing else does."""
    array = np.arange(np.prod(before), dtype=np.float32).reshape(before)
    tensor = totorch()(array)
    assert tuple(tensor.shape) == after
    assert np.array_equal(tonumpy()(tensor), array)


def test_without_transposition_the_layout_stays() -> None:
    """In both directions."""
    assert totorch(transpose=False)(np.zeros((5, 7, 3))).shape == (5, 7, 3)
    assert tonumpy(transpose=False)(torch.zeros(3, 5, 7)).shape == (3, 5, 7)


def test_a_dtype_that_is_given_is_the_one_that_comes() -> None:
    """By name or as what it is; for tensors too."""
    assert totorch("float16")(np.zeros(2)).dtype == torch.float16
    assert totorch(torch.int32)(torch.zeros(2)).dtype == torch.int32
    assert tonumpy("float16")(torch.zeros(2)).dtype == np.float16
    assert tonumpy(np.float64)(np.zeros(2, np.int8)).dtype == np.float64


def test_torch_np_gives_arrays_as_torch_would_have_them() -> None:
    """Channels first, float32."""
    (convert,) = choose("converters", "torch_np")
    assert convert is not None
    array = convert(np.zeros((5, 7, 3)))
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == ((3, 5, 7), np.float32)


def test_bfloat16_becomes_what_numpy_has() -> None:
    """It loses nothing by that."""
    assert tonumpy()(torch.tensor([1.5], dtype=torch.bfloat16)).dtype == np.float32


@pytest.mark.parametrize("value", ["text", b"bytes", None, [1, 2], 3, np.array(["a"])])
def test_what_is_neither_stays_itself(value: Any) -> None:
    """Keys, captions, lists."""
    assert totorch()(value) is value
    assert tonumpy()(value) is value


def test_arrays_may_be_read_only_or_reversed() -> None:
    """They come out of files and of flips."""
    array = np.arange(6.0)[::-1]
    array.flags.writeable = False
    assert totorch()(array).tolist() == [5, 4, 3, 2, 1, 0]


def test_names_callables_and_lists_of_them_are_functions() -> None:
    """None leaves a field as it is."""
    assert choose("converters", None) == ()
    assert choose("converters", len) == (len,)
    first, second = choose("converters", ["torch", None])
    assert callable(first)
    assert second is None


@pytest.mark.parametrize("given", ["pytorch", 3, ["torch", 3]])
def test_what_is_no_converter_is_an_error_that_says_which_are(given: Any) -> None:
    """The argument has its name."""
    with pytest.raises(UsageError, match=r"^converters='?\w+'?: expected one of torch, torch_cuda, torch_np, .*numpy"):
        choose("converters", given)


def test_dtypes_and_devices_that_do_not_exist_are_errors() -> None:
    """When the converter is made, not when the first batch comes."""
    with pytest.raises(UsageError, match=r"^totorch: dtype='float33'"):
        totorch("float33")
    with pytest.raises(UsageError, match=r"^totorch: dtype='zeros'"):
        totorch("zeros")
    with pytest.raises(UsageError, match=r"^tonumpy: dtype='float33'"):
        tonumpy("float33")
    with pytest.raises(UsageError, match=r"^device='no'"):
        totorch(device="no")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would work")
@pytest.mark.parametrize("name", ["sync_gpu_transfer", "async_gpu_transfer"])
def test_transfers_to_a_gpu_need_one(name: str) -> None:
    """That is said before the first batch."""
    with pytest.raises(UsageError, match=r"^device='cuda'"):
        pipe(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["sync_gpu_transfer", "async_gpu_transfer"])
def test_transfers_bring_arrays_and_tensors_to_the_gpu(name: str) -> None:
    """In order, all of them; the rest of a batch stays as it is."""
    transfer = pipe(name)
    assert transfer is not None
    batches = [[torch.full((4,), float(n)), np.full(4, n), [f"{n}"]] for n in range(5)]
    moved = list(transfer(iter(batches)))
    assert [[v.device.type for v in batch[:2]] for batch in moved] == [["cuda", "cuda"]] * 5
    assert [[v.tolist() for v in batch[:2]] + [batch[2]] for batch in moved] == [
        [[n] * 4, [n] * 4, [f"{n}"]] for n in range(5)
    ]


def test_other_pipes_are_callables() -> None:
    """Anything else is an error."""

    def halves(batches: Iterator[Any]) -> Iterator[Any]:
        return (batch / 2 for batch in batches)

    assert pipe(halves) is halves
    assert pipe(None) is None
    with pytest.raises(UsageError, match=r"^multi_pipe='gpu': expected 'sync_gpu_transfer', "):
        pipe("gpu")
