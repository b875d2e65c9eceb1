"""States: what they say, and whose they are."""

import json
import logging
from typing import Any

import pytest

from feedmill import state
from feedmill.course import Course, Position
from feedmill_protocol.errors import UsageError
from feedmill_protocol.messages import Welcome
from feedmill_protocol.plan import Plan

CONTRACT = Welcome(
    server="s",
    boot="b",
    stream="train",
    fields=(),
    batch_size=4,
    catalog="c0ffee",
    fingerprint="f00d",
    shards=1,
    workers=1,
    counts=True,
)

SAID = {
    "version": 1,
    "stream": "train",
    "catalog": "c0ffee",
    "fingerprint": "f00d",
    "batch_size": 4,
    "seed": 7,
    "shuffle": True,
    "window": 1,
    "run": 2,
    "last": "keep",
    "epoch": 3,
    "batches": 6,
    "samples": 24,
}


def course(*, ordered: bool = True, part: int = 0, parts: int = 1, **changes: Any) -> Course:
    options = {"batch_size": 4, "seed": 7, "run": 2, "rank": 1, "world_size": 2} | changes
    return Course(Plan([50], **options), ordered=ordered, part=part, parts=parts)


def at(position: Position, **options: Any) -> Course:
    made = course(**options)
    made.go_to(position)
    return made


def test_a_state_says_this() -> None:
    """All of it is text, numbers and booleans, and json brings it back."""
    written = state.write(at(Position(3, 6, 24)), CONTRACT)
    assert written == SAID
    assert list(written) == list(SAID)
    assert state.read(json.loads(json.dumps(written)), course(), CONTRACT) == Position(3, 6, 24)


def test_any_rank_of_any_number_reads_it() -> None:
    """In order, what one rank has done all have."""
    for world_size in (1, 2, 5):
        for rank in range(world_size):
            one = course(rank=rank, world_size=world_size)
            assert state.read(SAID, one, CONTRACT) == Position(3, 6, 24)


def test_a_share_is_said_and_read_where_there_is_one() -> None:
    """Of a feed that hands batches out as they come, or of one of several that share a rank's."""
    position = Position(3, 6, 24, 1, (2,))
    written = state.write(at(position, ordered=False, part=0, parts=1), CONTRACT)
    assert written == SAID | {
        "share": {"rank": 1, "world_size": 2, "part": 0, "parts": 1, "done": 1, "beyond": [2]},
    }
    assert state.read(json.loads(json.dumps(written)), course(), CONTRACT) == position


@pytest.mark.parametrize("change", [{"rank": 0}, {"world_size": 3}, {"part": 1, "parts": 2}])
def test_a_share_is_refused_by_others(change: dict[str, Any]) -> None:
    """They would hand out what it has, and leave out what it has not."""
    written = state.write(at(Position(3, 6, 24, 1, (2,))), CONTRACT)
    with pytest.raises(UsageError, match=r"one feed has handed out, .*, and that one has \w+=\d \(here \d\)"):
        state.read(written, course(**change), CONTRACT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stream": "val"}, "^the state is of a feed with stream='val' \\(here 'train'\\); connect to the same shards"),
        ({"catalog": "beef"}, "catalog='beef' \\(here 'c0ffee'\\)"),
        ({"batch_size": 8}, "batch_size=8 \\(here 4\\)"),
        ({"seed": 1, "window": 9}, "with seed=1 \\(here 7\\), window=9 \\(here 1\\); "),
        ({"shuffle": False}, "shuffle=False \\(here True\\)"),
        ({"run": 1}, "run=1 \\(here 2\\)"),
        ({"last": "pad"}, "last='pad' \\(here 'keep'\\)"),
        ({"version": 2}, "^the state has version 2, this release reads version 1$"),
        ({"version": None}, "^the state has version None, "),
        ({"more": 1, "yet": 2}, "^the state has more, yet, which no state of version 1 has$"),
        ({"epoch": -1}, "^state: epoch=-1: expected an integer in 0"),
        ({"batches": "6"}, "^state: batches='6': expected an integer in 0"),
        ({"samples": 51}, "^state: samples=51: expected an integer in 0..50$"),
        ({"samples": 49}, "^last='keep': 1 samples cannot be dealt to 2 ranks"),
        ({"share": 1}, "^state: share=1: expected a dict$"),
        ({"share": {"rank": 1, "done": 3}}, "^the state's share lacks beyond, part, parts, world_size; "),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, Any], says: str) -> None:
    """With what differs, both values, and what to do."""
    with pytest.raises(UsageError, match=says):
        state.read(SAID | change, course(), CONTRACT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"done": 5}, "^state: share: done=5: expected an integer in 0..4$"),
        ({"beyond": [1]}, "^state: share: beyond=1: expected an integer in 2..3$"),
        ({"beyond": [4]}, "^state: share: beyond=4: "),
        ({"beyond": 3}, "^state: share: beyond=3: expected a list$"),
    ],
)
def test_a_share_of_more_than_there_is_is_refused(change: dict[str, Any], says: str) -> None:
    """26 samples that are left are four steps on two ranks."""
    share = {"rank": 1, "world_size": 2, "part": 0, "parts": 1, "done": 1, "beyond": [3]}
    assert state.read(SAID | {"share": share}, course(), CONTRACT).beyond == (3,)
    with pytest.raises(UsageError, match=says):
        state.read(SAID | {"share": share | change}, course(), CONTRACT)


@pytest.mark.parametrize("missing", sorted(SAID.keys() - {"version"}))
def test_a_state_that_lacks_something_is_refused(missing: str) -> None:
    """By name."""
    with pytest.raises(UsageError, match=f"^the state lacks {missing}; it is not what state_dict\\(\\) returned$"):
        state.read({name: value for name, value in SAID.items() if name != missing}, course(), CONTRACT)


@pytest.mark.parametrize("given", [None, 3, "state", [1]])
def test_what_is_no_state_is_refused(given: Any) -> None:
    """A dict is expected."""
    with pytest.raises(UsageError, match="expected what state_dict"):
        state.read(given, course(), CONTRACT)


def test_another_pipeline_makes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The samples are the same; their pixels may be meant to differ."""
    with caplog.at_level(logging.WARNING, "feedmill"):
        state.read(SAID, course(), CONTRACT)
        assert not caplog.records
        assert state.read(SAID | {"fingerprint": "old"}, course(), CONTRACT) == Position(3, 6, 24)
    assert "fingerprint old, the servers have f00d" in caplog.text
