"""Networks that cut, hold, delay and garble: every batch comes as it was made, and the feed goes on."""

import pytest

import feedmill
from faults import pipelines
from faults.mill import Mill
from faults.oracle import assert_undisturbed
from faults.proxy import FaultProxy, Way
from faults.runs import TIMEOUT, later, run
from integration.processes import wait_until

HELD = 3.0
"""Seconds for which bytes are held: longer than a client needs to have its doubts."""

WAYS = ["up", "down", "both"]


def ways(proxy: FaultProxy, which: str) -> list[Way]:
    """Return the directions of a connection that are meant."""
    return {"up": [proxy.up], "down": [proxy.down], "both": [proxy.up, proxy.down]}[which]


@pytest.mark.parametrize("broken", ["FIN", "RST"])
@pytest.mark.parametrize("stream", ["tiny", "wide"])
def test_connections_that_are_cut_are_made_again(mills: list[Mill], seed: int, stream: str, broken: str) -> None:
    """Whatever was under way is asked for again, also in the middle of a batch."""
    with FaultProxy(mills[0].url) as proxy, feedmill.connect(proxy.url, stream, seed=seed, timeout=TIMEOUT) as feed:
        cut = proxy.cut if broken == "FIN" else proxy.reset
        acts = dict.fromkeys((1, 2, 7, 12, 14), cut)
        assert_undisturbed(run(feed, 2, acts), feed.plan, getattr(pipelines, stream))
        assert proxy.accepted > 1  # two cuts in a row may find one connection


def test_a_server_that_cannot_be_reached_is_done_without(mills: list[Mill], seed: int) -> None:
    """While it is cut off the other server makes everything; when it can be reached again it is used again."""
    with (
        FaultProxy(mills[0].url) as proxy,
        feedmill.connect([proxy.url, mills[1].url], "tiny", seed=seed, prefetch=8, timeout=TIMEOUT) as feed,
    ):
        wait_until(lambda: set(feed.servers().values()) == {"ready"}, 10, "both servers are known")
        notes = run(feed, 2, {20: proxy.part})
        assert feed.servers()[proxy.url].startswith("no connection")
        proxy.join()
        wait_until(lambda: feed.servers()[proxy.url] == "ready", 10, "it is found again")
        before = proxy.down.passed
        notes += run(feed, 2)
        assert proxy.down.passed > before + 10_000
        assert_undisturbed(notes, feed.plan, pipelines.tiny)


@pytest.mark.parametrize("way", WAYS)
def test_bytes_that_are_held_come_late_and_once(mills: list[Mill], seed: int, way: str) -> None:
    """The only server falls silent, and is trusted again with the next thing that it says."""
    with (
        FaultProxy(mills[0].url) as proxy,
        feedmill.connect(proxy.url, "wide", seed=seed, timeout=TIMEOUT) as feed,
        later() as after,
    ):

        def hold() -> None:
            proxy.stall(*ways(proxy, way))
            after(HELD, proxy.flow)

        assert_undisturbed(run(feed, 2, {7: hold}), feed.plan, pipelines.wide)


def test_a_connection_that_is_held_for_good_is_done_without(mills: list[Mill], seed: int) -> None:
    """No byte comes and nothing breaks: the other server is asked for what this one owes."""
    with (
        FaultProxy(mills[0].url) as proxy,
        feedmill.connect([proxy.url, mills[1].url], "tiny", seed=seed, prefetch=8, timeout=TIMEOUT) as feed,
    ):
        wait_until(lambda: set(feed.servers().values()) == {"ready"}, 10, "both servers are known")
        notes = run(feed, 3, {20: lambda: proxy.stall(proxy.up, proxy.down)})
        assert feed.servers()[proxy.url] != "ready"
        assert_undisturbed(notes, feed.plan, pipelines.tiny)


def test_a_slow_network_is_no_reason_to_ask_twice(mills: list[Mill], seed: int) -> None:
    """Delay is not loss."""
    with FaultProxy(mills[0].url) as proxy:
        proxy.up.delay = proxy.down.delay = 0.005
        with feedmill.connect(proxy.url, "wide", seed=seed, timeout=TIMEOUT) as feed:
            assert_undisturbed(run(feed, 1), feed.plan, pipelines.wide)
            assert feed.stats().asked_again == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_connection_that_breaks_zmtp_is_made_anew(mills: list[Mill], seed: int, way: str) -> None:
    """A frame that cannot be has libzmq give the connection up for good; a feed does not."""
    with FaultProxy(mills[0].url) as proxy, feedmill.connect(proxy.url, "tiny", seed=seed, timeout=TIMEOUT) as feed:

        def slip() -> None:
            ways(proxy, way)[0].slip_in = b"\x02" + (2**40).to_bytes(8)  # a frame of a tebibyte

        assert_undisturbed(run(feed, 2, {20: slip}), feed.plan, pipelines.tiny)
        assert proxy.accepted >= 2


@pytest.mark.parametrize(
    ("stream", "up", "down"),
    [("tiny", 1 / 6000, 0), ("tiny", 0, 1 / 4000), ("wide", 1 / 4000, 0), ("wide", 0, 1 / 4_000_000)],
    ids=["tiny up", "tiny down", "wide up", "wide down"],
)
def test_bytes_that_are_changed_never_reach_a_trainer(
    mills: list[Mill], seed: int, stream: str, up: float, down: float
) -> None:
    """What was changed is noticed and asked for again; no bit is wrong, and nothing waits for ever."""
    with FaultProxy(mills[0].url) as proxy, feedmill.connect(proxy.url, stream, seed=seed, timeout=TIMEOUT) as feed:
        proxy.up.rate, proxy.down.rate = up, down
        assert_undisturbed(run(feed, 8), feed.plan, getattr(pipelines, stream))
        assert proxy.up.garbled + proxy.down.garbled > 0
