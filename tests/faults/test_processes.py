"""Processes that are killed, stopped and started again: what that does to the batches is nothing."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import feedmill
from faults import pipelines
from faults.digests import note
from faults.mill import Mill, strike
from faults.oracle import assert_undisturbed
from faults.runs import TIMEOUT, later, run
from faults.trainer import assert_exact, trainer
from integration.processes import wait_until

PARTS: dict[str, Callable[[Mill], list[int]]] = {
    "a worker": lambda mill: mill.workers()[:1],
    "all workers": Mill.workers,
    "the fork server": Mill.fork_servers,
    "the broker": lambda mill: [mill.broker],
}


@pytest.mark.parametrize("part", ["a worker", "all workers", "the fork server"])
def test_what_is_killed_within_the_only_server_is_made_good(mills: list[Mill], seed: int, part: str) -> None:
    """What they had in hand is done again by those that replace them."""
    mill = mills[0]
    with feedmill.connect(mill.url, "tiny", seed=seed, timeout=TIMEOUT) as feed:
        acts = {n: lambda: strike(PARTS[part](mill), signal.SIGKILL) for n in (7, 20, 21, 90)}
        assert_undisturbed(run(feed, 2, acts), feed.plan, pipelines.tiny)


def test_samples_are_not_blamed_for_workers_that_are_killed_together(mills: list[Mill], seed: int) -> None:
    """A part that was to go to a worker which was dead already has killed nobody, however late its end is told."""
    mill = mills[0]
    with feedmill.connect(mill.url, "tiny", seed=seed, prefetch=1, timeout=TIMEOUT) as feed, later() as after:

        def kill() -> None:
            tells = mill.fork_servers()
            strike(tells, signal.SIGSTOP)
            strike(mill.workers(), signal.SIGKILL)
            after(0.5, lambda: strike(tells, signal.SIGCONT))

        assert_undisturbed(run(feed, 2, {30: kill, 90: kill}), feed.plan, pipelines.tiny)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_stopped_within_the_only_server_delays_and_nothing_else(
    mills: list[Mill], seed: int, part: str
) -> None:
    """Stopped for three seconds, which is longer than a client needs to have its doubts, and then going on."""
    mill = mills[0]
    with feedmill.connect(mill.url, "tiny", seed=seed, timeout=TIMEOUT) as feed, later() as after:

        def stop() -> None:
            pids = PARTS[part](mill)
            strike(pids, signal.SIGSTOP)
            after(3.0, lambda: strike(pids, signal.SIGCONT))

        assert_undisturbed(run(feed, 2, {20: stop}), feed.plan, pipelines.tiny)


def test_a_broker_that_is_stopped_for_good_is_done_without(mills: list[Mill], seed: int) -> None:
    """The other server makes what it owes; when it goes on, it is used again and its late answers harm nothing."""
    hanging, well = mills
    with feedmill.connect([hanging.url, well.url], "tiny", seed=seed, prefetch=8, timeout=TIMEOUT) as feed:
        wait_until(lambda: set(feed.servers().values()) == {"ready"}, 10, "both servers are known")
        try:
            notes = run(feed, 3, {20: lambda: strike([hanging.broker], signal.SIGSTOP)})
            assert feed.servers()[hanging.url] == "silent"
        finally:
            strike([hanging.broker], signal.SIGCONT)
        wait_until(lambda: feed.servers()[hanging.url] == "ready", 10, "it is trusted again")
        for _ in range(2):
            batches = list(feed.batches())
            notes += map(note, batches)
        assert hanging.url in {batch.server for batch in batches}
        assert_undisturbed(notes, feed.plan, pipelines.tiny)


def test_servers_are_restarted_one_after_the_other_under_a_trainer(
    mills: list[Mill], seed: int, tmp_path: Path
) -> None:
    """Each ends as an operator ends it, and comes back on its port; the trainer has batches all the while."""
    with trainer(tmp_path, "rank-0", [mill.url for mill in mills], "tiny", "--seed", str(seed)) as running:
        wait_until(lambda: running.batches > 10, TIMEOUT, "it has begun")
        for mill in mills:
            before = running.batches
            strike([mill.broker], signal.SIGTERM)
            mill.again()
            assert running.batches > before
            before = running.batches
            wait_until(lambda: running.batches > before + 10, TIMEOUT, "it goes on")  # noqa: B023 # at once
        assert running.end() == 0, running.errors.read_text()
    with feedmill.connect(mills[0].url, "tiny", seed=seed, timeout=TIMEOUT) as feed:
        assert_exact(running.records(), feed.plan, pipelines.tiny)
