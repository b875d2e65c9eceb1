import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec, offsets
from feedmill_server import slots as slots_module
from feedmill_server.slots import Slot, SlotPool

PAGE = mmap.PAGESIZE


def descriptors() -> int:
    """Count the open descriptors of memory files."""
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]  # not that of this listing
    return sum("memfd:feedmill" in str(entry.readlink()) for entry in entries)


@pytest.fixture
def pool() -> Iterator[Callable[[int], SlotPool]]:
    """Make pools whose slots are closed with the test."""
    slots: list[Slot] = []

    class Pool(SlotPool):
        def take(self, nbytes: int) -> Slot | None:
            slot = super().take(nbytes)
            if slot is not None and slot not in slots:
                slots.append(slot)
            return slot

    before = descriptors()
    yield Pool
    for slot in slots:
        if not _is_closed(slot):
            slot.close()
    assert descriptors() == before


def _is_closed(slot: Slot) -> bool:
    try:
        slot.memory.nbytes  # noqa: B018
    except ValueError:
        return True
    return False


def take(pool: SlotPool, nbytes: int) -> Slot:
    slot = pool.take(nbytes)
    assert slot is not None
    return slot


def test_a_slot_is_memory_that_other_processes_can_map() -> None:
    """What is written through its descriptor is read through its memory, and no file system knows it."""
    slot = Slot(7, 2 * PAGE)
    with mmap.mmap(slot.fd, 0) as theirs:
        theirs[PAGE : PAGE + 5] = b"hello"
        assert bytes(slot.memory[PAGE : PAGE + 5]) == b"hello"
        assert len(theirs) == len(slot.memory) == slot.capacity
    assert str(Path(f"/proc/self/fd/{slot.fd}").readlink()) == "/memfd:feedmill-slot-7 (deleted)"
    assert not os.get_inheritable(slot.fd)
    slot.close()


def test_closing_a_slot_closes_its_descriptor() -> None:
    """Nothing is left of it."""
    before = descriptors()
    slot = Slot(1, PAGE)
    assert descriptors() > before
    slot.close()
    assert descriptors() == before
    assert _is_closed(slot)


def test_what_is_still_being_sent_outlives_its_slot() -> None:
    """A view that somebody holds stays readable, though the slot is closed."""
    slot = Slot(1, PAGE)
    slot.memory[:3] = b"abc"
    held = slot.memory[:3]
    slot.close()
    assert bytes(held) == b"abc"


def test_a_slot_that_cannot_be_made_leaves_no_descriptor() -> None:
    """More memory than addresses is refused by the kernel."""
    before = descriptors()
    with pytest.raises(OSError, match=r"Cannot allocate|File too large|Invalid"):
        Slot(1, 2**62)
    assert descriptors() == before


def test_a_slot_that_was_given_back_is_used_again(pool: Callable[[int], SlotPool]) -> None:
    """The smallest that fits; one of more than twice the size is left for others."""
    slots = pool(100 * PAGE)
    small, large, huge = take(slots, PAGE), take(slots, 3 * PAGE), take(slots, 20 * PAGE)
    for slot in (huge, large, small):
        slots.give(slot)
    assert take(slots, PAGE) is small
    assert take(slots, PAGE) is large
    assert take(slots, PAGE) not in {small, large, huge}
    assert take(slots, 12 * PAGE) is huge
    assert slots.retired == []


@pytest.mark.parametrize(("nbytes", "pages"), [(0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2)])
def test_a_slot_has_whole_pages(pool: Callable[[int], SlotPool], nbytes: int, pages: int) -> None:
    """A batch may even have no bytes."""
    slots = pool(10 * PAGE)
    assert take(slots, nbytes).capacity == slots.bytes == pages * PAGE


def test_a_pool_never_has_more_memory_than_it_may(pool: Callable[[int], SlotPool]) -> None:
    """There is no slot until one comes back."""
    slots = pool(4 * PAGE)
    first = take(slots, 3 * PAGE)
    assert slots.take(2 * PAGE) is None
    second = take(slots, PAGE)
    assert slots.take(1) is None
    slots.give(first)
    assert slots.take(4 * PAGE) is None
    slots.give(second)
    whole = take(slots, 4 * PAGE)
    assert (slots.bytes, slots.take(1)) == (whole.capacity, None)


def test_a_batch_of_all_the_memory_can_be_built(pool: Callable[[int], SlotPool]) -> None:
    """What does not make a whole page does not count: whoever asks for max_bytes gets them."""
    slots = pool(2 * PAGE + 100)
    assert slots.max_bytes == 2 * PAGE
    assert take(slots, slots.max_bytes).capacity == 2 * PAGE


def test_slots_that_do_not_fit_retire_for_one_that_does(pool: Callable[[int], SlotPool]) -> None:
    """They are closed, the workers are to be told, and slots in use stay."""
    slots = pool(4 * PAGE)
    used, idle, spare = take(slots, PAGE), take(slots, PAGE), take(slots, PAGE)
    slots.give(idle)
    slots.give(spare)
    new = take(slots, 2 * PAGE)
    assert slots.retired == [idle.number]
    assert _is_closed(idle)
    assert not _is_closed(used)
    assert len({slot.number for slot in (used, idle, spare, new)}) == 4
    slots.give(used)
    slots.give(new)
    take(slots, 4 * PAGE)
    assert sorted(slots.retired) == [used.number, idle.number, spare.number, new.number]
    assert slots.bytes == 4 * PAGE


def test_a_pool_never_has_more_slots_than_descriptors_allow(
    pool: Callable[[int], SlotPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small they are; one that comes back makes room for one of another size."""
    monkeypatch.setattr(slots_module, "MAX_SLOTS", 3)
    slots = pool(100 * PAGE)
    first, *_ = (take(slots, PAGE) for _ in range(3))
    assert slots.take(PAGE) is None
    slots.give(first)
    assert take(slots, 10 * PAGE).capacity == 10 * PAGE
    assert slots.retired == [first.number]
    assert slots.take(PAGE) is None


def test_a_system_without_descriptors_is_asked_again_later(
    pool: Callable[[int], SlotPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no slot as long as there is none to be had, and one line in the log; what lies idle is given back."""
    slots = pool(100 * PAGE)
    idle = take(slots, PAGE)
    slots.give(idle)

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        assert [slots.take(10 * PAGE) for _ in range(3)] == [None] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"no memory file of {10 * PAGE} bytes to be had (Too many open files); trying again"
    ]
    assert (slots.retired, slots.slots, slots.bytes) == ([idle.number], 0, 0)
    assert take(slots, 10 * PAGE).capacity == slots.bytes == 10 * PAGE
    assert slots.slots == 1


SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)
SPECS = st.lists(
    st.builds(FieldSpec, st.just("x"), st.sampled_from(sorted(ITEM_BYTES)), SHAPES), min_size=1, max_size=4
)


@given(fields=SPECS, rows=st.lists(st.booleans(), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_compacting_leaves_the_block_of_the_rows_that_are_kept(
    fields: Sequence[FieldSpec], rows: list[bool], seed: int
) -> None:
    """Whatever the fields are, and whichever rows are missing: as if only the others had ever been written."""
    random = np.random.default_rng(seed)
    samples, kept = len(rows), [row for row, keep in enumerate(rows) if keep]
    contents = [random.bytes(field.rows(samples).nbytes) for field in fields]
    slot = Slot(1, max(PAGE, offsets(field.rows(samples) for field in fields)[1]))
    try:
        for start, content in zip(offsets(field.rows(samples) for field in fields)[0], contents, strict=True):
            slot.memory[start : start + len(content)] = content
        slot.compact(fields, samples, [row for row, keep in enumerate(rows) if not keep])
        for field, start, content in zip(
            fields, offsets(field.rows(len(kept)) for field in fields)[0], contents, strict=True
        ):
            size = field.rows(1).nbytes
            expected = b"".join(content[row * size : (row + 1) * size] for row in kept)
            assert bytes(slot.memory[start : start + len(expected)]) == expected
    finally:
        slot.close()
