import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from feedmill_protocol.errors import PipelineError
from feedmill_server.channel import Channel, ChannelClosed
from feedmill_server.descriptions import PipelineFacts
from feedmill_server.phases import Phase
from feedmill_server.slots import Slot
from feedmill_server.watch import STUCK, Watch
from feedmill_server.workers import LOAD_TIMEOUT, Lost, Workers, _Worker

FACTS = PipelineFacts([["x", ["jpg"]]], 8, "abc", [])  # type: ignore[list-item] # as it comes out of a channel
LOADED = ([FACTS], "torch 2, feedmill 1, python 3.11")


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Two workers to be, whose fork server is played by the test."""
    made = Workers(2, [("mine.py:train", False)], "", timeout=5.0, memory=None)
    made._loaded = LOADED
    made._control, end = Channel.pair()
    with end:
        yield made
        made.close()


@pytest.fixture
def worker(workers: Workers) -> Iterator[Channel]:
    """Play worker 1."""
    workers.channels[1], end = Channel.pair()
    watch, fd = Watch.create()
    os.close(fd)
    workers._workers[1] = _Worker(watch, born=0.0)
    worker = Channel(end)
    yield worker
    worker.close()


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot(1, 4096)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (("unfit", "mine.py: no such file"), "^mine.py: no such file$"),
        (("loaded", [FACTS._replace(source="xyz")], LOADED[1]), "^mine.py:train was changed while it was served"),
        (("loaded", LOADED[0], "torch 3"), "^torch 2, .* became torch 3 meanwhile"),
    ],
)
def test_pipelines_that_are_not_what_they_were_are_not_served(
    workers: Workers, answer: tuple[Any, ...], complaint: str
) -> None:
    """Another fork server may find an edited file; nobody is forked from that one."""
    with pytest.raises(PipelineError, match=complaint):
        workers.refill(0.0, *answer)
    assert not workers.channels


def test_pipelines_that_are_what_they_were_are_served_again(workers: Workers) -> None:
    """By as many workers as before."""
    assert len(workers.refill(0.0, "loaded", *LOADED)) == 2


def test_a_busy_worker_is_told_later_of_slots_that_are_gone(workers: Workers, worker: Channel, slot: Slot) -> None:
    """The broker does not wait for it, and forgets none of them."""
    gone = range(2000)
    workers._workers[1].slots.update(gone)
    left = [number for number in gone if not workers.drop(number)]
    assert 0 < len(left) < len(gone)
    told: list[list[Any]] = []
    while len(told) < len(gone):
        with suppress(TimeoutError):
            while True:
                told.append(worker.receive(0)[0])
        left = [number for number in left if not workers.drop(number)]
    assert sorted(told) == [["drop", number] for number in gone]
    assert not left


def test_a_worker_that_does_not_read_is_cut_off(
    workers: Workers, worker: Channel, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    """It learns so when it has read what it was sent; the broker did not wait for it."""
    while not caplog.records:
        workers.give(1, slot, b"x" * 1000)
    assert caplog.messages == ["worker 1 does not read what it is sent; ending it"]
    with pytest.raises(ChannelClosed):
        worker.send("done")
    with pytest.raises(ChannelClosed):
        workers.channels[1].receive(0)


def test_no_worker_is_forked_by_a_dead_fork_server(workers: Workers) -> None:
    """That it is dead is found out elsewhere; the worker to be is as good as dead itself."""
    control, end = Channel.pair()
    end.close()
    workers.control.close()
    workers._control = control
    workers._due.append(0.0)
    (number,) = workers.replace(0.0)
    with pytest.raises(ChannelClosed):
        workers.channels[number].receive(0)


# Workers that hang.


def look(workers: Workers, seconds: float, *, busy: bool = True) -> list[int]:
    """Let time pass as it does for a broker; return who cannot be ended."""
    beyond: list[int] = []
    for _ in range(round(4 * seconds)):
        clock[0] += 0.25
        beyond = workers.look(lambda _: busy, clock[0])
    return beyond


clock = [1000.0]


def signals(fork_server: Channel) -> list[int]:
    """Return what the fork server was told to send."""
    sent = []
    with suppress(TimeoutError):
        while True:
            (kind, number, signum), _ = fork_server.receive(0)
            assert (kind, number) == ("signal", 1)
            sent.append(signum)
    return sent


@pytest.fixture
def fork_server(workers: Workers) -> Iterator[Channel]:
    """Play the fork server."""
    workers.control.close()
    workers._control, end = Channel.pair()
    fork_server = Channel(end)
    yield fork_server
    fork_server.close()


def test_a_worker_that_makes_no_progress_is_ended_in_ever_harder_ways(
    workers: Workers, worker: Channel, fork_server: Channel
) -> None:
    """First it may say where it is, then it is killed, and then it is given up."""
    workers._workers[1].watch.beat()
    look(workers, 0.25)
    assert look(workers, 4.75) == []
    assert signals(fork_server) == []
    assert look(workers, 0.5) == []
    assert signals(fork_server) == [STUCK]
    assert look(workers, 1.0) == []
    assert signals(fork_server) == [signal.SIGKILL]
    assert look(workers, 1.0) == [1]
    assert signals(fork_server) == []


def test_a_worker_that_gets_on_or_has_nothing_to_do_is_left_alone(
    workers: Workers, worker: Channel, fork_server: Channel
) -> None:
    """The time-out is for one sample, not for a part; a worker that waits for work does not hang."""
    for _ in range(3):
        workers._workers[1].watch.beat()
        look(workers, 4.75)
    look(workers, 20.0, busy=False)
    assert signals(fork_server) == []


def test_time_in_which_the_broker_stood_still_does_not_count(
    workers: Workers, worker: Channel, fork_server: Channel
) -> None:
    """A container that is paused stops workers too."""
    workers._workers[1].watch.beat()
    look(workers, 4.0)
    clock[0] += 3600.0
    look(workers, 0.5)
    assert signals(fork_server) == []


def test_the_end_of_a_worker_that_hung_says_where(
    workers: Workers, worker: Channel, fork_server: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason in short, the log with the whole stack; the key is that of the sample in hand."""
    watch = workers._workers[1].watch
    watch.beat()
    watch.begin(3, "0007")
    look(workers, 6.0)
    stack = 'Stack (most recent call first):\n  File "/home/me/augment.py", line 12 in wait\n'
    watch.say(stack)
    reason = "took more than 5 s (--sample-timeout); it hung in: augment.py:12 in wait"
    assert workers.remove(1, "ended with signal 12", clock[0]) == Lost(reason, 3, "0007")
    assert caplog.messages == [f"worker 1 ended with signal 12; replacing it. Sample 0007: {reason}\n{stack}"]


def test_what_workers_that_ended_have_spent_counts_on(workers: Workers, worker: Channel) -> None:
    """A counter never goes down; the replacement begins at nothing."""
    watch = workers._workers[1].watch
    watch.begin(3, "0007")
    watch.lap(Phase.DECODE)
    spent = workers.seconds()
    assert spent[Phase.DECODE] > 0
    assert workers.at(1) == (3, "0007", 0.0)
    workers._number = 2
    workers.remove(1, "ended with signal 9", 0.0)
    assert workers.seconds() == spent
    assert workers.restarts == 0
    assert workers.replace(10.0) == [3]
    assert (workers.seconds(), workers.restarts) == (spent, 1)


def test_a_kill_from_outside_counts_half(workers: Workers, worker: Channel, fork_server: Channel) -> None:
    """Somebody may have meant the process, not the sample."""
    watch = workers._workers[1].watch
    watch.begin(3, "0007")
    reason = "the worker process ended with signal 9 on this sample, again and again"
    assert workers.remove(1, "ended with signal 9", clock[0]) == Lost(reason, 3, "0007", 0.5)


def test_a_worker_that_is_never_forked_is_the_fork_servers_fault(
    workers: Workers, worker: Channel, fork_server: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """That one is killed, and no sample blamed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        workers._process = process
        look(workers, 9.5)
        assert process.poll() is None
        assert look(workers, 1.0) == []
        assert process.wait(5) == -signal.SIGKILL
    assert signals(fork_server) == []
    assert caplog.messages[0] == "the fork server has not forked worker 1 in 10 s; killing it"


# Fork servers that die.


@pytest.fixture
def mortal(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Have fork servers be processes that do nothing."""

    def start(now: float) -> None:
        workers._started, workers._filled = now, False
        workers._control, end = Channel.pair()
        with end:
            workers._process = subprocess.Popen(["/bin/sleep", "60"])

    monkeypatch.setattr(workers, "start", start)
    workers.control.close()
    workers.start(0.0)
    return workers


def test_a_fork_server_that_keeps_dying_is_replaced_ever_later(
    mortal: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, then after a pause that grows to half a minute; after a good minute, at once again."""
    now = 10.0
    for pause in (0, 1, 2, 4, 8, 16, 30, 30):
        mortal.bury_fork_server(now)
        assert not mortal.is_control(0)
        assert not pause or not mortal.restart(now + pause - 0.1)
        now += pause
        assert mortal.restart(now)
        assert not mortal.restart(now)
        now += 1.0
    assert caplog.messages[0] == "the fork server ended with signal 9, death 1 in a row; starting another"
    assert caplog.messages[3] == "the fork server ended with signal 9, death 4 in a row; starting another in 4 s"
    mortal.bury_fork_server(now + 60.0)
    assert mortal.restart(now + 60.0)


def test_a_fork_server_that_never_gets_ready_is_killed(mortal: Workers, caplog: pytest.LogCaptureFixture) -> None:
    """A disk may hang while it imports."""
    assert not mortal.restart(LOAD_TIMEOUT - 1)
    assert mortal._process is not None
    assert mortal._process.poll() is None
    assert not mortal.restart(LOAD_TIMEOUT)
    assert mortal._process.wait(5) == -signal.SIGKILL
    assert caplog.messages == ["the fork server was not ready within 120 s; killing it"]


def test_workers_that_cannot_be_started_are_started_later(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors, for example; what is there goes on meanwhile."""

    def _refuse() -> tuple[Watch, int]:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "create", _refuse)
        assert workers.fill(0.0) == []
    assert caplog.messages == ["no worker can be started (Too many open files); trying again in 1 s"] * 2
    assert workers.replace(0.5) == []
    assert len(workers.replace(1.0)) == 2


def test_a_fork_server_that_cannot_be_started_is_started_later(
    mortal: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What there was too little of may have killed the last one, and passes."""

    def _refuse(now: float) -> None:
        raise OSError(12, "Cannot allocate memory")

    mortal.bury_fork_server(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(mortal, "start", _refuse)
        assert not mortal.restart(0.0)
    assert caplog.messages[1] == "the fork server cannot be started (Cannot allocate memory); trying again in 30 s"
    assert not mortal.restart(29.0)
    assert mortal.restart(30.0)


def test_a_worker_that_no_signal_ends_takes_the_fork_server_along(
    mortal: Workers, worker: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be one that passes no signals on; the kernel kills the workers with it, before they write again."""
    mortal._workers[1].watch.beat()
    assert look(mortal, 8.0) == [1]
    assert mortal._process is not None
    assert mortal._process.wait(5) == -signal.SIGKILL
