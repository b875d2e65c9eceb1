from feedmill_server.complaints import EVERY, Complaints

ANN, BOB = b"ann", b"bob"


def test_the_first_bad_message_is_told_of_and_the_next_are_counted() -> None:
    """Each client has a count of its own, told of with the first bad message after a while."""
    complaints = Complaints()
    assert complaints.due(ANN, 100.0) == 1
    assert [complaints.due(ANN, 100.0 + i) for i in range(5)] == [0] * 5
    assert complaints.due(BOB, 101.0) == 1
    assert complaints.due(ANN, 100.0 + EVERY) == 6
    assert complaints.due(ANN, 100.1 + EVERY) == 0
    assert complaints.due(BOB, 101.0 + EVERY) == 1


def test_those_who_have_stopped_are_forgotten() -> None:
    """Clients that come and go do not add up."""
    complaints = Complaints()
    for i in range(1000):
        assert complaints.due(b"%d" % i, i * EVERY) == 1
    assert len(complaints._recent) <= 3
