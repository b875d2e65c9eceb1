from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from feedmill_protocol import spans
from feedmill_protocol.messages import Get, Hello
from feedmill_protocol.tensors import FieldSpec
from feedmill_server.broker import Broker
from feedmill_server.builds import Stream
from feedmill_server.observer import Observer
from feedmill_server.slots import Slot, SlotPool

FIELDS = (FieldSpec("x", "uint8", (3, 4, 4)),)
ANN = b"\0ann"


@dataclass
class Team:
    """Workers that the test plays: 1 and 2."""

    count: int = 2
    restarts: int = 0
    channels: dict[int, None] = field(default_factory=lambda: {1: None, 2: None})

    def seconds(self) -> list[float]:
        return [1.0, 2.0, 3.0]

    def at(self, number: int) -> tuple[int, str, float]:
        return 5, f"key-{number}", 0.5


@pytest.fixture
def pool() -> Iterator[SlotPool]:
    made = SlotPool(1 << 20)
    yield made
    for slot in made._free:
        slot.close()


@pytest.fixture
def broker(pool: SlotPool) -> Iterator[Broker[Slot]]:
    counts = np.array([100], np.uint32)
    stream = Stream(0, "train", FIELDS, 16, ("a.tar",), counts, "catalog", "print")
    made = Broker([stream], pool, server="node", boot="boot", workers=2)
    yield made
    for build in made._builds.values():
        if build.slot is not None:
            build.slot.close()


@pytest.fixture
def observer(pool: SlotPool) -> Observer:
    return Observer(cast("Any", Team()), pool, cast("Any", SimpleNamespace(seconds=4.0)))


def ask(broker: Broker[Slot], batch: int = 0) -> None:
    get = Get(stream="train", fingerprint="print", seed=0, epoch=3, batch=batch, spans=1)
    broker.receive(ANN, get, spans.pack(np.array([[0, batch * 16, batch * 16 + 16]], np.uint32)), 0.0)


def finish(broker: Broker[Slot]) -> None:
    while work := broker.next_part(1):
        broker.done(1, ["key"] * work.rows, [])


def look(observer: Observer, broker: Broker[Slot], seconds: float) -> None:
    observer.tick(observer.snapshot.at + seconds, broker)


def test_a_look_shows_what_there_is_at_the_moment(observer: Observer, broker: Broker[Slot]) -> None:
    """Workers with what they have in hand, clients with what they are owed, and totals."""
    assert observer.snapshot.state == "starting"
    broker.receive(ANN, Hello(stream="train"), b"", 0.0)
    observer.came(ANN, "192.0.2.7")
    ask(broker)
    ask(broker, 1)
    broker.next_part(2)
    look(observer, broker, 1.0)
    seen = observer.snapshot
    assert (seen.state, seen.is_ready, seen.workforce, seen.queued) == ("serving", True, 2, 1)
    assert tuple(seen.workers[0]) == (1, "", 0, 0, -1, "", 0.0)
    assert tuple(seen.workers[1]) == (2, "train", 3, 0, 5, "key-2", 0.5)
    assert [tuple(client) for client in seen.clients] == [("616e6e", "192.0.2.7", 2, 0)]
    assert seen.last.seconds == (1.0, 2.0, 3.0, 4.0)
    assert (seen.slots, seen.memory_limit) == (1, 1 << 20)


def test_a_snapshot_does_not_change(observer: Observer, broker: Broker[Slot]) -> None:
    """Another thread reads it."""
    look(observer, broker, 1.0)
    before = observer.snapshot
    ask(broker)
    finish(broker)
    broker.tally.skipped["sample"] += 1
    assert (before.tally.batches, before.tally.skipped["sample"]) == (0, 0)
    look(observer, broker, 1.0)
    assert (observer.snapshot.tally.batches, observer.snapshot.last.samples) == (1, 16)
    assert before.tally.batches == 0


def test_it_looks_twice_a_second_and_at_once_when_draining_begins(observer: Observer, broker: Broker[Slot]) -> None:
    """Whoever balances load should know of that."""
    look(observer, broker, 1.0)
    first = observer.snapshot
    look(observer, broker, 0.25)
    assert observer.snapshot is first
    broker.drain()
    look(observer, broker, 0.25)
    assert observer.snapshot.state == "draining"
    look(observer, broker, 0.5)
    assert observer.snapshot is not first


def test_history_is_of_the_last_five_minutes(observer: Observer, broker: Broker[Slot]) -> None:
    """A point every two seconds, however often it looks."""
    for _ in range(1000):
        look(observer, broker, 0.5)
    history = observer.snapshot.history
    assert history[-1].at - history[0].at == pytest.approx(300)
    assert {round(b.at - a.at, 3) for a, b in pairwise(history)} == {2.0}


def test_pictures_are_copied_when_they_are_wanted_and_not_too_often(observer: Observer, broker: Broker[Slot]) -> None:
    """Of the newest batch; where nobody asks, nothing is copied."""
    ask(broker)
    finish(broker)
    look(observer, broker, 1.0)
    assert observer.snapshot.pictures
    assert observer.strip is None
    observer.want_strip()
    look(observer, broker, 1.0)
    first = observer.strip
    assert first is not None
    assert (first.epoch, first.batch, first.pixels.shape) == (3, 0, (16, 4, 4, 3))
    ask(broker, 1)
    finish(broker)
    observer.want_strip()
    look(observer, broker, 1.0)
    assert observer.strip is first
    look(observer, broker, 1.0)
    assert observer.strip is not None
    assert observer.strip.batch == 1


def test_addresses_of_clients_that_are_gone_are_forgotten(observer: Observer, broker: Broker[Slot]) -> None:
    """Clients come and go for weeks."""
    for number in range(100):
        observer.came(b"\0%d" % number, "192.0.2.7")
    look(observer, broker, 1.0)
    assert not observer._addresses
