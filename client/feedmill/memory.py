"""Memory that is used again: blocks that batches are received into, and tensors that they are finished into.

Fresh memory costs a page fault for every 4 KiB, and glibc gives large blocks back to the kernel at every free: a batch
of 38 MB would spend as long on faults as on its arithmetic. Here a block returns to its pool when the last tensor on it
is gone, whoever held it, and the next batch is put there.
"""

import math
import weakref
from collections import deque
from typing import Final

import numpy as np
import torch

__all__ = ["Pool", "keep_freed_memory"]

_KEPT: Final = 16
"""Free blocks kept at most. A feed has as many in use as it prefetches, and about as many free."""

_LARGE: Final = 31 * 2**20
"""Just below the 32 MiB to which glibc raises its threshold for blocks with a mapping of their own."""


def keep_freed_memory() -> None:
    """Have glibc keep the memory that libzmq receives frames into, instead of faulting it in again for every frame.

    glibc learns from the largest block it has seen freed how much to keep; a third of the receiving thread's time went
    into page faults until it had seen one. Elsewhere this does nothing.
    """
    np.empty(_LARGE, np.uint8)


class Pool:
    """Blocks of memory for tensors on the CPU. ``pinned`` ones can be copied to a GPU while it computes."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[torch.Tensor] = deque(maxlen=_KEPT)  # the longest unused falls out

    def take(self, nbytes: int) -> torch.Tensor:
        """Return uninitialised memory: uint8 [nbytes]. It is used again when no tensor shares it any more."""
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)
        memory = self._find(nbytes)
        # A tensor made of an array keeps that very array alive, for as long as any view of it lives.
        lease = memory.numpy()[:nbytes]
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return torch.from_numpy(lease)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised contiguous tensor in such memory."""
        return self.take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    def _find(self, nbytes: int) -> torch.Tensor:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if nbytes <= len(memory) <= 2 * nbytes:
                return memory
            self._free.append(memory)
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)
