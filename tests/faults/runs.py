"""Iterating while things happen."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import feedmill
from faults.digests import Note, note

__all__ = ["TIMEOUT", "later", "run"]

TIMEOUT = 60.0
"""Seconds in which a server that is well makes progress, however busy the machine; a start takes 3 on an idle one."""


def run(feed: feedmill.Feed, epochs: int, acts: Mapping[int, Callable[[], object]] | None = None) -> list[Note]:
    """Note whole epochs; do something when so many batches have come."""
    notes = []
    for _ in range(epochs):
        for batch in feed.batches():
            notes.append(note(batch))
            if acts and (act := acts.get(len(notes))):
                act()
    return notes


@contextmanager
def later() -> Iterator[Callable[[float, Callable[[], object]], None]]:
    """Do things after some seconds, while a feed is waited for; at the end, all of them have been done."""
    timers: list[threading.Timer] = []

    def after(seconds: float, act: Callable[[], object]) -> None:
        timers.append(threading.Timer(seconds, act))
        timers[-1].start()

    yield after
    for timer in timers:
        timer.join()
