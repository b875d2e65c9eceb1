import json
from dataclasses import replace
from typing import Any

import pytest

from feedmill.statuses import BadSample, Client, Stage, parse, total
from feedmill_protocol.errors import ProtocolError
from feedmill_server.status import status
from server.snapshots import BUSY, NASTY, STARTING

SAID: dict[str, Any] = status(BUSY, "node")


def said(**changes: object) -> bytes:
    """Return a status as it comes, with some fields changed."""
    return json.dumps(SAID | changes).encode()


def test_what_a_server_says_of_itself_is_read() -> None:
    """All that the board shows; a field from the future is left alone."""
    seen = parse(said(novelty=1))
    assert (seen.server, seen.state, seen.samples_per_second, seen.made_per_second) == ("node", "serving", 80.0, 80.0)
    assert (seen.workers_busy, seen.workers, seen.workforce, seen.queued, seen.clients) == (1, 2, 2, 9, 2)
    assert seen.stages["decode"] == Stage(0.5, 12.5)
    assert seen.connections == (Client("127.0.0.1", 4, 1_000_000), Client("", 0, 0))
    assert seen.bad == (BadSample("a.tar", NASTY, "ValueError: no", 1, 0),)
    assert seen.verdict == "Trainers set the pace: workers are busy 62 % of the time."
    assert parse(json.dumps(status(STARTING, "node")).encode()).workers == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 500_000, "is no JSON"),
        (b"1" * 100_000, "is no JSON"),
        (b"[]", "is no object"),
        (b"{}", "has stages=None, expected a list"),
        (said(server=1), "has server=1, expected a string"),
        (said(queued=-1), "has queued=-1, expected a number in 0.."),
        (said(queued=0.5), "has queued=0.5, expected an integer"),
        (said(skipped=True), "has skipped=True, expected a number"),
        (said(uptime=float("nan")), "has uptime=nan, expected a number"),
        (said(uptime=10**30), "has uptime=1000"),
        (said(workforce=[[]]), "has workforce=list, expected a number"),
        (said(stages=[]), "has no stage 'decode'"),
        (said(stages=[{"stage": "read", "share": 1.1, "ms": 1}]), "has share=1.1, expected a number in 0..1;"),
        (said(clients=["me"]), "is no object"),
        (said(bad=[{"shard": None}]), "has shard=None, expected a string"),
    ],
)
def test_what_is_no_status_is_refused(body: bytes, says: str) -> None:
    """With what is wrong, on one short line."""
    with pytest.raises(ProtocolError) as caught:
        parse(body)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


def test_texts_cannot_move_the_cursor_nor_fill_the_screen() -> None:
    """Whatever a terminal would obey is escaped, and long texts are cut."""
    seen = parse(said(server="\x1b[2Jnode\r\n\u202e", verdict="x" * 10_000))
    assert seen.server == r"\x1b[2Jnode\r\n\u202e"
    assert len(seen.verdict) == 2000


def test_servers_are_added_up() -> None:
    """Rates and counts are sums; shares are weighted by workers, milliseconds by samples."""
    one = parse(said())
    idle = replace(
        one,
        workers=6,
        made_per_second=20.0,
        stages={name: Stage(0.1, 30.0) for name in one.stages},
        samples_per_second=5.0,
    )
    seen = total([one, None, idle])
    assert (seen.servers, seen.answering, seen.workers, seen.samples_per_second) == (3, 2, 8, 85.0)
    assert (seen.queued, seen.cache_hits) == (18, 14)
    # One's 2 workers decode half of their time, 6 others a tenth: 1.6 s of 8 in a second, for 100 samples.
    assert seen.stages["decode"].share == pytest.approx(1.6 / 8)
    assert seen.stages["decode"].ms == pytest.approx(1600 / 100)
    assert seen.send_ms == one.send_ms
    assert total([None]).stages["read"] == Stage(0.0, None)
