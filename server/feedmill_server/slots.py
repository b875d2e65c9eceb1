"""Slots: the shared memory that batches are built in, sent from, and cached in.

A slot is an anonymous memory file. The broker creates it and hands its descriptor to the workers, who write rows; the
broker sends its bytes without a copy. No name in any file system leads to it: the kernel frees it with the last
process that holds it, however that process ends, and the size of /dev/shm is no limit.

A slot is busy while a batch lies in it (`SlotPool.take` … `give`) and pinned while libzmq still reads from it. The
pool owns at most `max_bytes` and `MAX_SLOTS`, whatever they are used for.
"""

import logging
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from feedmill_protocol import codec
from feedmill_protocol.tensors import FieldSpec, offsets

__all__ = ["MAX_SLOTS", "Slot", "SlotPool"]

MAX_SLOTS: Final = 256
"""A slot takes two descriptors here (mmap keeps one of its own) and one in every worker; a process may usually have
1024."""

_log = logging.getLogger(__name__)


class Slot:
    """One piece of shared memory of ``capacity`` bytes."""

    def __init__(self, number: int, capacity: int) -> None:
        self.number = number
        self.capacity = capacity
        self.pins = 0
        self.fd = os.memfd_create(f"feedmill-slot-{number}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, capacity)
            self._map = mmap.mmap(self.fd, capacity)
        except BaseException:
            os.close(self.fd)
            raise
        self.memory = memoryview(self._map)

    def compact(self, fields: Sequence[FieldSpec], samples: int, missing: Sequence[int]) -> None:
        """Turn the block of a batch of ``samples`` rows into that of the batch without the ``missing`` rows."""
        runs = list(zip([0, *(row + 1 for row in missing)], [*missing, samples], strict=True))  # of rows that stay
        sources, _ = offsets(field.rows(samples) for field in fields)
        targets, _ = offsets(field.rows(samples - len(missing)) for field in fields)
        for field, source, target in zip(fields, sources, targets, strict=True):
            row = field.rows(1).nbytes
            to = target
            for first, stop in runs:
                start, size = source + first * row, (stop - first) * row
                # Rows only ever move towards the start, and fields are moved in order: nothing is overwritten unread.
                if start != to:
                    self.memory[to : to + size] = self.memory[start : start + size]
                to += size

    def checksum(self, nbytes: int, trailer: bytes) -> int:
        """Return `codec.checksum` of the first nbytes and a trailer."""
        return codec.checksum(self.memory[:nbytes], trailer)

    def close(self) -> None:
        """Give the memory back; what libzmq still holds of it stays until it lets go."""
        self.memory.release()
        os.close(self.fd)
        with suppress(BufferError):  # then the last view of it closes it
            self._map.close()


class SlotPool:
    """At most `MAX_SLOTS` slots of together at most ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes // mmap.PAGESIZE * mmap.PAGESIZE  # slots are whole pages
        self.bytes = 0
        self.slots = 0
        self.retired: list[int] = []  # numbers of slots that are gone, for the workers to unmap
        self._free: list[Slot] = []
        self._created = 0
        self._refused = False

    def take(self, nbytes: int) -> Slot | None:
        """Return a slot of at least nbytes, or None while the memory is in use, or the system has none to give."""
        # A slot of twice the size would waste what others need.
        fitting = [slot for slot in self._free if nbytes <= slot.capacity <= 2 * nbytes + mmap.PAGESIZE]
        if fitting:
            # Of equals the last: its memory is in the processor's cache.
            best = min(reversed(fitting), key=lambda s: s.capacity)
            self._free.remove(best)
            return best
        capacity = -(-max(1, nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        while self._is_full(capacity) and self._free:
            self._retire(self._free[0])
        if self._is_full(capacity):
            return None
        slot = self._create(capacity)
        while slot is None and self._free:  # what they have is what the system is short of
            self._retire(self._free[0])
            slot = self._create(capacity)
        return slot

    def give(self, slot: Slot) -> None:
        """Take back a slot that is neither used nor pinned."""
        self._free.append(slot)

    def _create(self, capacity: int) -> Slot | None:
        try:
            slot = Slot(self._created + 1, capacity)
        except OSError as error:
            if not self._refused:  # once until there is one again: whoever waits for a slot asks often
                _log.warning("no memory file of %d bytes to be had (%s); trying again", capacity, error.strerror)
            self._refused = True
            return None
        self._refused = False
        self._created += 1
        self.slots += 1
        self.bytes += capacity
        return slot

    def _is_full(self, nbytes: int) -> bool:
        return self.slots >= MAX_SLOTS or self.bytes + nbytes > self.max_bytes

    def _retire(self, slot: Slot) -> None:
        self._free.remove(slot)
        self.slots -= 1
        self.bytes -= slot.capacity
        self.retired.append(slot.number)
        slot.close()
