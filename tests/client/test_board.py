import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from feedmill.board import board
from feedmill.lookout import Sight
from feedmill.statuses import BadSample, Client, Status, parse
from feedmill_server.status import status
from server.snapshots import BUSY

ONE = parse(json.dumps(status(BUSY, "node")).encode())
BAD = BadSample("a.tar", "001", "ValueError: no", 2, 0)


def drawn(sights: Mapping[str, Sight | Status], width: int = 120, height: int | None = None) -> list[str]:
    """Return the lines of a board, which is drawn at time 100."""
    known = {url: sight if isinstance(sight, Sight) else Sight(sight, "", 100.0) for url, sight in sights.items()}
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(board(known, 100.0, width=width, height=height))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_server_is_a_line_and_all_are_the_first() -> None:
    """Figures stand below each other; who does not answer is told, with why and since when."""
    lines = drawn({"http://a:1": ONE, "http://b:1": Sight(None, "Connection refused", 93.0)})
    assert lines[:6] == [
        "server      state      samples/s  MB/s  busy  queue  clients  skipped  cached  workers' time",
        "in all      1 of 2            80   0.2   1/2      9                37       7  ▓████████████▒▒·········",
        "http://a:1  serving           80   0.2   1/2      9        2       37       7  ▓████████████▒▒·········",
        "http://b:1  no answer",
        "",
        "▓ read 2% 0.62 ms   █ decode 50% 12.5 ms   ▒ transform 10% 2.50 ms   · idle 38%   send 100 ms a batch",
    ]
    assert "http://a:1  node  Trainers set the pace: workers are busy 62 % of the time." in lines
    assert "http://b:1  Connection refused; last heard 7 s ago" in lines


def test_complaints_and_clients_are_put_together() -> None:
    """A sample that two servers have met is told once; a trainer that two serve is one address."""
    one = replace(ONE, bad=(BAD,), connections=(Client("10.0.0.5", 3, 500_000),))
    other = replace(
        ONE, bad=(BAD, replace(BAD, shard="b.tar", key="", skipped=0, failed=1)), connections=one.connections
    )
    lines = drawn({"http://a:1": one, "http://b:1": other})
    assert lines[-6:] == [
        "Bad samples, the newest first",
        "a.tar 001  ValueError: no  skipped 4 times, failed 0",
        "b.tar  ValueError: no  skipped 0 times, failed 1",
        "",
        "Clients",
        "10.0.0.5  connections: 2, requests unanswered: 6, MB on their way: 1.0",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 300])
def test_a_narrow_terminal_has_fewer_columns_and_no_figure_is_cut(width: int) -> None:
    """What says least goes first; the rates stay."""
    head, whole, *_ = lines = drawn({"http://cpu-17.cluster:9880": ONE}, width)
    assert all(len(line) <= width for line in lines)
    assert "…" not in whole or width < 60
    assert ("samples/s" in head) == (width >= 60)
    assert ("cached" in head) == (width >= 100)
    assert ("workers' time" in head) == (width >= 120)


def test_a_low_terminal_shows_those_in_trouble() -> None:
    """And says how many others there are."""
    sights: dict[str, Sight | Status] = {f"http://cpu-{n}:1": ONE for n in range(30)}
    sights["http://cpu-17:1"] = Sight(None, "no answer within 4 s")
    lines = drawn(sights, height=12)
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["in", "all"],
        ["http://cpu-0:1", "serving"],
        ["http://cpu-1:1", "serving"],
    ]
    assert lines[5].startswith("http://cpu-17:1  no answer")
    assert lines[6] == "and 26 more servers"


def test_no_servers_yet_are_no_figures() -> None:
    """Neither a division by nothing nor workers that idle."""
    lines = drawn({"http://a:1": Sight()})
    assert lines[1].split() == ["in", "all", "0", "of", "1", "0", "0.0", "0/0", "0", "0", "0"]
    assert "idle" not in "".join(lines)
