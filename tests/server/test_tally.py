from feedmill_server.tally import BadSample, Tally


def test_a_bad_sample_is_told_once_with_how_often_and_why_the_last_time() -> None:
    """The latest comes last, and what a copy says stays."""
    tally = Tally()
    tally.tell("train", "a.tar", "1", "odd at 0x1", skipped=True)
    tally.tell("train", "a.tar", "2", "odd", skipped=False)
    before = tally.copy()
    tally.tell("train", "a.tar", "1", "odd at 0x2", skipped=True)
    tally.tell("train", "a.tar", "1", "odd at 0x3", skipped=False)
    assert list(tally.recent.values()) == [
        BadSample("train", "a.tar", "2", "odd", failed=1),
        BadSample("train", "a.tar", "1", "odd at 0x3", skipped=2, failed=1),
    ]
    assert [bad.key for bad in before.recent.values()] == ["1", "2"]


def test_no_more_than_twenty_are_kept() -> None:
    """All are counted elsewhere; a bad disk must not fill the memory."""
    tally = Tally()
    for number in range(100):
        tally.tell("train", "a.tar", f"{number}", "odd", skipped=True)
    assert [bad.key for bad in tally.recent.values()] == [f"{number}" for number in range(80, 100)]
