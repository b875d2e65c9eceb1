"""The course of a feed: positions, and what is left from each of them."""

from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill.course import Course, Place, Position
from feedmill_protocol.errors import UsageError
from feedmill_protocol.plan import Last, Plan

COUNTS = [13, 0, 22, 7, 8]  # 50 samples


def course(rank: int = 0, world_size: int = 1, *, ordered: bool = True, last: Last = "keep", **share: Any) -> Course:
    return Course(Plan(COUNTS, batch_size=4, rank=rank, world_size=world_size, last=last), ordered=ordered, **share)


def walk(course: Course, steps: int | None = None) -> list[Place]:
    """Begin the next iteration, and hand out so many batches in order, or all that are left."""
    course.begin()
    places = list(islice(course.ahead(), course.remaining if steps is None else steps))
    for place in places:
        course.took(place.number)
    if steps is None:
        course.end()
    return places


def ranks(world_size: int, last: Last, position: Position) -> list[Course]:
    courses = [course(rank, world_size, last=last) for rank in range(world_size)]
    for one in courses:
        one.go_to(position)
    return courses


@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (4, 2), (2, 4), (3, 3)])
def test_an_epoch_goes_on_from_any_step_on_any_number_of_ranks(last: Last, before: int, after: int) -> None:
    """The sequence of samples and the numbers of the batches go on without a gap; then comes the next epoch, whole."""
    for steps in range(len(course(0, before, last=last).plan) + 1):
        first = ranks(before, last, Position(5))
        places = [place for step in zip(*(walk(one, steps) for one in first), strict=True) for place in step]
        (position,) = {one.position for one in first}
        assert position.samples == min(50, places[-1].end if places else 0)
        second = ranks(after, last, position)
        if last == "keep" and 0 < 50 - position.samples < after:  # too few for a batch on every rank
            with pytest.raises(UsageError, match=f"samples cannot be dealt to {after} ranks"):
                second[0].of(position)
            continue
        rest = [walk(one) for one in second]
        assert len({len(batches) for batches in rest}) == 1
        places += [place for step in zip(*rest, strict=True) for place in step]
        assert [place.number for place in places] == list(range(len(places)))
        assert [place.begin for place in places] == [0, *(place.end for place in places[:-1])]
        assert 0 <= 50 - places[-1].end < 4 * after if last == "drop" else places[-1].end >= 50
        assert {place.epoch for place in places} == {5}
        assert {one.position for one in second} == {Position(6)}
        assert walk(second[0]) == [place._replace(epoch=6) for place in walk(course(0, after, last=last))]


def test_positions_are_taken_again_and_again() -> None:
    """Each resumed from the last one, a step at a time, is the epoch as it would have been."""
    expected = [walk(one) for one in ranks(3, "keep", Position(0))]
    found: list[list[Place]] = [[], [], []]
    position = Position(0)
    for _ in range(len(expected[0])):
        again = ranks(3, "keep", position)
        for one, batches in zip(again, found, strict=True):
            batches.extend(walk(one, 1))
        (position,) = {one.position for one in again}
    assert found == expected


def test_before_the_first_batch_and_after_the_last_one_are_positions() -> None:
    """Between epochs it is the beginning of the next one; before an iteration has ended, the end of its own."""
    one = course()
    assert (one.position, one.epoch, one.remaining) == (Position(0), 0, 13)
    one.begin()
    assert (one.position, one.epoch, one.remaining) == (Position(0), 0, 13)
    walk(one, 13)
    assert (one.position, one.epoch, one.remaining) == (Position(1, 13, 50), 1, 0)
    one.end()
    assert (one.position, one.epoch, one.remaining) == (Position(2), 2, 13)


def test_an_epoch_that_was_broken_off_is_followed_by_the_next() -> None:
    """Unless its position is gone to."""
    one = course()
    walk(one, 3)
    position = one.position
    assert walk(one, 1)[0].epoch == 1
    one.go_to(position)
    assert one.position == position
    assert [place.number for place in walk(one, 2)] == [3, 4]


def test_setting_the_epoch_that_goes_on_lets_it_go_on() -> None:
    """A loop that sets every epoch, as loops do, does not throw away what was loaded; any other epoch is whole."""
    one = course()
    one.go_to(Position(3, 2, 8))
    one.set_epoch(3)
    assert walk(one, 1)[0] == Place(3, 2, 8, 12)
    one.set_epoch(3)
    assert one.position == Position(3)
    assert walk(one, 1)[0].number == 0
    one.go_to(Position(3, 2, 8))
    one.set_epoch(4)
    assert walk(one, 1)[0] == Place(4, 0, 0, 4)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_batches_that_came_out_of_order_are_not_handed_out_again(
    world_size: int, parts: int, data: st.DataObject
) -> None:
    """Whatever has been handed out, what is left is the rest, and so it is after going on from there."""
    share: Any = {"part": data.draw(st.integers(0, parts - 1)), "parts": parts}
    rank = data.draw(st.integers(0, world_size - 1))
    left = set(walk(course(rank, world_size, **share)))
    one = course(rank, world_size, ordered=False, **share)
    one.begin()
    while left:
        assert one.remaining == len(left)
        assert list(islice(one.ahead(), len(left))) == sorted(left)
        place = data.draw(st.sampled_from(sorted(left)))
        left.remove(place)
        one.took(place.number)
        if data.draw(st.booleans()):
            position, one = one.position, course(rank, world_size, ordered=False, **share)
            one.go_to(position)
            one.begin()
    assert one.remaining == 0


def test_parts_take_turns() -> None:
    """Together they have what their rank has; each hands out every third."""
    whole = walk(course(1, 2))
    for part in range(3):
        assert walk(course(1, 2, part=part, parts=3)) == whole[part::3]


def test_a_part_that_has_nothing_comes_to_an_end() -> None:
    """More parts than batches: there is nothing to look for in the epochs to come either."""
    one = course(part=13, parts=14)
    one.begin()
    assert one.remaining == 0
    assert list(one.ahead()) == []


def test_out_of_order_several_ranks_are_as_far_only_between_epochs() -> None:
    """What one rank has handed out, in order by chance, says nothing of the others."""
    one = course(0, 2, ordered=False)
    one.begin()
    assert one.position == Position(0)
    one.took(0)
    assert one.position == Position(0, done=1)
    one.took(4)
    assert one.position == Position(0, done=1, beyond=(2,))
    for number in (2, 6, 8, 10, 12):
        one.took(number)
    assert one.position == Position(0, 14, 50)
