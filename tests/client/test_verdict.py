"""The verdict, from measurements."""

import pytest

from feedmill.verdict import Verdict, judge


@pytest.mark.parametrize(
    ("batches", "elapsed", "waited", "working", "limit"),
    [
        (15, 10, 9, 1.0, "unknown"),
        (100, 10, 9, None, "unknown"),
        (100, 0, 0, 1.0, "unknown"),
        (100, 10, 0.4, 0.9, "fed"),
        (100, 10, 0.4, 0.5, "fed"),
        (100, 10, 0.0, 0.49, "trainer-bound"),
        (100, 10, 0.5, 0.69, "network-bound"),
        (100, 10, 0.5, 0.7, "decode-bound"),
    ],
)
def test_the_limit_follows_from_who_waits(
    batches: int, elapsed: float, waited: float, working: float | None, limit: str
) -> None:
    """The trainer, the servers, or neither; and nothing is said of what was hardly measured."""
    assert judge(batches, elapsed, waited, working=working, servers=1).limit == limit


@pytest.mark.parametrize(
    ("waited", "servers", "more"),
    [(5.0, 1, 1), (5.0, 4, 4), (7.5, 1, 3), (7.5, 2, 6), (2.0, 4, 1), (6.0, 2, 3), (10.0, 1, 999), (0.6, 1, 1)],
)
def test_so_many_servers_are_missing_as_the_trainer_would_be_faster(waited: float, servers: int, more: int) -> None:
    """One that waits half of its time needs twice the servers; one that only waits, more than anybody has."""
    assert judge(100, 10.0, waited, working=1.0, servers=servers) == Verdict("decode-bound", more)


def test_a_verdict_is_a_sentence() -> None:
    """With what would help."""
    assert str(Verdict("decode-bound", 1)) == "decode-bound: 1 more server would feed this trainer"
    assert str(Verdict("decode-bound", 3)) == "decode-bound: 3 more servers would feed this trainer"
    assert str(Verdict("fed")) == "fed: the trainer hardly waits"
    for limit in ("unknown", "network-bound", "trainer-bound"):
        assert str(Verdict(limit)).startswith(f"{limit}: ")
