"""What comes over TCP connections and is no whole message: who is cut, and when."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from feedmill_sockets.inflow import Inflow, may_hold
from integration.processes import wait_until

MIB = 2**20


class Ends:
    """Pairs of TCP connections to one port, of which our ends stand for libzmq's."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self._listener.getsockname()[1]

    def make(self) -> tuple[socket.socket, socket.socket]:
        """Return our end, and theirs."""
        theirs = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=5))
        return self._stack.enter_context(self._listener.accept()[0]), theirs


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


@pytest.fixture
def beats() -> Iterator[float]:
    """Count up far enough that every time is one to look at."""
    return (1000.0 * number for number in count(1))


def watched(ends: Ends, inflow: Inflow, sends: int) -> tuple[socket.socket, socket.socket]:
    """Return a connection over which so many bytes have come."""
    ours, theirs = ends.make()
    assert inflow.opened(ours.fileno(), ends.port) == "127.0.0.1"
    send(ours, theirs, sends)
    return ours, theirs


def send(ours: socket.socket, theirs: socket.socket, nbytes: int) -> None:
    theirs.sendall(bytes(nbytes))
    wait_until(lambda: len(ours.recv(2 * nbytes, socket.MSG_PEEK)) >= nbytes, 5, "it has come")
    ours.recv(2 * nbytes)


def is_cut(theirs: socket.socket) -> bool:
    """Tell whether the other side sees the end of a connection."""
    theirs.settimeout(0.1)
    try:
        return theirs.recv(1) == b""
    except TimeoutError:
        return False


def test_who_sends_more_than_any_message_is_cut_a_beat_later(ends: Ends, beats: Iterator[float]) -> None:
    """A beat later, because whoever receives may have found whole messages in it by then."""
    with ExitStack() as stack:
        inflow = Inflow(may_hold(10_000))
        stack.callback(inflow.close)
        modest, modest_there = watched(ends, inflow, 10_000)
        greedy, greedy_there = watched(ends, inflow, 100_000)
        assert inflow.tick(next(beats)) == []
        assert inflow.tick(next(beats)) == [greedy.fileno()]
        assert is_cut(greedy_there)
        assert not is_cut(modest_there)
        assert inflow.tick(next(beats)) == []
        assert modest.fileno() not in inflow.tick(next(beats))


def test_whole_messages_are_no_debt(ends: Ends, beats: Iterator[float]) -> None:
    """However much comes in them: counting begins anew with each."""
    with ExitStack() as stack:
        inflow = Inflow(may_hold(10_000))
        stack.callback(inflow.close)
        ours, theirs = watched(ends, inflow, 0)
        for _ in range(20):
            send(ours, theirs, 9_000)
            inflow.heard(ours.fileno())
            assert inflow.tick(next(beats)) == []
        for _ in range(4):
            send(ours, theirs, 9_000)
            assert inflow.tick(next(beats)) == []
        assert inflow.tick(next(beats)) == [ours.fileno()]


def test_what_the_kernel_has_is_no_debt(ends: Ends, beats: Iterator[float]) -> None:
    """Where libzmq's thread does not get to run, whole messages of an honest peer pile up there."""
    with ExitStack() as stack:
        inflow = Inflow(may_hold(10_000))
        stack.callback(inflow.close)
        ours, theirs = watched(ends, inflow, 5_000)
        theirs.sendall(bytes(60_000))
        wait_until(lambda: len(ours.recv(60_000, socket.MSG_PEEK)) == 60_000, 5, "it has come")
        assert [inflow.tick(next(beats)) for _ in range(3)] == [[], [], []]
        ours.recv(60_000)
        assert [inflow.tick(next(beats)) for _ in range(2)] == [[], [ours.fileno()]]


def test_of_many_the_largest_go_until_the_rest_is_bearable(ends: Ends, beats: Iterator[float]) -> None:
    """No one is too large; all together are."""
    with ExitStack() as stack:
        inflow = Inflow(may_hold(MIB), total=2 * MIB)
        stack.callback(inflow.close)
        lines = [watched(ends, inflow, nbytes)[0].fileno() for nbytes in (20_000, 50_000, 30_000, 100_000)]
        assert inflow.tick(next(beats)) == []
        assert inflow.tick(next(beats)) == [lines[3], lines[1]]
        assert inflow.tick(next(beats)) == []


def test_what_those_leave_who_go_counts_until_all_is_read(ends: Ends) -> None:
    """It may be whole messages, and nobody knows."""
    inflow = Inflow(may_hold(MIB))
    ours, _ = watched(ends, inflow, 50_000)
    inflow.closed(ours.fileno())
    assert 50_000 * 32 <= inflow.left <= may_hold(50_000)
    inflow.drained()
    assert inflow.left == 0


def test_a_number_that_is_another_sockets_by_now_is_let_alone(ends: Ends) -> None:
    """The library tells late. What it tells of may be closed, a file, a socket of another kind, or to another port."""
    inflow = Inflow(0)
    ours, theirs = ends.make()
    one, two = socket.socketpair()
    with one, two:
        assert inflow.opened(one.fileno(), ends.port) == ""
    assert inflow.opened(one.fileno(), ends.port) == ""
    assert inflow.opened(0, ends.port) == ""
    assert inflow.opened(ours.fileno(), ends.port + 1) == ""
    theirs.close()
    assert inflow.patience > 1000, "nothing is watched"


def test_a_look_takes_microseconds(ends: Ends, beats: Iterator[float]) -> None:
    """Less than 20 for each connection, on any machine; the beat slows down where that becomes too much of a core."""
    spent = iter([0.0, 1.0])
    inflow = Inflow(0, clock=lambda: next(spent))
    watched(ends, inflow, 0)
    inflow.tick(next(beats))
    assert inflow.patience == 50.0
    inflow.close()
    inflow = Inflow(may_hold(MIB))
    for _ in range(50):
        watched(ends, inflow, 1)
    begun = time.thread_time()
    for _ in range(20):
        inflow.tick(next(beats))
    assert time.thread_time() - begun < 20 * 50 * 20e-6
    inflow.close()
