"""Snapshots of servers in several states, for the tests of what is made of them."""

from collections import Counter
from dataclasses import replace

from feedmill_server.snapshot import Point, SeenClient, SeenWorker, Snapshot
from feedmill_server.tally import BadSample, Tally

NASTY = "n01<img src=x onerror=alert(1)>"

STARTING = Snapshot(at=100.0, begun=100.0, state="starting", last=Point(100.0))

BUSY = Snapshot(
    at=140.0,
    begun=100.0,
    state="serving",
    last=Point(140.0, 90, 2880, 9_000_000, 3000, (2.0, 40.0, 8.0, 6.0)),
    history=(
        Point(100.0),
        Point(120.0, 40, 1280, 4_000_000, 1400, (1.0, 20.0, 4.0, 1.0)),
        Point(130.0, 60, 1920, 6_000_000, 2200, (1.5, 30.0, 6.0, 2.0)),
    ),
    tally=Tally(
        parts=190,
        made=3000,
        batches=90,
        samples=2880,
        payload=9_000_000,
        cache_hits=7,
        failed=2,
        skipped=Counter(shard=32, sample=4, worker=1),
        recent={("train", "a.tar", NASTY): BadSample("train", "a.tar", NASTY, "ValueError: no", skipped=1)},
    ),
    workforce=2,
    workers=(SeenWorker(1, "train", 3, 17, 5, NASTY, 0.25), SeenWorker(3)),
    restarts=1,
    clients=(SeenClient("6b8b4567", "127.0.0.1", 4, 1_000_000), SeenClient("6b8b4568", "", 0, 0)),
    queued=9,
    slots=5,
    memory=20_000_000,
    memory_limit=64_000_000,
    pictures=True,
)
"""Of 2 workers' 40 s between 120 and 140, 25 went into samples: 1, 20 and 4."""

DRAINING = replace(BUSY, state="draining")
