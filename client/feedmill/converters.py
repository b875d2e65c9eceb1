"""Converters: from arrays to tensors and back, in the conventions of either side, and on to a GPU.

In webloader's words. Arrays have their channels last and come in any dtype; tensors have them first, and are float32 or
int64 where they are numbers to compute with. Values that are neither stay as they are.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from feedmill_protocol.errors import UsageError

from .tensors import device_of

__all__ = ["Converter", "Pipe", "apply", "choose", "pipe", "tonumpy", "totorch"]

Converter: TypeAlias = Callable[[Any], Any]

Pipe: TypeAlias = Callable[[Iterator[Any]], Iterable[Any]]
"""A function from an iterator of batches to another."""

_CHANNELS: Final = (3, 4)
"""What counts as channels: RGB and RGBA."""

_INT64: Final = frozenset({torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32})
_FLOAT32: Final = frozenset({torch.float16, torch.float64})


def totorch(
    dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu", *, transpose: bool = True
) -> Converter:
    """Return a function that makes tensors on ``device`` of arrays.

    HWC and NHWC arrays of 3 or 4 channels become CHW and NCHW, unless ``transpose`` is False. Without a ``dtype`` (or
    its name) floats become float32, integers int64; bytes, booleans and complex numbers stay. Tensors are moved, and
    get the ``dtype`` if one is given. With ``device="numpy"`` all this is done, and comes as arrays.

    Raises UsageError for a dtype or device that does not exist.
    """
    wanted = _dtype(dtype)
    on = torch.device("cpu") if device == "numpy" else device_of(device)

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            tensor = torch.from_numpy(np.require(value, requirements=["C", "W"]))
            if transpose and tensor.ndim in {3, 4} and tensor.shape[-1] in _CHANNELS:
                tensor = tensor.movedim(-1, -3)
            tensor = tensor.to(device=on, dtype=wanted or _natural(tensor.dtype))
        elif isinstance(value, torch.Tensor):
            tensor = value.to(device=on, dtype=wanted)
        else:
            return value
        return tensor.numpy(force=True) if device == "numpy" else tensor

    return convert


def tonumpy(dtype: Any = None, *, transpose: bool = True) -> Converter:
    """Return a function that makes arrays of tensors, wherever they are.

    CHW and NCHW tensors of 3 or 4 channels become HWC and NHWC, unless ``transpose`` is False. bfloat16, which NumPy
    lacks, becomes float32. Arrays stay as they are, but get the ``dtype`` if one is given. Raises UsageError for one
    that does not exist.
    """
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except TypeError as error:
        raise UsageError(f"tonumpy: dtype={dtype!r}: {error}") from None

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if transpose and value.ndim in {3, 4} and value.shape[-3] in _CHANNELS:
                value = value.movedim(-3, -1)
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
        return value.astype(wanted, copy=False) if wanted and isinstance(value, np.ndarray) else value

    return convert


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(found, torch.dtype):
        raise UsageError(f"totorch: dtype={dtype!r}: expected a dtype of torch's, or its name, like 'float32'")
    return found


def _natural(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _FLOAT32 else torch.int64 if dtype in _INT64 else dtype


_NAMED: Final[dict[str, Callable[[], Converter]]] = {
    "torch": totorch,
    "torch_cuda": lambda: totorch(device="cuda"),
    "torch_np": lambda: totorch(device="numpy"),
    "torch_numpy": lambda: totorch(device="numpy"),
    "numpy": tonumpy,
}


def choose(name: str, given: str | Converter | Sequence[str | Converter | None] | None) -> tuple[Converter | None, ...]:
    """Return the functions that an argument means: one, or one for each field in turn; None leaves a field alone.

    Strings name converters. Raises UsageError for anything else.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        return () if given is None else (_converter(name, given),)
    return tuple(_converter(name, one) for one in given)


def apply(functions: Sequence[Converter | None], values: Sequence[Any]) -> list[Any]:
    """Apply functions, of which there is one at least, in turn. Raises UsageError for more of them than values."""
    if len(functions) > len(values):
        raise UsageError(f"{len(functions)} functions for a batch of {len(values)} arrays; leave some out")
    pairs = zip(cycle(functions), values, strict=False)
    return [value if function is None else function(value) for function, value in pairs]


def _converter(name: str, given: str | Converter | None) -> Converter | None:
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]()
    if isinstance(given, str) or (given is not None and not callable(given)):
        raise UsageError(f"{name}={given!r}: expected one of {', '.join(_NAMED)}, a callable, None, or a list of these")
    return given


def pipe(given: str | Pipe | None) -> Pipe | None:
    """Return what ``multi_pipe=`` means. Raises UsageError, also where there is no GPU."""
    if given in ("sync_gpu_transfer", "async_gpu_transfer"):
        device = device_of("cuda")
        return lambda batches: _transfer(batches, device, ahead=int(given == "async_gpu_transfer"))
    if isinstance(given, str) or (given is not None and not callable(given)):
        raise UsageError(f"multi_pipe={given!r}: expected 'sync_gpu_transfer', 'async_gpu_transfer' or a callable")
    return given


def _transfer(batches: Iterable[Any], device: torch.device, ahead: int) -> Iterator[Any]:
    """Yield batches with their arrays and tensors on a device; copies of so many batches ahead are under way."""
    under_way: deque[Any] = deque()
    for batch in batches:
        under_way.append(_on(batch, device, non_blocking=ahead > 0))
        if len(under_way) > ahead:
            yield under_way.popleft()
    yield from under_way


def _on(batch: Any, device: torch.device, *, non_blocking: bool) -> Any:
    if isinstance(batch, dict):
        return {name: _on(value, device, non_blocking=non_blocking) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_on(value, device, non_blocking=non_blocking) for value in batch]
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        batch = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
    if not isinstance(batch, torch.Tensor):
        return batch
    if non_blocking and batch.device.type == "cpu":
        batch = batch.pin_memory()  # from other memory, the copy would wait
    return batch.to(device, non_blocking=non_blocking)
