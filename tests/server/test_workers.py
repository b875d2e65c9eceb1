from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from feedmill_protocol.errors import PipelineError
from feedmill_server.channel import Channel, ChannelClosed
from feedmill_server.slots import Slot
from feedmill_server.workers import Workers

LOADED = ([{"fields": [["x", ["jpg"]]], "batch_size": 8, "source": "abc"}], "torch 2, feedmill 1, python 3.11")


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Two workers to be, whose fork server is played by the test."""
    made = Workers(2, [("mine.py:train", False)], "")
    made._loaded = LOADED
    made._control, end = Channel.pair()
    with end:
        yield made
        made.close()


@pytest.fixture
def worker(workers: Workers) -> Iterator[Channel]:
    """Play worker 1."""
    workers.channels[1], end = Channel.pair()
    workers._known_slots[1] = set()
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
        (("loaded", [LOADED[0][0] | {"source": "xyz"}], LOADED[1]), "^mine.py:train was changed while it was served"),
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
    workers._known_slots[1].update(gone)
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
