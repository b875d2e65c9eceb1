"""The plan: every sample where arithmetic says, whatever the number of ranks and whichever batch is asked first."""

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError
from feedmill_protocol.plan import Plan
from feedmill_protocol.spans import Spans, expand

Sample = tuple[int, int]
Row = list[int]

# Not every stream can be dealt to every world: such examples are passed over.
unhurried = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])

MASK = 2**64 - 1
GOLDEN = [[[0, 5, 6], [4, 0, 2], [0, 2, 3]], [[3, 3, 4], [2, 4, 5], [2, 2, 4]], [[3, 0, 2]], [[2, 0, 2], [3, 8, 9]]]

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
SIZES = st.integers(1, 12)
WORLDS = st.integers(1, 5)
ORDERS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, limits.INT63),
        "shuffle": st.sampled_from([True, False, "within"]),
        "window": st.integers(1, 14),
        "run": st.integers(1, 9),
    }
)


# The plan again, written from its docstrings and from docs/wire.md, sample by sample, with no NumPy.


def hash_of(*words: int) -> int:
    h = 0
    for word in words:
        z = ((h ^ word) + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        h = z ^ (z >> 31)
    return h


def sequence_of(
    counts: list[int], epoch: int, *, seed: int, shuffle: bool | str, window: int, run: int
) -> list[Sample]:
    shards = list(range(len(counts)))
    if not shuffle:
        return [(shard, i) for shard in shards for i in range(counts[shard])]
    if shuffle is True:
        shards.sort(key=lambda shard: hash_of(1, seed, epoch, shard))
    samples = []
    for first in range(0, len(shards), window):
        runs = [
            (hash_of(2, seed, epoch, shard, ordinal), shard, start)
            for shard in shards[first : first + window]
            for ordinal, start in enumerate(range(0, counts[shard], run))
        ]
        runs.sort(key=lambda r: r[0])
        samples += [(s, i) for _, s, start in runs for i in range(start, min(start + run, counts[s]))]
    return samples


def batches_of(samples: list[Sample], batch_size: int, world: int, last: str, start: int = 0) -> list[list[Sample]]:
    """Return the global batches from a sample on: batch ``step * world + rank`` is the rank's."""
    round_size, left = batch_size * world, len(samples) - start
    steps, rest = divmod(left, round_size)
    if last != "drop":
        steps += rest > 0
    even = steps if last != "keep" or rest == 0 else steps - 1 if rest >= world else steps - 2
    rounds = [start + round_size * step for step in range(even + 1)]
    over = len(samples) - rounds[-1]
    rounds += [rounds[-1] + over * k // (steps - even) for k in range(1, steps - even + 1)]
    return [
        [samples[i % len(samples)] for i in range(p + (q - p) * r // world, p + (q - p) * (r + 1) // world)]
        for p, q in pairwise(rounds)
        for r in range(world)
    ]


def spans_of(samples: list[Sample]) -> list[Row]:
    spans: list[Row] = []
    for shard, index in samples:
        if spans and spans[-1][0] == shard and spans[-1][2] == index:
            spans[-1][2] += 1
        else:
            spans.append([shard, index, index + 1])
    return spans


# Looking at plans.


def samples_of(spans: Spans) -> list[Sample]:
    return [(shard, index) for shard, index in expand(spans).tolist()]


def plan_of(counts: list[int], world_size: int, start: int, **options: Any) -> list[Plan]:
    """Return the plans of all ranks from a sample on. What cannot be dealt is no example."""
    try:
        return [Plan(counts, rank=r, world_size=world_size, **options).rest(start) for r in range(world_size)]
    except UsageError:
        assume(False)
        raise


def dealt(counts: list[int], epoch: int = 0, *, world_size: int = 1, **options: Any) -> list[list[list[Sample]]]:
    """Return the samples of every batch, by step and rank. A stream that cannot be dealt is no example."""
    try:
        ranks = [Plan(counts, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    except UsageError:
        assume(False)
    assert len({len(plan) for plan in ranks}) == 1
    return [[samples_of(plan.batch(epoch, step)) for plan in ranks] for step in range(len(ranks[0]))]


def flat(steps: list[list[list[Sample]]]) -> list[Sample]:
    return [sample for step in steps for batch in step for sample in batch]


def everything(counts: list[int]) -> list[Sample]:
    return [(shard, i) for shard, n in enumerate(counts) for i in range(n)]


# What an epoch holds.


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS)
def test_keep_gives_every_sample_exactly_once(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any]
) -> None:
    """No sample is lost, none comes twice, on whichever rank."""
    steps = dealt(counts, batch_size=batch_size, world_size=world_size, **order)
    assert sorted(flat(steps)) == everything(counts)


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS)
def test_drop_leaves_out_less_than_a_round(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any]
) -> None:
    """Full batches only, no sample twice, and fewer than a round are missing."""
    steps = dealt(counts, batch_size=batch_size, world_size=world_size, last="drop", **order)
    samples = flat(steps)
    assert {len(batch) for step in steps for batch in step} == {batch_size}
    assert len(set(samples)) == len(samples)
    assert 0 <= sum(counts) - len(samples) < batch_size * world_size


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS)
def test_pad_covers_everything_and_starts_over(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any]
) -> None:
    """Full batches only; the sequence comes whole, and then again from its start, by less than a round."""
    steps = dealt(counts, batch_size=batch_size, world_size=world_size, last="pad", **order)
    samples, n = flat(steps), sum(counts)
    assert {len(batch) for step in steps for batch in step} == {batch_size}
    assert sorted(samples[:n]) == everything(counts)
    assert samples[n:] == [samples[i % n] for i in range(n, len(samples))]
    assert len(samples) - n < batch_size * world_size


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS, st.sampled_from(["keep", "drop"]))
def test_ranks_share_nothing(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any], last: str
) -> None:
    """What one rank gets no other does."""
    steps = dealt(counts, batch_size=batch_size, world_size=world_size, last=last, **order)
    ranks = [{sample for step in steps for sample in step[rank]} for rank in range(world_size)]
    assert sum(map(len, ranks)) == len(set().union(*ranks))


@unhurried
@given(COUNTS, SIZES, WORLDS, WORLDS, ORDERS)
def test_the_sequence_does_not_depend_on_the_world_size(
    counts: list[int], batch_size: int, one: int, other: int, order: dict[str, Any]
) -> None:
    """All ranks' batches, laid side by side, are the same epoch however many ranks there are."""
    steps = [dealt(counts, batch_size=batch_size, world_size=world, **order) for world in (one, other)]
    assert flat(steps[0]) == flat(steps[1])


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS)
def test_batches_are_never_empty_and_never_too_large(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any]
) -> None:
    """Between one sample and a whole batch; in a round they differ by one at most."""
    for step in dealt(counts, batch_size=batch_size, world_size=world_size, **order):
        sizes = [len(batch) for batch in step]
        assert 1 <= min(sizes) <= max(sizes) <= min(batch_size, min(sizes) + 1)


@unhurried
@given(COUNTS, SIZES, WORLDS)
def test_keep_refuses_only_what_cannot_be_dealt(counts: list[int], batch_size: int, world_size: int) -> None:
    """It gives up only if no number of steps has 1 to batch_size samples for every rank."""
    samples = sum(counts)
    possible = any(k * world_size <= samples <= k * world_size * batch_size for k in range(1, samples + 1))
    if possible:
        Plan(counts, batch_size=batch_size, world_size=world_size)
        return
    with pytest.raises(UsageError, match="use last='pad' or 'drop'"):
        Plan(counts, batch_size=batch_size, world_size=world_size)


# Going on in the middle.


@unhurried
@given(COUNTS, SIZES, st.integers(1, 12), ORDERS, st.sampled_from(["keep", "drop", "pad"]))
def test_what_is_left_after_any_round_is_the_rest_of_the_batches(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any], last: str
) -> None:
    """Wherever an epoch is left, as many ranks go on with the very same batches, and again from there."""
    options: Any = {"batch_size": batch_size, "last": last, **order}
    whole = plan_of(counts, world_size, 0, **options)
    expected = [[plan.bounds(step) for plan in whole] for step in range(len(whole[0]))]
    for done in range(len(expected) + 1):
        (start,) = {plan.dealt(done) for plan in whole}
        rest = [plan.rest(start) for plan in whole]
        assert {len(plan) for plan in rest} == {len(expected) - done}
        assert [[plan.bounds(step) for plan in rest] for step in range(len(rest[0]))] == expected[done:]
        assert [rest[0].dealt(step) for step in range(len(rest[0]))] == [
            whole[0].dealt(step) for step in range(done, len(expected))
        ]


@unhurried
@given(COUNTS, SIZES, st.lists(WORLDS, min_size=2, max_size=4), ORDERS, st.data())
def test_any_number_of_ranks_may_go_on(
    counts: list[int], batch_size: int, worlds: list[int], order: dict[str, Any], data: st.DataObject
) -> None:
    """Laid side by side, what all ranks got before and after each change is the epoch: nothing lost, nothing twice."""
    last = data.draw(st.sampled_from(["keep", "drop", "pad"]))
    samples, start, found = sum(counts), 0, []
    for number, world_size in enumerate(worlds):
        plans = plan_of(counts, world_size, start, batch_size=batch_size, last=last, **order)
        (steps,) = {len(plan) for plan in plans}
        if number + 1 < len(worlds):
            steps = data.draw(st.integers(0, steps))
        found += [samples_of(plan.batch(2, step)) for step in range(steps) for plan in plans]
        start = plans[0].dealt(steps)
    expected = sequence_of(counts, 2, **order)
    got = [sample for batch in found for sample in batch]
    if last == "drop":
        assert samples - len(got) < batch_size * worlds[-1]
        assert got == expected[: len(got)]
    else:
        assert got[:samples] == expected
        assert got[samples:] == [expected[i % samples] for i in range(samples, len(got))]
        assert last == "pad" or len(got) == samples


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS, st.data(), st.sampled_from(["keep", "drop", "pad"]))
def test_what_is_left_is_dealt_as_the_specification_says(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any], data: st.DataObject, last: str
) -> None:
    """A second implementation, from the text alone, deals the samples behind any one in the same batches."""
    start = data.draw(st.integers(0, sum(counts)))
    plans = plan_of(counts, world_size, start, batch_size=batch_size, last=last, **order)
    expected = batches_of(sequence_of(counts, 1, **order), batch_size, world_size, last, start)
    assert [samples_of(plan.batch(1, step)) for step in range(len(plans[0])) for plan in plans] == expected


def test_at_the_end_of_an_epoch_nothing_is_left() -> None:
    """Where a whole epoch without steps is an error, the rest of one is not; a padded round counts what there is."""
    for last in ("keep", "drop", "pad"):
        plan = Plan([10], batch_size=4, last=last)
        assert len(plan.rest(plan.dealt(len(plan)))) == 0
    assert Plan([10], batch_size=4, last="pad").dealt(3) == 10
    assert Plan([10], batch_size=4, last="drop").dealt(2) == 8


def test_what_is_left_may_be_too_little_for_the_ranks() -> None:
    """Equal steps and every sample once cannot both be had, and it says what can."""
    plan = Plan([10], batch_size=4, world_size=3)
    with pytest.raises(
        UsageError,
        match=r"^last='keep': 2 samples cannot be dealt to 3 ranks .*; resume with another number of ranks, or",
    ):
        plan.rest(8)
    assert len(Plan([10], batch_size=4, world_size=2).rest(8)) == 1


@pytest.mark.parametrize("start", [-1, 11, 2.0, "2", None, True])
def test_a_start_that_is_no_sample_is_refused(start: Any) -> None:
    """From the first sample to behind the last one."""
    with pytest.raises(UsageError, match=rf"^start={start!r}: expected an integer in 0\.\.10$"):
        Plan([10], batch_size=2).rest(start)


@pytest.mark.parametrize("steps", [-1, 6])
def test_steps_beyond_the_epoch_are_refused(steps: int) -> None:
    """There are as many as `len` says."""
    with pytest.raises(UsageError, match=rf"^steps={steps}: expected an integer in 0\.\.5$"):
        Plan([10], batch_size=2).dealt(steps)


# Order.


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS, st.integers(0, limits.INT63), st.sampled_from(["keep", "drop", "pad"]))
def test_the_plan_is_what_the_specification_says(
    counts: list[int],
    batch_size: int,
    world_size: int,
    order: dict[str, Any],
    epoch: int,
    last: Literal["keep", "drop", "pad"],
) -> None:
    """A second implementation, from the text alone, finds the same samples, and the same spans for them."""
    plans = plan_of(counts, world_size, 0, batch_size=batch_size, last=last, **order)
    expected = batches_of(sequence_of(counts, epoch, **order), batch_size, world_size, last)
    for rank, plan in enumerate(plans):
        assert [plan.batch(epoch, s).tolist() for s in range(len(plan))] == [
            spans_of(batch) for batch in expected[rank::world_size]
        ]


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS, st.data(), st.sampled_from(["keep", "pad"]))
def test_a_batch_alone_is_the_batch_of_the_whole(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any], data: st.DataObject, last: str
) -> None:
    """A fresh plan finds any batch without those before it, and any order of asking finds the same."""
    options: Any = {"batch_size": batch_size, "world_size": world_size, "last": last, **order}
    steps = dealt(counts, 3, **options)
    step, rank = data.draw(st.integers(0, len(steps) - 1)), data.draw(st.integers(0, world_size - 1))
    assert samples_of(Plan(counts, rank=rank, **options).batch(3, step)) == steps[step][rank]
    used = Plan(counts, rank=rank, **options)
    for epoch, other in data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, len(steps) - 1)), max_size=8)):
        used.batch(epoch, other)
    assert samples_of(used.batch(3, step)) == steps[step][rank]


@unhurried
@given(COUNTS, SIZES, ORDERS)
def test_samples_stay_within_their_window(counts: list[int], batch_size: int, order: dict[str, Any]) -> None:
    """The shards of one window are used up before the next window's are touched: a server need hold no more."""
    seen = flat(dealt(counts, batch_size=batch_size, **order))
    shards = list(dict.fromkeys(shard for shard, _ in seen))
    first = {shard: min(i for i, s in enumerate(seen) if s[0] == shard) for shard in shards}
    last = {shard: max(i for i, s in enumerate(seen) if s[0] == shard) for shard in shards}
    for position in first.values():
        open_shards = [shard for shard in shards if first[shard] <= position <= last[shard]]
        assert len(open_shards) <= order["window"]


@unhurried
@given(COUNTS, SIZES, ORDERS)
def test_runs_stay_together(counts: list[int], batch_size: int, order: dict[str, Any]) -> None:
    """Samples of one run follow each other in order, whatever batches they fall into."""
    samples = flat(dealt(counts, batch_size=batch_size, **{**order, "shuffle": True}))
    run = order["run"]
    for (shard, index), following in pairwise(samples):
        if (index + 1) % run and index + 1 < counts[shard]:
            assert following == (shard, index + 1)


@unhurried
@given(COUNTS, SIZES, st.integers(1, 14), st.integers(1, 9))
def test_without_shuffling_the_catalog_is_the_order(counts: list[int], batch_size: int, window: int, run: int) -> None:
    """Window, run, seed and epoch then do not matter."""
    steps = dealt(counts, 5, batch_size=batch_size, shuffle=False, window=window, run=run, seed=9)
    assert flat(steps) == everything(counts)


@unhurried
@given(COUNTS, SIZES, WORLDS, ORDERS, st.sampled_from(["keep", "drop", "pad"]))
def test_spans_are_as_long_as_can_be(
    counts: list[int], batch_size: int, world_size: int, order: dict[str, Any], last: str
) -> None:
    """No span continues the one before it, so that one batch has one name."""
    options: Any = {"batch_size": batch_size, "world_size": world_size, "last": last, **order}
    for rank in range(world_size):
        try:
            plan = Plan(counts, rank=rank, **options)
        except UsageError:
            assume(False)
        for step in range(len(plan)):
            spans = plan.batch(0, step).tolist()
            assert all(before[0] != after[0] or before[2] != after[1] for before, after in pairwise(spans))
            assert all(start < stop <= counts[shard] for shard, start, stop in spans)


def test_epochs_differ_and_repeat() -> None:
    """Two epochs, and two seeds, order 1,000 samples differently; the same one orders them the same."""
    orders = [
        [samples_of(Plan([100] * 10, batch_size=1000, seed=seed).batch(epoch, 0))][0]
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_shuffling_is_fair() -> None:
    """Over 2,000 epochs each of five samples stands at each place about as often: 400 times, give or take 90."""
    plan = Plan([2, 3], batch_size=5)
    places = np.zeros((5, 5), int)
    for epoch in range(2000):
        for place, (shard, index) in enumerate(samples_of(plan.batch(epoch, 0))):
            places[2 * shard + index, place] += 1
    assert abs(places - 400).max() < 90  # five standard deviations of 18


def test_the_order_never_changes() -> None:
    """Part of the wire format: another release must not deal other batches, or checkpoints resume elsewhere."""
    plan = Plan([7, 0, 5, 9, 4], batch_size=4, seed=42, window=2, run=2, rank=1, world_size=2)
    assert [plan.batch(3, step).tolist() for step in range(len(plan))] == GOLDEN


# Cost.


def test_a_batch_of_a_huge_stream_is_found_at_once() -> None:
    """A hundred thousand shards, a hundred million samples: only the windows that are touched are shuffled."""
    plan = Plan(np.full(100_000, 1000, np.uint32), batch_size=256, seed=1)
    assert len(plan) == 390_625
    spans = plan.batch(0, 200_000)
    assert spans[:, 2].sum() - spans[:, 1].sum() == 256
    assert len(set(spans[:, 0].tolist())) <= 32  # two windows


def test_what_is_kept_in_memory_is_bounded() -> None:
    """Going through many small windows and epochs keeps a handful of each."""
    plan = Plan([3] * 100, batch_size=60, window=2)
    for epoch in range(5):
        for step in range(len(plan)):
            plan.batch(epoch, step)
    assert len(plan._epochs) == 2
    assert all(len(epoch._windows) == 4 for epoch in plan._epochs.values())


# Arguments.


def test_pad_goes_round_a_stream_smaller_than_a_batch() -> None:
    """Ranks that begin beyond the end of the sequence, and batches longer than it, start over as often as it takes."""
    ranks = [
        Plan([3], batch_size=7, world_size=2, rank=rank, shuffle=False, last="pad").batch(0, 0).tolist()
        for rank in (0, 1)
    ]
    assert ranks == [[[0, 0, 3], [0, 0, 3], [0, 0, 1]], [[0, 1, 3], [0, 0, 3], [0, 0, 2]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0: expected an integer in 1\.\.65536"),
        ({"batch_size": 65_537}, "batch_size=65537"),
        ({"batch_size": 2.0}, r"batch_size=2\.0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"seed": -1}, r"seed=-1: expected an integer in 0\.\.9223372036854775807"),
        ({"window": 0}, "window=0"),
        ({"run": 0}, "run=0"),
        ({"world_size": 0}, "world_size=0"),
        ({"rank": 2, "world_size": 2}, r"rank=2: expected an integer in 0\.\.1"),
        ({"last": "wrap"}, "last='wrap': expected 'keep', 'drop' or 'pad'"),
        ({"counts": []}, "the stream has no samples"),
        ({"counts": [0, 0]}, "the stream has no samples"),
        ({"counts": [[1]]}, "counts: expected one integer for each shard"),
        ({"counts": 3}, "counts: expected one integer for each shard"),
        ({"counts": [1.5]}, "counts: expected one integer for each shard"),
        ({"counts": np.array([5, -1])}, r"counts: a shard has 0\.\.4294967295 samples, not -1 or 5"),
        ({"counts": np.array([1, 2**32])}, r"counts: a shard has 0\.\.4294967295 samples, not 1 or 4294967296"),
        ({"last": "drop", "batch_size": 11}, "last='drop': 10 samples do not fill one batch of 11 on every rank"),
        ({"world_size": 11}, "last='keep': 10 samples cannot be dealt to 11 ranks in equal numbers of batches"),
        ({"world_size": 3, "batch_size": 1}, "last='keep': 10 samples cannot be dealt to 3 ranks"),
    ],
)
def test_an_argument_that_cannot_work_is_named(options: dict[str, Any], message: str) -> None:
    """With its value and what would work."""
    with pytest.raises(UsageError, match=message):
        Plan(**{"counts": [10], "batch_size": 2, **options})


def test_any_integer_will_do() -> None:
    """NumPy's are as good as Python's, and become those."""
    numbers: Any = {name: np.int64(2) for name in ("batch_size", "seed", "window", "run", "world_size")}
    plan = Plan([10, 3, 4], rank=np.uint8(1), **numbers)  # type: ignore[arg-type]
    same = Plan([10, 3, 4], batch_size=2, seed=2, window=2, run=2, world_size=2, rank=1)
    for name in (*numbers, "rank"):
        assert type(getattr(plan, name)) is int
    assert plan.batch(np.int32(5), 1).tolist() == same.batch(5, 1).tolist()  # type: ignore[arg-type]


def test_windows_and_runs_may_be_larger_than_anything() -> None:
    """Then every shard is in one window, and every shard is one run."""
    plan = Plan([5, 6, 7], batch_size=18, window=limits.INT63, run=limits.INT63)
    assert sorted(plan.batch(0, 0).tolist()) == [[0, 0, 5], [1, 0, 6], [2, 0, 7]]


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_beyond_the_epoch_is_refused(step: int) -> None:
    """Steps count from 0."""
    with pytest.raises(UsageError, match=rf"step {step} is not in 0\.\.4"):
        Plan([10], batch_size=2).batch(0, step)


def test_an_epoch_out_of_range_is_refused() -> None:
    """Epochs count from 0 and fit the wire."""
    with pytest.raises(UsageError, match="epoch=-1: expected an integer"):
        Plan([10], batch_size=2).batch(-1, 0)


def test_the_largest_shard_is_planned_exactly() -> None:
    """Indices just below 2^32 come out as they are."""
    plan = Plan([limits.SHARD_SAMPLES], batch_size=10, shuffle=False)
    assert plan.batch(0, len(plan) - 1).tolist() == [[0, limits.SHARD_SAMPLES - 5, limits.SHARD_SAMPLES]]


def test_a_window_that_cannot_be_shuffled_is_refused() -> None:
    """Counts come from the network: a hostile catalog must not exhaust the memory."""
    counts = [2**32 - 1] * 3
    with pytest.raises(UsageError, match=r"window=3, run=1: 12,884,901,885 runs might be shuffled together"):
        Plan(counts, batch_size=4)
    assert len(Plan(counts, batch_size=4, run=1000)) > 0
    assert len(Plan(counts, batch_size=4, shuffle=False)) > 0


@pytest.mark.parametrize("shuffle", [1, 0, np.True_, "shards", None])
def test_a_shuffle_that_is_not_quite_one_is_refused(shuffle: Any) -> None:
    """What is only as good as True would shuffle windows and not shards."""
    with pytest.raises(UsageError, match=r"shuffle=.*: expected True, False or 'within'"):
        Plan([3], batch_size=1, shuffle=shuffle)
