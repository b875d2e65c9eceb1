"""Clients that die, stop, or want too much: what that costs the others."""

import signal
import threading
import time
from pathlib import Path

import numpy as np
import zmq

import feedmill
from faults import pipelines
from faults.digests import Note, note
from faults.mill import Mill, strike
from faults.oracle import assert_undisturbed
from faults.runs import TIMEOUT, run
from faults.trainer import assert_exact, trainer
from feedmill_protocol import codec, spans
from feedmill_protocol.messages import Get, Hello, Ping, Welcome
from integration.fakes import frames
from integration.processes import wait_until

FREE = 10.0
"""Seconds after which nothing of a client that is gone, or takes nothing, is in the way of others."""

BUSY = 5.0
"""Seconds more, for a busy machine."""

MIB = 2**20


def own_memory(pid: int) -> int:
    """Return the bytes of a process's own memory that are in use: not what it shares with its workers."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def wide_epochs(feed: feedmill.Feed, epochs: int) -> tuple[list[Note], float]:
    """Iterate; return what came, and the longest wait for a batch."""
    notes = []
    longest = 0.0
    for _ in range(epochs):
        asked = time.monotonic()
        for batch in feed.batches():
            longest = max(longest, time.monotonic() - asked)
            notes.append(note(batch))
            asked = time.monotonic()
    return notes, longest


def test_a_trainer_that_is_stopped_or_killed_is_soon_in_nobodys_way(narrow: Mill, tmp_path: Path) -> None:
    """The server's one slot is full of what a stopped trainer does not take; others have it back within 10 seconds.

    The trainer itself goes on where it was when it is let; and when it is killed, nothing of it is left.
    """
    with (
        trainer(tmp_path, "victim", [narrow.url], "wide", "--prefetch", "128", "--seed", "5") as victim,
        feedmill.connect(narrow.url, "wide", timeout=TIMEOUT) as feed,
    ):
        wait_until(lambda: victim.batches > 3, TIMEOUT, "it has begun")
        strike([victim.process.pid], signal.SIGSTOP)
        first, longest = wide_epochs(feed, 2)
        assert longest < FREE + BUSY
        strike([victim.process.pid], signal.SIGCONT)
        before = victim.batches
        wait_until(lambda: victim.batches > before + 150, TIMEOUT, "it goes on, beyond what it had in its buffers")
        victim.kill()
        second, longest = wide_epochs(feed, 1)
        assert longest < FREE
        assert_undisturbed(first + second, feed.plan, pipelines.wide)
    with feedmill.connect(narrow.url, "wide", seed=5, timeout=TIMEOUT) as feed:
        assert_exact(victim.records(), feed.plan, pipelines.wide)


def test_a_client_that_does_not_read_costs_no_more_than_what_it_asked_for(narrow: Mill) -> None:
    """However much it says: a server holds no answers for it beyond a bound, and others are served."""
    with feedmill.connect(narrow.url, "wide", timeout=TIMEOUT) as feed, zmq.Context() as context:
        assert_undisturbed(run(feed, 1), feed.plan, pipelines.wide)
        dealer = context.socket(zmq.DEALER)
        dealer.set(zmq.RCVHWM, 1)
        dealer.set(zmq.LINGER, 0)
        dealer.connect(narrow.url)
        dealer.send_multipart(frames(Hello(stream="wide")))
        assert dealer.poll(10_000)
        welcome = codec.decode(dealer.recv_multipart()[0])
        assert isinstance(welcome, Welcome)
        for batch in range(200):
            payload = spans.pack(np.array([[batch % 4, 0, 16]], np.uint32))
            get = Get(
                stream="wide", fingerprint=welcome.fingerprint, seed=batch, epoch=0, batch=batch, spans=1, attempt=1
            )
            dealer.send_multipart([*frames(get, payload)])
        before = own_memory(narrow.broker)
        for _ in range(20_000):
            dealer.send_multipart(frames(Ping()))
        notes, longest = wide_epochs(feed, 2)
        assert longest < FREE + BUSY
        assert own_memory(narrow.broker) < before + 32 * MIB
        dealer.close()
    assert_undisturbed(notes, feed.plan, pipelines.wide, first=1)


def test_a_greedy_client_does_not_starve_a_modest_one(mills: list[Mill]) -> None:
    """Clients take turns: two requests get on as fast beside 256 as beside two."""
    mill = mills[0]
    greedy_notes: list[Note] = []
    enough = threading.Event()
    with (
        feedmill.connect(mill.url, "slow", seed=1, prefetch=256, timeout=TIMEOUT) as greedy,
        feedmill.connect(mill.url, "slow", seed=2, prefetch=2, timeout=TIMEOUT) as modest,
    ):

        def devour() -> None:
            while not enough.is_set():
                greedy_notes.extend(map(note, greedy.batches()))

        thread = threading.Thread(target=devour)
        thread.start()
        wait_until(lambda: greedy_notes, TIMEOUT, "the greedy one is at it")
        before = greedy.stats().batches
        try:
            notes = run(modest, 2)
            meanwhile = greedy.stats().batches - before
        finally:
            enough.set()
            thread.join(TIMEOUT)
        assert meanwhile < 4 * len(notes)
        assert_undisturbed(notes, modest.plan, pipelines.slow)
        assert_undisturbed(greedy_notes, greedy.plan, pipelines.slow)
