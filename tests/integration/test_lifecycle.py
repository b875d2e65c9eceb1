"""How servers and trainers begin, end, die and come back, and what that does to an epoch: nothing."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import feedmill
from feedmill_protocol.messages import Get, Message
from integration.epochs import TIMEOUT, Reference, assert_same
from integration.fakes import FakeServer, Frames, honest
from integration.fleet import PIPELINES, Data, Fleet
from integration.processes import Served, alive, command, descendants, environment, read_line, wait_until
from integration.trainers import trainer

SLOW = ("--stream", "slow", "--pipeline", f"{PIPELINES}:SLOW", "--workers", "2")

Serve = Callable[..., Served]


@pytest.fixture
def slow(data: Data, serve: Serve) -> Callable[..., Served]:
    """Start a server of the stream "slow", which is the shared servers' too."""

    def start(*args: str) -> Served:
        return serve(*data["slow"].shards, *SLOW, "--batch-size", "8", *args)

    return start


# Signals.


@pytest.mark.parametrize("terminal", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_a_server_that_is_told_to_end_finishes_what_was_asked_and_exits_within_5_s(
    slow: Callable[..., Served],
    terminal: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """Exit code 0, nothing left, and the trainer gets what it had asked for before it is told that nobody is left.

    SIGTERM is for the broker alone; a terminal sends Ctrl-C to the workers too.
    """
    served = slow()
    family = descendants(served.process.pid)
    with feedmill.connect(served.url, prefetch=4, timeout=2.0) as feed:
        iteration = feed.batches()
        got = [next(iteration).index]
        begun = time.monotonic()
        for pid in [*family, served.process.pid] if terminal else [served.process.pid]:
            os.kill(pid, signal.SIGINT if terminal else signal.SIGTERM)
        with pytest.raises(feedmill.ServerUnavailable):
            got.extend(batch.index for batch in iteration)
        assert served.process.wait(5) == 0
        assert time.monotonic() - begun < 5.0
    assert len(got) >= 4
    assert got == list(range(len(got)))
    assert "draining" in served.log
    assert "replacing" not in served.log
    assert "Traceback" not in served.log
    wait_until(lambda: not any(map(alive, family)), 2, "the workers have ended")


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_server_with_hours_of_work_exits_within_5_s_and_at_the_second_signal_at_once(
    data: Data,
    serve: Serve,
    again: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """No transform, however slow, keeps a server from ending."""
    served = serve(*data["slow"].shards, "--pipeline", f"{PIPELINES}:VERY_SLOW", "--workers", "2")
    family = descendants(served.process.pid)
    with feedmill.connect(served.url, timeout=1.0) as feed:
        with pytest.raises(feedmill.ServerUnavailable):  # no batch comes in so short a time
            next(feed.batches())
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        if again:
            wait_until(lambda: "draining" in served.log, 5, "the first signal was noticed")
            begun = time.monotonic()
            served.signal(signal.SIGTERM)
        assert served.process.wait(6) == (128 + signal.SIGTERM if again else 0)
        assert time.monotonic() - begun < (1.0 if again else 5.0)
    wait_until(lambda: not any(map(alive, family)), 2, "the workers have ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_server_that_is_told_to_end_before_it_is_ready_does_so(data: Data, tmp_path: Path, number: int) -> None:
    """A pipeline may take a minute to import, and an index an hour to make."""
    (tmp_path / "late.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    args = command("serve", *data["slow"].shards, "--pipeline", "late.py:P", "--bind", "tcp://127.0.0.1:*")
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=environment(tmp_path), cwd=tmp_path) as process:
        try:
            wait_until((tmp_path / "begun").exists, 30, "the pipeline is being imported")
            family = descendants(process.pid)
            process.send_signal(number)
            _, errors = process.communicate(timeout=5)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    wait_until(lambda: not any(map(alive, family)), 2, "the fork server has ended")


# Deaths of servers.


def test_nothing_of_a_server_outlives_its_broker(slow: Callable[..., Served]) -> None:
    """A `kill -9` of the broker while it works takes fork server and workers along."""
    served = slow()
    wait_until(lambda: len(descendants(served.process.pid)) == 3, 5, "fork server and workers are there")
    family = descendants(served.process.pid)
    with feedmill.connect(served.url, timeout=2.0) as feed:
        next(feed.batches())
        served.process.kill()
        served.process.wait(5)
        wait_until(lambda: not any(map(alive, family)), 2, "fork server and workers have ended")


def test_an_epoch_survives_the_deaths_of_its_workers_and_of_the_fork_server(
    slow: Callable[..., Served], reference: Reference
) -> None:
    """What they had in hand is done again, and is the same in every bit."""
    served = slow()
    victims: dict[int, Callable[[], list[int]]] = {
        1: lambda: served.workers()[:1],
        4: served.workers,
        8: lambda: [served.fork_server()],
    }
    with feedmill.connect(served.url, "slow", prefetch=2, timeout=TIMEOUT) as feed:
        batches = []
        for batch in feed.batches():
            batches.append(batch)
            if batch.index in victims:
                for pid in victims[batch.index]():
                    os.kill(pid, signal.SIGKILL)
    assert_same(batches, reference("slow"))
    assert served.log.count("signal 9; replacing it") >= 2
    assert "starting another" in served.log
    wait_until(lambda: len(served.workers()) == 2, 10, "there are two workers again")


def test_an_epoch_survives_the_death_of_one_of_two_servers(
    slow: Callable[..., Served], fleet: Fleet, reference: Reference
) -> None:
    """The other one is asked for what the dead one owes."""
    served = slow()
    with feedmill.connect([served.url, fleet["two"]], "slow", prefetch=6, timeout=TIMEOUT) as feed:
        wait_until(lambda: set(feed.servers().values()) == {"ready"}, 10, "both servers are known")
        batches = []
        for batch in feed.batches():
            batches.append(batch)
            if batch.index == 2:
                served.process.kill()
                served.process.wait(5)
        assert feed.stats().asked_again
    assert_same(batches, reference("slow"))


def test_an_epoch_survives_the_restart_of_its_only_server(slow: Callable[..., Served], reference: Reference) -> None:
    """A server that comes back on the same port is found again, and needs to know nothing of before."""
    served = slow()
    with feedmill.connect(served.url, "slow", timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        batches = [next(iteration), next(iteration)]
        served.process.kill()
        served.process.wait(5)
        again = slow("--bind", served.url)
        assert again.url == served.url
        batches.extend(iteration)
    assert_same(batches, reference("slow"))


def test_an_epoch_survives_a_server_that_hangs_and_comes_to(
    slow: Callable[..., Served], fleet: Fleet, reference: Reference
) -> None:
    """SIGSTOP keeps the connection and ends the answers; SIGCONT brings late ones."""
    served = slow()
    with feedmill.connect([served.url, fleet["two"]], "slow", prefetch=6, timeout=TIMEOUT) as feed:
        wait_until(lambda: set(feed.servers().values()) == {"ready"}, 10, "both servers are known")
        batches = []
        for batch in feed.batches():
            batches.append(batch)
            if batch.index == 2:
                served.signal(signal.SIGSTOP)
        assert feed.servers()[served.url] == "silent"
        assert_same(batches, reference("slow"))
        served.signal(signal.SIGCONT)
        wait_until(lambda: feed.servers()[served.url] == "ready", 10, "it is trusted again")
        feed.set_epoch(0)
        again = list(feed.batches())
    assert_same(again, reference("slow"))
    assert served.url in {batch.server for batch in again}


def test_a_server_that_joins_is_used(fleet: Fleet, slow: Callable[..., Served]) -> None:
    """An endpoint may be named before its server runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with feedmill.connect([fleet["two"], f"tcp://127.0.0.1:{port}"], "slow", seed=11, timeout=TIMEOUT) as feed:
        assert {batch.server for batch in feed.batches()} == {fleet["two"]}
        joined = slow("--bind", f"tcp://127.0.0.1:{port}")
        wait_until(lambda: feed.servers()[joined.url] == "ready", 10, "it was found")
        assert joined.url in {batch.server for epoch in range(2) for batch in feed.batches()}


def test_a_host_name_with_several_addresses_is_several_servers(
    slow: Callable[..., Served], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All addresses of a service are used, and one of them may die."""
    one = slow()
    two = slow("--bind", f"tcp://127.0.0.2:{one.port}")

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        assert host == "mills"
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with feedmill.connect(f"tcp://mills:{one.port}", "slow", prefetch=6, timeout=TIMEOUT) as feed:
        wait_until(lambda: list(feed.servers().values()) == ["ready"] * 2, 10, "both addresses are connected")
        assert set(feed.servers()) == {one.url, two.url}
        batches = []
        for batch in feed.batches():
            batches.append(batch)
            if batch.index == 4:
                two.process.kill()
                two.process.wait(5)
    assert_same(batches, reference("slow"))
    assert {batch.server for batch in batches} == {one.url, two.url}


# Samples that cannot be had.


def test_a_transform_that_raises_ends_the_iteration_and_names_the_sample(fleet: Fleet) -> None:
    """`on_error="raise"`: shard, key and reason, and the iteration before it is untouched."""
    with feedmill.connect(fleet["two"], "raises", timeout=TIMEOUT) as feed:
        with pytest.raises(feedmill.SampleError, match=r"ValueError: thirteen brings bad luck") as raised:
            list(feed.batches())
        assert (raised.value.shard, raised.value.key) == ("numbers-0.tar", "013")


def test_a_transform_that_raises_leaves_a_gap_that_is_reported(fleet: Fleet) -> None:
    """`on_error="skip"`: one batch is shorter by one, and says which sample it lacks and why."""
    with feedmill.connect(fleet["two"], "raises", on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
        assert feed.stats().skipped == 1
    (short,) = (batch for batch in batches if batch.missing)
    assert [(s.shard, s.key, s.reason) for s in short.skipped] == [
        ("numbers-0.tar", "013", "ValueError: thirteen brings bad luck (pipelines.py, line 35)")
    ]
    found = sorted(key for batch in batches for key in batch.keys)
    assert found == [f"{n:03d}" for n in range(100) if n != 13]
    for batch in batches:
        (rows,) = batch.tensors
        assert rows[:, 0].tolist() == [int(key) for key in batch.keys], "rows and keys belong together"


def test_a_transform_that_kills_its_worker_is_named_with_the_sample(fleet: Fleet) -> None:
    """The second worker that dies of one sample tells which it is; the server lives on."""
    with feedmill.connect(fleet["two"], "kills", timeout=TIMEOUT) as feed:
        with pytest.raises(feedmill.SampleError, match=r"ended with exit code 7 on this sample, twice") as raised:
            list(feed.batches())
        assert (raised.value.shard, raised.value.key) == ("numbers-0.tar", "013")


def test_a_transform_that_kills_its_worker_can_be_skipped(fleet: Fleet) -> None:
    """All other samples arrive."""
    with feedmill.connect(fleet["two"], "kills", on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    assert sorted(key for batch in batches for key in batch.keys) == [f"{n:03d}" for n in range(100) if n != 13]
    assert [s.key for batch in batches for s in batch.skipped] == ["013"]


def test_a_transform_whose_output_changes_its_shape_is_told_so(fleet: Fleet) -> None:
    """The error says what was expected, what came, and what to do."""
    with (
        feedmill.connect(fleet["two"], "varies", timeout=TIMEOUT) as feed,
        pytest.raises(
            feedmill.SampleError, match=r"float32 \[3\], but the stream's first sample had float32 \[2\]; end"
        ) as raised,
    ):
        list(feed.batches())
    assert raised.value.key == "013"


def test_a_feed_that_failed_can_be_iterated_again(fleet: Fleet) -> None:
    """The next epoch is another chance; it fails on the same sample, not on the feed."""
    with feedmill.connect(fleet["two"], "raises", timeout=TIMEOUT) as feed:
        for _ in range(2):
            with pytest.raises(feedmill.SampleError):
                list(feed.batches())


def test_a_shard_that_changes_under_the_server_is_named(tmp_path: Path, data: Data, serve: Serve) -> None:
    """Never other samples under the same names."""
    shard = tmp_path / "numbers.tar"
    shard.write_bytes(data["slow"].shards[0].read_bytes())
    other = tmp_path / "others.tar"
    other.write_bytes(data["slow"].shards[1].read_bytes())
    served = serve(shard, other, "--pipeline", f"{PIPELINES}:DRAWS", "--workers", "1")
    shard.write_bytes(shard.read_bytes())
    os.utime(other, (0, 0))
    with (
        feedmill.connect(served.url, timeout=TIMEOUT) as feed,
        pytest.raises(feedmill.ShardError, match="changed since it was indexed"),
    ):
        list(feed.batches())


# Feeds.


def test_an_epoch_that_is_broken_off_is_followed_by_the_next(fleet: Fleet) -> None:
    """Iterating again goes on, whatever was left."""
    with feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT) as feed:
        for batch in feed.batches():
            assert batch.epoch == 0
            break
        batches = list(feed.batches())
        assert [batch.epoch for batch in batches] == [1] * len(feed)
        assert len({key for batch in batches for key in batch.keys}) == 100


def test_an_iterator_that_was_overtaken_says_so(fleet: Fleet) -> None:
    """Two iterations of one feed at a time would share its batches."""
    with feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT) as feed:
        first = feed.batches()
        next(first)
        second = feed.batches()
        next(second)
        with pytest.raises(feedmill.UsageError, match="this iteration is over"):
            next(first)
        assert next(second).index == 1


def test_a_closed_feed_says_so(fleet: Fleet) -> None:
    """`close` may be called twice; iterating afterwards is misuse."""
    feed = feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT)
    iteration = feed.batches()
    next(iteration)
    feed.close()
    feed.close()
    with pytest.raises(feedmill.UsageError, match="the feed is closed"):
        list(feed)
    with pytest.raises(feedmill.UsageError, match="the feed was closed"):
        next(iteration)


def test_a_feed_that_nobody_holds_ends_its_thread(fleet: Fleet) -> None:
    """Forgetting to close is no leak."""
    feed = feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT)
    next(feed.batches())
    assert any(thread.name == "feedmill" for thread in threading.enumerate())
    del feed
    wait_until(lambda: all(thread.name != "feedmill" for thread in threading.enumerate()), 3, "the thread has ended")


# Trainers as processes of their own.


ENDLESS = """
import sys, feedmill
feed = feedmill.connect(sys.argv[1], sys.argv[2], timeout=60)
while True:
    for batch in feed.batches():
        print(batch.epoch, batch.index, flush=True)
"""


def test_a_trainer_that_is_killed_leaves_the_server_to_the_others(
    tmp_path: Path, fleet: Fleet, reference: Reference
) -> None:
    """A `kill -9` leaves no time for a goodbye; the others do not notice."""
    with (
        feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT) as feed,
        trainer(tmp_path, ENDLESS, fleet["two"], "slow") as (victim, output),
    ):
        assert read_line(output, 30) == "0 0\n"
        iteration = feed.batches()
        batches = [next(iteration)]
        victim.kill()
        victim.wait(5)
        batches.extend(iteration)
    assert_same(batches, reference("slow"))


@pytest.mark.parametrize("waits", [False, True], ids=["busy", "waiting"])
def test_ctrl_c_ends_a_trainer_promptly(
    tmp_path: Path,
    fleet: Fleet,
    waits: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """KeyboardInterrupt, whether batches come or are waited for."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        return [] if isinstance(message, Get) and message.batch else honest(message, payload)

    with (
        FakeServer(answer) as fake,
        trainer(tmp_path, ENDLESS, *((fake.url, "train") if waits else (fleet["two"], "slow"))) as (process, output),
    ):
        assert read_line(output, 30) == "0 0\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert time.monotonic() - begun < 3.0
        assert process.returncode == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1


FORGETFUL = """
import sys, feedmill
feed = feedmill.connect(sys.argv[1], "slow", timeout=60)
for batch in feed.batches():
    if batch.index == 3:
        break
print("done")
"""


def test_a_trainer_that_forgets_to_close_exits_promptly_and_quietly(tmp_path: Path, fleet: Fleet) -> None:
    """A script that just ends is the usual case."""
    with trainer(tmp_path, FORGETFUL, fleet["two"]) as (process, output):
        assert read_line(output, 30) == "done\n"
        begun = time.monotonic()
        _, errors = process.communicate(timeout=10)
        assert time.monotonic() - begun < 3.0
        assert (process.returncode, errors) == (0, "")


FORKS = """
import os, sys, warnings, feedmill
warnings.simplefilter("ignore")  # Python 3.12 warns of forks in a process with threads; trainers fork all the same
feed = feedmill.connect(sys.argv[1], "slow", timeout=60)
expected = [b.tensors[0].clone() for b in feed.batches()]
def same():
    feed.set_epoch(0)
    return all(a.equal(b.tensors[0]) for a, b in zip(expected, feed.batches(), strict=True))
started = feed.batches()
next(started)
pid = os.fork()
if not pid:
    try:
        next(started)
        told = False
    except feedmill.UsageError:
        told = True
    good = same()
    feed.close()
    os._exit(0 if good and told else 1)
good = same()
_, status = os.waitpid(pid, 0)
print(good, os.waitstatus_to_exitcode(status))
"""


def test_a_feed_works_in_both_processes_after_a_fork(tmp_path: Path, fleet: Fleet) -> None:
    """Each has its own connection; an iteration that was under way belongs to the parent."""
    with trainer(tmp_path, FORKS, fleet["two"]) as (process, _):
        output, errors = process.communicate(timeout=60)
        assert (output, errors, process.returncode) == ("True 0\n", "", 0)


LOADER = """
import sys, warnings, feedmill, torch
warnings.simplefilter("ignore")
class Feeds(torch.utils.data.IterableDataset):
    def __init__(self, feed):
        self.feed = feed
    def __iter__(self):
        return iter(self.feed)
with feedmill.connect(sys.argv[1], "slow", timeout=60) as feed:
    loader = torch.utils.data.DataLoader(Feeds(feed), batch_size=None, num_workers=1)
    for _ in range(2):
        print(sum(len(batch[0]) for batch in loader))
"""


def test_a_feed_works_in_a_worker_of_a_dataloader(tmp_path: Path, fleet: Fleet) -> None:
    """DataLoader forks, iterates in the child, and kills it."""
    with trainer(tmp_path, LOADER, fleet["two"]) as (process, _):
        output, errors = process.communicate(timeout=60)
        assert (output, errors, process.returncode) == ("100\n100\n", "", 0)
