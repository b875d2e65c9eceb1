import json
from dataclasses import replace
from typing import Any

import pytest

from feedmill_server.snapshot import Point, SeenClient, SeenWorker, Snapshot
from feedmill_server.status import status, verdict
from server.snapshots import BUSY, DRAINING, NASTY, STARTING

IDLE = replace(BUSY, last=BUSY.history[1]._replace(at=140.0), queued=0)
SATURATED = replace(BUSY, last=BUSY.last._replace(seconds=(3.0, 50.0, 10.0, 6.0)))
STUCK = replace(IDLE, queued=9, clients=(SeenClient("6b", "", 4, 60_000_000),))


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        (STARTING, "Starting: "),
        (DRAINING, "Draining: "),
        (replace(BUSY, workers=()), "There are no workers"),
        (replace(BUSY, clients=()), "No trainer is connected."),
        (IDLE, "Trainers are connected, and ask for nothing."),
        (BUSY, "Trainers set the pace: workers are busy 62\N{NO-BREAK SPACE}% of the time."),
        (SATURATED, "The workers are the limit: busy 95\N{NO-BREAK SPACE}% of the time."),
        (STUCK, "Batches leave too slowly: 60 MB are on their way"),
    ],
)
def test_one_sentence_says_what_holds_a_server_up(snapshot: Snapshot, said: str) -> None:
    """By the figures of the last seconds."""
    assert verdict(snapshot).startswith(said)


def test_figures_are_of_the_last_seconds() -> None:
    """Rates and shares count from the first point of the last 20 s, totals from the start."""
    seen = status(BUSY, "node")
    assert (seen["samples_per_second"], seen["batches_per_second"], seen["bytes_per_second"]) == (80.0, 2.5, 250_000)
    assert seen["history"] == [[20.0, 64.0], [10.0, 64.0]]
    assert seen["stages"] == [
        {"stage": "read", "share": 0.025, "ms": 0.625},
        {"stage": "decode", "share": 0.5, "ms": 12.5},
        {"stage": "transform", "share": 0.1, "ms": 2.5},
    ]
    assert seen["send_ms"] == 100.0
    assert (seen["batches"], seen["skipped"], seen["uptime"]) == (90, 37, 40)
    assert seen["bad"][0]["key"] == seen["workers"][0]["key"] == NASTY


@pytest.mark.parametrize("snapshot", [STARTING, IDLE, replace(BUSY, history=(BUSY.last,))])
def test_where_nothing_happened_there_is_no_rate(snapshot: Snapshot) -> None:
    """Nor a division by nothing."""
    seen = status(snapshot, "node")
    assert (seen["samples_per_second"], seen["send_ms"], seen["stages"][0]["ms"]) == (0.0, None, None)


def test_a_page_stays_small_however_many_there_are() -> None:
    """A hundred workers and clients are listed, all are counted."""
    many: Any = replace(
        BUSY,
        workers=tuple(SeenWorker(i, "train", 0, 0, 0, "k" * 100, 0.0) for i in range(4096)),
        clients=tuple(SeenClient(f"{i}", "127.0.0.1", 1, 0) for i in range(1000)),
        history=tuple(Point(float(i), i, 64 * i, 10**7 * i, 64 * i) for i in range(151)),
    )
    seen = status(many, "node")
    assert (len(seen["workers"]), seen["workers_in_all"]) == (100, 4096)
    assert (len(seen["clients"]), seen["clients_in_all"]) == (100, 1000)
    assert len(json.dumps(seen)) < 64_000
