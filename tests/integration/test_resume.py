"""A training that is interrupted goes on with the very next batch: at any step, and on any number of ranks."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

import feedmill
from integration.epochs import TIMEOUT, Reference, assert_same, keys
from integration.fakes import FakeServer, honest
from integration.fleet import PIPELINES, Data, Fleet
from integration.processes import Served

State = dict[str, Any]


def through_a_file(state: State) -> State:
    """Return what a checkpoint gives back."""
    loaded: State = json.loads(json.dumps(state))
    return loaded


def steps_of(
    url: str, world_size: int, state: State | None, steps: int | None, **options: Any
) -> tuple[list[feedmill.Batch], State]:
    """Take so many steps on all ranks, or all that are left; return the batches in order, and the state."""
    with ExitStack() as stack:
        feeds = [
            stack.enter_context(
                feedmill.connect(url, "slow", rank=rank, world_size=world_size, timeout=TIMEOUT, **options)
            )
            for rank in range(world_size)
        ]
        for feed in feeds:
            if state is not None:
                feed.load_state_dict(state)
        ranks = [list(islice(feed.batches(), steps)) for feed in feeds]
        states = [feed.state_dict() for feed in feeds]
        assert all(other == states[0] for other in states), "any rank's state will do"
    return [batch for step in zip(*ranks, strict=True) for batch in step], through_a_file(states[0])


def assert_same_samples(found: Sequence[feedmill.Batch], expected: Sequence[feedmill.Batch]) -> None:
    """Assert that keys and tensors laid end to end are the same in every bit, however they are cut into batches."""
    assert [batch.index for batch in found] == list(range(len(found)))
    assert keys(list(found)) == keys(list(expected))
    for ours, theirs in zip(
        zip(*(batch.tensors for batch in found), strict=True),
        zip(*(batch.tensors for batch in expected), strict=True),
        strict=True,
    ):
        assert torch.equal(torch.cat(ours), torch.cat(theirs))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (4, 2)])
def test_every_step_of_an_epoch_can_be_the_last_one_before_an_interruption(
    fleet: Fleet, reference: Reference, before: int, after: int
) -> None:
    """What all ranks got before and after it, laid end to end, is the undisturbed epoch, bit for bit."""
    steps = -(-100 // (8 * before))
    for step in range(steps + 1):
        first, state = steps_of(fleet["four"], before, None, step)
        rest, after_all = steps_of(fleet["four"], after, state, None)
        assert_same_samples(first + rest, reference("slow"))
        assert (after_all["epoch"], after_all["samples"]) == (1, 0)
        if before == after:
            assert_same(first + rest, reference("slow"))


def test_an_interruption_may_follow_another(fleet: Fleet, reference: Reference) -> None:
    """Before the first batch, right after a resumption, on other ranks: the epoch is whole, and so is the next."""
    state: State | None = None
    found: list[feedmill.Batch] = []
    for world_size, steps in ((2, 0), (2, 0), (2, 1), (1, 2), (1, 0), (3, 1), (2, None)):
        batches, state = steps_of(fleet["four"], world_size, state, steps)
        found += batches
    assert_same_samples(found, reference("slow"))
    again, _ = steps_of(fleet["four"], 2, state, None)
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        feed.set_epoch(1)
        assert_same_samples(again, list(feed.batches()))


def test_a_feed_goes_back_to_where_it_was(fleet: Fleet, reference: Reference) -> None:
    """The state of a feed may be given to that very feed, in the middle of an iteration, which is over then."""
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        batches = [next(iteration) for _ in range(3)]
        state = feed.state_dict()
        assert (feed.epoch, feed.remaining, len(feed)) == (0, 10, 13)
        next(iteration)
        feed.load_state_dict(state)
        with pytest.raises(feedmill.UsageError, match=r"this iteration is over: .* given a state"):
            next(iteration)
        assert feed.state_dict() == state
        assert (feed.epoch, feed.remaining) == (0, 10)
        assert_same(batches + list(feed.batches()), reference("slow"))
        assert (feed.epoch, feed.remaining) == (1, 13)


def test_after_the_last_batch_the_rest_of_the_epoch_is_empty(fleet: Fleet) -> None:
    """A loop over epochs counts on from the epoch of the state, whether its last iteration had ended or not."""
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        for _ in feed.batches():
            state = feed.state_dict()
        ended = feed.state_dict()
        assert (state["epoch"], state["samples"], state["batches"]) == (0, 100, 13)
        assert (ended["epoch"], ended["samples"], ended["batches"]) == (1, 0, 0)
        feed.load_state_dict(state)
        assert (feed.epoch, feed.remaining) == (0, 0)
        assert list(feed.batches()) == []
        assert next(feed.batches()).epoch == 1
        feed.load_state_dict(ended)
        assert next(feed.batches()).epoch == 1


@pytest.mark.parametrize("order", ["plan", "arrival"])
def test_what_came_out_of_order_does_not_come_again(fleet: Fleet, reference: Reference, order: Any) -> None:
    """The batches that were handed out, and no others, are behind a state of a feed with order="arrival"."""
    urls = [fleet["one"], fleet["four"]]
    with feedmill.connect(urls, "slow", order="arrival", timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        batches = [next(iteration)]
        while sorted(batch.index for batch in batches) == list(range(len(batches))) and len(batches) < 10:
            batches.append(next(iteration))
        state = through_a_file(feed.state_dict())
    with feedmill.connect(urls, "slow", order=order, timeout=TIMEOUT) as feed:
        feed.load_state_dict(state)
        assert_same(batches + list(feed.batches()), reference("slow"))


def test_out_of_order_every_rank_has_a_state_of_its_own(fleet: Fleet, reference: Reference) -> None:
    """It goes on with its own, and another rank's is refused, until the epoch is over."""
    batches: list[feedmill.Batch] = []
    states: list[State] = []
    ends: list[State] = []
    for rank in range(2):
        with feedmill.connect(fleet["four"], "slow", rank=rank, world_size=2, order="arrival", timeout=TIMEOUT) as feed:
            batches += islice(feed.batches(), 3)
            states.append(feed.state_dict())
    for rank in range(2):
        with feedmill.connect(fleet["four"], "slow", rank=rank, world_size=2, order="arrival", timeout=TIMEOUT) as feed:
            with pytest.raises(feedmill.UsageError, match="which batches one feed has handed out"):
                feed.load_state_dict(states[1 - rank])
            feed.load_state_dict(states[rank])
            batches += list(feed.batches())
            ends.append(feed.state_dict())
    assert sorted(keys(batches)) == sorted(keys(reference("slow")))
    assert ends[0] == ends[1], "between epochs any rank's will do again"


def test_a_state_of_other_data_is_refused(data: Data, serve: Callable[..., Served], fleet: Fleet) -> None:
    """Another shard under the same name is another catalog."""
    served = serve(data["slow"].shards[0], "--stream", "slow", "--pipeline", f"{PIPELINES}:SLOW", "--workers", "1")
    with (
        feedmill.connect(served.url, "slow", timeout=TIMEOUT) as half,
        feedmill.connect(fleet["four"], "slow", seed=3, timeout=TIMEOUT) as whole,
    ):
        with pytest.raises(
            feedmill.UsageError, match=r"catalog='\w+' \(here '\w+'\), seed=0 \(here 3\).*; connect to the same"
        ):
            whole.load_state_dict(half.state_dict())
        assert next(whole.batches()).index == 0, "nothing has happened to it"


def test_what_was_asked_for_stays_asked_for() -> None:
    """Going on where one is costs no request; elsewhere, what is still to come is not asked for twice."""
    with FakeServer(honest) as fake, feedmill.connect(fake.url, prefetch=3, timeout=TIMEOUT) as feed:
        next(feed.batches())
        fake.wait_idle()
        asked = len(fake.gets)
        feed.load_state_dict(feed.state_dict())
        assert next(feed.batches()).index == 1
        fake.wait_idle()
        assert len(fake.gets) == asked + 1
        assert not fake.cancels


def test_feeds_may_share_the_batches_of_a_rank() -> None:
    """Each hands out its part, and goes on with it; numbers that make no sense are refused."""
    with FakeServer(honest) as fake, feedmill.connect(fake.url, timeout=TIMEOUT) as feed:
        feed.split(1, 2)
        assert [batch.index for batch in islice(feed.batches(), 1)] == [1]
        state = feed.state_dict()
        feed.split(1, 2)
        feed.load_state_dict(state)
        assert [batch.index for batch in feed.batches()] == [3]
        feed.split(0, 3)
        with pytest.raises(feedmill.UsageError, match=r"that one has part=1 \(here 0\), parts=2 \(here 3\)"):
            feed.load_state_dict(state)
        for part, parts, says in ((2, 2, r"part=2: expected an integer in 0\.\.1"), (0, 0, "parts=0: expected")):
            with pytest.raises(feedmill.UsageError, match=says):
                feed.split(part, parts)


def test_numbers_may_be_numpys(fleet: Fleet) -> None:
    """Arguments, epochs, and the numbers of a state."""
    given: Any = {name: np.int64(2) for name in ("seed", "batch_size", "window", "run", "world_size", "prefetch")}
    with feedmill.connect(fleet["four"], "slow", rank=np.uint8(1), timeout=TIMEOUT, **given) as feed:  # type: ignore[arg-type]
        feed.set_epoch(np.int32(4))  # type: ignore[arg-type]
        batch = next(feed.batches())
        assert (batch.epoch, batch.index, len(batch.keys)) == (4, 1, 2)
        state = {name: np.int64(v) if type(v) is int else v for name, v in feed.state_dict().items()}
        feed.load_state_dict(state)
        assert next(feed.batches()).index == 3
        json.dumps(feed.state_dict())
