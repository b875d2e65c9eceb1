"""Blocks as torch tensors: where they lie, how they are cut, and what is left to do to them.

The only module beside `memory` that needs torch to work: it is imported when a feed is opened.
"""

import math
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError
from feedmill_protocol.tensors import FieldSpec, offsets

from .memory import Pool, keep_freed_memory

__all__ = ["Tensors", "device_of", "dtype_of"]


_PIECE: Final = 32_767
"""Numbers that torch works on in one thread: one less than at::internal::GRAIN_SIZE."""


class _Upload(NamedTuple):
    """A copy to the device that may still be under way, and the block that it reads."""

    done: torch.cuda.Event
    block: torch.Tensor


class Tensors:
    """Makes the tensors of a stream's ``fields`` from blocks, on ``device``.

    ``dtype`` is what rows that are left to finish become; None is float32, uint8 leaves them unfinished.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self._device = device
        self._dtype = torch.float32 if dtype is None else dtype
        self._blocks = Pool(pinned=device.type == "cuda")
        self._finished = Pool()
        self._uploads: deque[_Upload] = deque()
        keep_freed_memory()

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return memory to receive a block in: uint8 [nbytes], page-locked if it goes to a GPU."""
        return self._blocks.take(nbytes)

    def unpack(self, block: torch.Tensor, fields: Sequence[FieldSpec], samples: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of a block, on the device, as they were sent: views of one memory."""
        if self._device.type != "cpu":
            block = self._upload(block)
        starts, _ = offsets(field.rows(samples) for field in fields)
        return tuple(_view(block, start, field, samples) for field, start in zip(fields, starts, strict=True))

    def finish(self, tensors: Sequence[torch.Tensor], fields: Sequence[FieldSpec]) -> tuple[torch.Tensor, ...]:
        """Return the tensors with what was left to do done to them, in float32, and then ``dtype``."""
        return tuple(
            self._finish(tensor, field) if field.scale else tensor
            for tensor, field in zip(tensors, fields, strict=True)
        )

    @property
    def finishing(self) -> bool:
        """Whether batches are finished before they are handed out."""
        return self._dtype != torch.uint8

    def _upload(self, block: torch.Tensor) -> torch.Tensor:
        """Copy a block in the order of the device's current stream; its memory is used again when that is done."""
        # Only for CUDA is it known when the block has been read.
        on_device = block.to(self._device, non_blocking=self._device.type == "cuda")
        if self._device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self._device))
            self._uploads.append(_Upload(done, block))
            while self._uploads and self._uploads[0].done.query():
                self._uploads.popleft()
        return on_device

    def _finish(self, tensor: torch.Tensor, field: FieldSpec) -> torch.Tensor:
        dtype = self._dtype if self.finishing else torch.float32
        rows = tensor.permute(0, 2, 3, 1)
        if tensor.device.type == "cpu" and rows.is_contiguous():
            return self._finish_rows(rows, field, dtype).permute(0, 3, 1, 2)
        scale, bias = (_numbers(numbers, tensor.device).view(-1, 1, 1) for numbers in (field.scale, field.bias))
        return torch.addcmul(bias, tensor.to(torch.float32), scale).to(dtype)

    def _finish_rows(self, pictures: torch.Tensor, field: FieldSpec, dtype: torch.dtype) -> torch.Tensor:
        """Finish pictures [N, H, W, C] a few rows at a time, in memory that is used again.

        Whole batches at a time, in fresh memory, take many times as long: a piece stays in the cache between the
        conversion and the arithmetic, and rows of W*C numbers vectorise where C alone do not. A piece is small enough
        for torch to leave it to this thread: threads that wait for each other on busy cores cost more than they give.
        """
        n, height, width, channels = pictures.shape
        scale, bias = (_numbers(numbers, pictures.device).repeat(width) for numbers in (field.scale, field.bias))
        finished = self._finished.empty((n * height, width * channels), dtype)
        rows = max(1, _PIECE // max(1, width * channels))
        floats = torch.empty((rows, width * channels))
        for piece, target in zip(pictures.view(finished.shape).split(rows), finished.split(rows), strict=True):
            row = target if dtype == torch.float32 else floats[: len(piece)]
            row.copy_(piece)
            torch.addcmul(bias, row, scale, out=row)
            if row is not target:
                target.copy_(row)
        return finished.view(pictures.shape)


@lru_cache(maxsize=4 * limits.FIELDS)
def _numbers(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return numbers on a device; to bring them there for every batch would make a GPU wait."""
    return torch.tensor(numbers, device=device)


def _view(block: torch.Tensor, start: int, field: FieldSpec, samples: int) -> torch.Tensor:
    dtype, shape = getattr(torch, field.dtype), (samples, *field.shape)
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype, device=block.device)
    flat = block[start : start + field.rows(samples).nbytes].view(dtype)
    if field.channels_last:
        channels, height, width = field.shape
        return flat.view(samples, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def device_of(device: "str | torch.device") -> torch.device:
    """Read a device. Raises UsageError for one that is not there."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device={device!r}: {reason}") from None
    return chosen


def dtype_of(dtype: torch.dtype | None) -> torch.dtype | None:
    """Check what finished rows should be. Raises UsageError."""
    choices = (None, torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    if dtype not in choices:
        raise UsageError(f"dtype={dtype!r}: expected one of {', '.join(str(c) for c in choices)}")
    return dtype
