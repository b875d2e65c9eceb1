"""Blocks as torch tensors. The only module that needs torch to work: it is imported when a feed is opened."""

import math
from collections.abc import Sequence

import torch

from feedmill_protocol.errors import UsageError
from feedmill_protocol.tensors import TensorSpec, offsets

__all__ = ["allocate", "device_of", "to_device", "views", "world"]


def allocate(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Return uninitialised memory for a block: uint8 [nbytes], page-locked if it is to be copied to a GPU."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)


def views(block: torch.Tensor, specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a block, sharing its memory."""
    starts, _ = offsets(specs)
    return tuple(
        block[start : start + spec.nbytes].view(getattr(torch, spec.dtype)).view(spec.shape)
        if math.prod(spec.shape)
        else torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=block.device)
        for spec, start in zip(specs, starts, strict=True)
    )


def to_device(block: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a block: one copy for all its tensors, in the order of the device's current stream."""
    return block if block.device == device else block.to(device, non_blocking=True)


def device_of(device: "str | torch.device") -> torch.device:
    """Read a device. Raises UsageError for one that is not there."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device={device!r}: {reason}") from None
    return chosen


def world() -> tuple[int, int]:
    """Return rank and world size of this process: those of torch.distributed if it is initialised."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
