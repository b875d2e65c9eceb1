"""Memory that is used again: when, by whom, and never while anybody may still look at it."""

import gc
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

from feedmill.memory import _KEPT, Pool

unhurried = settings(deadline=None)


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_is_bytes_that_can_be_written_to() -> None:
    """Of exactly the size that was asked for, none included."""
    pool = Pool()
    for nbytes in (0, 1, 100, 2**20):
        block = pool.take(nbytes)
        assert (block.dtype, tuple(block.shape), block.is_pinned()) == (torch.uint8, (nbytes,), False)
        block.fill_(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_tensor_in_it_is_contiguous(dtype: torch.dtype) -> None:
    """Of any shape, without elements too."""
    for shape in ((2, 3, 4), (), (5,), (0, 7)):
        tensor = Pool().empty(shape, dtype)
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
        assert tensor.is_contiguous()


def test_memory_is_used_again_when_its_tensor_is_gone() -> None:
    """And not before."""
    pool = Pool()
    first = pool.take(1000)
    second = pool.take(1000)
    assert address(first) != address(second)
    place = address(first)
    del first
    assert address(pool.take(1000)) == place


def _views(tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield "a slice", tensor[10:20]
    yield "another dtype", tensor.view(torch.float32)
    yield "another shape", tensor.view(10, 100).permute(1, 0)
    yield "an array", tensor.numpy()
    yield "a slice of an array", tensor.numpy()[3:]
    yield "a memoryview", memoryview(tensor.numpy())  # type: ignore[arg-type] # numpy says so from 3.12 on
    yield "a detached tensor", tensor.detach()
    yield "an alias by DLPack", torch.utils.dlpack.from_dlpack(tensor)
    yield "its storage", tensor.untyped_storage()
    yield "a parameter", torch.nn.Parameter(tensor.view(torch.float32))


@pytest.mark.parametrize("kind", [kind for kind, _ in _views(torch.zeros(1000, dtype=torch.uint8))])
def test_any_view_keeps_it(kind: str) -> None:
    """Whoever can still read the memory: it is nobody else's until they cannot."""
    pool = Pool()
    block = pool.take(1000)
    place = address(block)
    view = dict(_views(block))[kind]
    del block
    gc.collect()
    assert address(pool.take(1000)) != place
    del view
    gc.collect()
    assert place in {memory.data_ptr() for memory in pool._free}


def test_a_gradient_keeps_it() -> None:
    """Autograd holds on to inputs until the backward pass is through."""
    pool = Pool()
    weight = torch.ones(250, requires_grad=True)
    batch = pool.empty((250,), torch.float32).fill_(2)
    place = address(batch)
    loss = (weight * batch).sum()
    del batch
    again = pool.empty((250,), torch.float32).fill_(9)
    assert address(again) != place
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.eq(2).all()


def test_a_block_serves_what_is_not_much_smaller() -> None:
    """At least half of it is used, so that odd last batches do not hold large blocks; the order does not matter."""
    pool = Pool()
    sizes = [1000, 400, 4000]
    blocks = [pool.take(size) for size in sizes]
    places = [address(block) for block in blocks]
    blocks.clear()
    found = [pool.take(size) for size in (2100, 500, 250)]
    assert [address(block) for block in found] == [places[2], places[0], places[1]]
    assert [len(block) for block in found] == [2100, 500, 250]
    found.clear()
    assert address(pool.take(100)) not in places


def test_a_block_that_served_less_is_whole_again() -> None:
    """Its size is its own, not that of its last tensor."""
    pool = Pool()
    block = pool.take(1000)
    place = address(block)
    del block
    block = pool.take(600)
    del block
    assert address(pool.take(1000)) == place


def test_few_free_blocks_are_kept() -> None:
    """Those used last: a feed that once held many does not hold their memory for ever."""
    pool = Pool()
    blocks = [pool.take(1000) for _ in range(_KEPT + 5)]
    places = [address(block) for block in blocks]
    for i in range(len(blocks)):
        blocks[i] = torch.empty(0)
    assert len(pool._free) == _KEPT
    assert {memory.data_ptr() for memory in pool._free} == set(places[5:])


def test_tensors_outlive_their_pool() -> None:
    """The last batch of a feed that was closed stays what it was."""
    pool = Pool()
    block = pool.take(100).fill_(3)
    del pool
    gc.collect()
    assert block.eq(3).all()


def test_two_threads_share_a_pool() -> None:
    """One receives, one finishes: no block is in the hands of both."""
    pool = Pool()
    failed: list[int] = []

    def work(mark: int) -> None:
        held: list[torch.Tensor] = []
        for i in range(3000):
            block = pool.take(256 + i % 100).fill_(mark)
            held.append(block)
            if len(held) > i % 7:
                failed.extend(mark for block in held if not block.eq(mark).all())
                held.clear()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


class Trainers(RuleBasedStateMachine):
    """Anybody takes memory, views it, and lets go of it, in any order."""

    tensors = Bundle("tensors")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.marks = 0
        self.held: dict[int, list[torch.Tensor]] = {}

    @rule(target=tensors, nbytes=st.integers(0, 300))
    def take(self, nbytes: int) -> int:
        self.marks += 1
        self.held[self.marks] = [self.pool.take(nbytes).fill_(self.marks % 256)]
        return self.marks

    @rule(mark=tensors, start=st.integers(0, 300), stop=st.integers(0, 300))
    def view(self, mark: int, start: int, stop: int) -> None:
        self.held[mark].append(self.held[mark][-1][start:stop])

    @rule(mark=tensors)
    def keep_the_view_alone(self, mark: int) -> None:
        del self.held[mark][:-1]

    @rule(mark=consumes(tensors))
    def release(self, mark: int) -> None:
        del self.held[mark]

    def teardown(self) -> None:
        """Check all that is held, and that nobody has memory of another."""
        for mark, views in self.held.items():
            assert all(view.eq(mark % 256).all() for view in views)


TestTrainers = Trainers.TestCase
TestTrainers.settings = settings(deadline=None, max_examples=100)


@unhurried
@given(st.lists(st.tuples(st.integers(1, 64), st.booleans()), max_size=60))
def test_memory_in_use_is_never_handed_out(steps: list[tuple[int, bool]]) -> None:
    """What is held at the same time does not overlap."""
    pool = Pool()
    held: list[torch.Tensor] = []
    for nbytes, let_go in steps:
        if let_go and held:
            held.pop(nbytes % len(held))
        held.append(pool.take(nbytes))
        spans = sorted((block.data_ptr(), block.data_ptr() + len(block)) for block in held)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
