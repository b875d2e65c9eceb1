import asyncio
import io
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from feedmill_server.contact import Strip
from feedmill_server.page import Page
from feedmill_server.snapshot import Snapshot
from feedmill_server.web import Response
from server.snapshots import BUSY, DRAINING, STARTING

STRIP = Strip("train", 3, 17, np.zeros((4, 16, 16, 3), np.uint8))


@dataclass
class Seen:
    """An observer that the test plays."""

    snapshot: Snapshot = BUSY
    strip: Strip | None = None
    wanted: int = 0
    copies: bool = True

    def want_strip(self) -> None:
        self.wanted += 1
        if self.copies:
            self.strip = STRIP._replace()


def ask(path: str, seen: Seen | None = None, now: float = 140.0) -> Response:
    clock = SimpleNamespace(now=now)

    def tick() -> float:
        clock.now += 0.01
        return float(clock.now)

    return asyncio.run(Page("node", cast("Any", seen or Seen()), tick).answer(path))


def test_the_page_allows_nothing_but_its_own_script_and_style() -> None:
    """By a policy that a browser holds it to; nothing is fetched from elsewhere, and it is small."""
    response = ask("/")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    html = response.body.decode()
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|https?://(?!www\.w3\.org/2000/svg)", html)
    assert len(response.body) < 16_000


def test_the_status_is_json() -> None:
    """Of the latest snapshot."""
    response = ask("/status.json")
    assert response.content_type == "application/json"
    assert json.loads(response.body)["server"] == "node"


@pytest.mark.parametrize(
    ("snapshot", "now", "healthz", "readyz"),
    [
        (BUSY, 140.0, "ok\n", "ok\n"),
        (STARTING, 4000.0, "ok\n", "starting\n"),
        (DRAINING, 140.0, "ok\n", "draining\n"),
        (BUSY, 146.0, "the server's thread has not come round for 6 s\n", "the server's thread has not come"),
    ],
)
def test_health_is_that_of_the_servers_thread_and_readiness_that_of_its_work(
    snapshot: Snapshot, now: float, healthz: str, readyz: str
) -> None:
    """503 with a reason, else 200. To start may take long, and is no illness."""
    for path, said in (("/healthz", healthz), ("/readyz", readyz)):
        response = ask(path, Seen(snapshot), now)
        assert response.body.decode().startswith(said)
        assert response.status == (HTTPStatus.OK if said == "ok\n" else HTTPStatus.SERVICE_UNAVAILABLE)


def test_a_server_without_workers_is_not_ready() -> None:
    """They may be being replaced; until then others are better asked."""
    seen = Seen(cast("Snapshot", SimpleNamespace(at=140.0, state="serving", is_ready=False)))
    assert ask("/readyz", seen).body == b"there are no workers\n"
    assert ask("/healthz", seen).status == HTTPStatus.OK


def test_the_picture_is_drawn_of_a_copy_that_was_asked_for() -> None:
    """Once for each copy."""
    seen = Seen()
    response = ask("/newest.jpg", seen)
    assert (response.status, response.content_type, seen.wanted) == (HTTPStatus.OK, "image/jpeg", 1)
    with Image.open(io.BytesIO(response.body)) as picture:
        assert picture.width > 100


@pytest.mark.parametrize("strip", [None, STRIP])
def test_a_picture_that_does_not_come_is_not_waited_for(strip: Strip | None) -> None:
    """Then the last one is shown, or it is said that there is none."""
    response = ask("/newest.jpg", Seen(strip=strip, copies=False))
    assert response.status == (HTTPStatus.OK if strip else HTTPStatus.NOT_FOUND)


def test_other_paths_are_not_found() -> None:
    """The answer names those that there are."""
    response: Any = ask("/etc/passwd")
    assert response.status == HTTPStatus.NOT_FOUND
    assert b"/metrics" in response.body
