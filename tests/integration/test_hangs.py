"""Samples that never get done, or take too much: ended, named, and nobody else's trouble."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import feedmill
from integration.epochs import TIMEOUT, keys
from integration.processes import Served, wait_until
from shardmaker import write_tar

Serve = Callable[..., Served]

SECONDS = 1.5
"""The time-out: more than a sample of these takes on a machine that does other things."""

PIPELINES = """
import ctypes, os, resource, time
import numpy as np
from feedmill_server import Pipeline

if os.path.exists("crash"):
    os.abort()

BAD = 13

def hang_in_python(value):
    while value == BAD:
        pass
    return value

def hang_in_the_kernel(value):
    if value == BAD:
        os.read(os.pipe()[0], 1)
    return value

def hang_in_c(value):
    if value == BAD:
        ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the GIL, as extensions do
    return value

def hang_once(value):
    if value == BAD and not os.path.exists("hung"):
        open("hung", "w").close()
        time.sleep(3600)
    return value

def take_long(value):
    time.sleep(0.3)
    return value

def well(value):
    return value

def take_memory(value):
    return int(np.ones(10**9 if value == BAD else 10, np.uint8)[0]) * value

kept = []

def leak_memory(value):
    kept.append(np.ones(40 * 10**6, np.uint8))
    return value

def leak_descriptors(value):
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
    kept.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(150))
    return value

""" + "".join(
    f"{name.upper()} = Pipeline('cls', transforms=[{name}], batch_size=20)\n"
    for name in (
        *("hang_in_python", "hang_in_the_kernel", "hang_in_c", "hang_once", "take_long", "well"),
        *("take_memory", "leak_memory", "leak_descriptors"),
    )
)


@pytest.fixture
def start(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    """Start a server of forty numbers with one of these transforms."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PIPELINES)
    numbers = write_tar(tmp_path / "numbers.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(40)])

    def start(transform: str, *args: str) -> Served:
        return serve(numbers, "--pipeline", f"mine.py:{transform.upper()}", *args) if transform else serve(*args)

    return start


ALL_BUT_ONE = [f"{n:02d}" for n in range(40) if n != 13]


@pytest.mark.parametrize(
    ("transform", "place"),
    [
        ("hang_in_python", r"mine.py:\d+ in hang_in_python"),
        ("hang_in_the_kernel", r"mine.py:\d+ in hang_in_the_kernel"),
        ("hang_in_c", r"mine.py:\d+ in hang_in_c"),
    ],
)
def test_a_transform_that_never_returns_is_ended_and_named(
    start: Callable[..., Served], transform: str, place: str
) -> None:
    """With sample, reason, option and line, whatever it is stuck in; the log has the whole stack."""
    served = start(transform, "--workers", "2", "--sample-timeout", str(SECONDS))
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        begun = time.monotonic()
        with pytest.raises(
            feedmill.SampleError, match=rf"took more than 1.5 s \(--sample-timeout\); it hung in: {place}$"
        ) as raised:
            list(feed.batches())
        assert 2 * SECONDS < time.monotonic() - begun < 2 * SECONDS + 5
        assert (raised.value.shard, raised.value.key) == ("numbers.tar", "13")
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    assert keys(batches) == ALL_BUT_ONE
    assert [tensor for batch in batches for tensor in batch.tensors[0].tolist()] == [int(key) for key in ALL_BUT_ONE]
    ((skipped,),) = [batch.skipped for batch in batches if batch.missing]
    assert (skipped.shard, skipped.key) == ("numbers.tar", "13")
    assert skipped.reason.startswith("took more than 1.5 s (--sample-timeout); it hung in: mine.py:")
    assert "ended with signal 12; replacing it. Sample 13: took more than 1.5 s" in served.log
    assert f"in {transform}\n" in served.log.partition("Stack (most recent call first):\n")[2]


def test_a_transform_that_hangs_once_is_forgiven(start: Callable[..., Served]) -> None:
    """The second try counts: the disk may have been away for a while."""
    served = start("hang_once", "--workers", "2", "--sample-timeout", str(SECONDS))
    with feedmill.connect(served.url, shuffle=False, prefetch=1, timeout=TIMEOUT) as feed:
        assert keys(list(feed.batches())) == [f"{n:02d}" for n in range(40)]
    assert served.log.count("replacing it") == 1


def test_a_part_may_take_longer_than_one_sample(start: Callable[..., Served]) -> None:
    """Sixteen samples of 0.3 s each make no sound for 4.8 s, but none of them takes longer than the time-out."""
    served = start("take_long", "--workers", "2", "--sample-timeout", str(SECONDS))
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        assert len(keys(list(feed.batches()))) == 40
    assert "replacing it" not in served.log


def test_a_hang_delays_others_by_no_more_than_the_time_out(start: Callable[..., Served], tmp_path: Path) -> None:
    """What waits behind the sample that hangs is done by somebody else, and does not wait behind the second try."""
    seconds = 4.0
    stream = "[streams.{0}]\nshards = ['numbers.tar']\npipeline = 'mine.py:{1}'\n"
    (tmp_path / "mill.toml").write_text(stream.format("bad", "HANG_IN_C") + stream.format("good", "WELL"))
    served = start("", "--config", "mill.toml", "--workers", "2", "--sample-timeout", str(seconds))
    with (
        feedmill.connect(served.url, "bad", shuffle=False, prefetch=1, timeout=TIMEOUT) as bad,
        feedmill.connect(served.url, "good", timeout=TIMEOUT) as good,
        ThreadPoolExecutor(1) as thread,
    ):
        fails = thread.submit(list, bad.batches())
        slowest = 0.0
        while not fails.done():
            begun = time.monotonic()
            assert len(keys(list(good.batches()))) == 40
            slowest = max(slowest, time.monotonic() - begun)
        assert isinstance(fails.exception(), feedmill.SampleError)
    assert slowest < seconds + 3.0


def test_a_trainer_that_waits_for_nothing_else_is_told_in_time(start: Callable[..., Served]) -> None:
    """Its own time-out is longer than one try, and shorter than two: the end of the first is progress."""
    served = start("hang_in_c", "--workers", "1", "--sample-timeout", "3", "--batch-size", "1")
    with (
        feedmill.connect(served.url, shuffle=False, prefetch=1, timeout=5.0) as feed,
        pytest.raises(feedmill.SampleError),
    ):
        list(feed.batches())


def test_a_worker_that_was_stopped_is_replaced(start: Callable[..., Served]) -> None:
    """Whatever keeps it from working, and from answering a signal."""
    served = start("take_long", "--workers", "1", "--sample-timeout", str(SECONDS))
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        (worker,) = served.workers()
        time.sleep(0.5)
        os.kill(worker, signal.SIGSTOP)
        assert keys(list(iteration)) == [f"{n:02d}" for n in range(40)]
    assert "ended with signal 9; replacing it. Sample" in served.log


def test_a_transform_that_hangs_on_the_first_sample_is_refused_at_start(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    """With the line in which it hangs, and no server that never gets ready."""
    (tmp_path / "mine.py").write_text(PIPELINES.replace("BAD = 13", "BAD = 0"))
    with pytest.raises(AssertionError, match=r"ended with 2: ") as raised:
        start("hang_in_c", "--sample-timeout", "1")
    (line,) = [line for line in str(raised.value).splitlines() if "feedmill: " in line]
    assert "took more than 1 s (--sample-timeout) for sample 0 of numbers.tar: mine.py:" in line


# Memory and descriptors.


def test_a_transform_that_takes_too_much_memory_is_named(start: Callable[..., Served]) -> None:
    """With what it asked for, and what there is."""
    served = start("take_memory", "--workers", "2", "--worker-memory", "200MB")
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        with pytest.raises(
            feedmill.SampleError,
            match=r"Unable to allocate .*; a worker may take 200,000,000 bytes \(--worker-memory\)",
        ) as raised:
            list(feed.batches())
        assert (raised.value.shard, raised.value.key) == ("numbers.tar", "13")
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        assert keys(list(feed.batches())) == ALL_BUT_ONE


def test_without_a_limit_a_transform_may_take_what_there_is(start: Callable[..., Served]) -> None:
    """A gigabyte of ones is nothing unusual."""
    served = start("take_memory", "--workers", "1")
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        assert len(keys(list(feed.batches()))) == 40


@pytest.mark.parametrize("transform", ["leak_memory", "leak_descriptors"])
def test_what_a_worker_lost_to_leaks_is_blamed_on_no_sample(start: Callable[..., Served], transform: str) -> None:
    """It is replaced, as often as that takes, and every sample arrives."""
    args = ("--worker-memory", "400MB") if transform == "leak_memory" else ()
    served = start(transform, "--workers", "1", *args)
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        assert keys(list(feed.batches())) == [f"{n:02d}" for n in range(40)]
    assert "replacing it" in served.log


# The fork server.


def _says(served: Served, words: str) -> bool:
    return words in served.log


def test_after_a_fork_server_that_dies_at_every_start_all_goes_on(start: Callable[..., Served], tmp_path: Path) -> None:
    """The pauses grow, nobody is blamed, trainers may ask others meanwhile, and the epoch ends well in the end."""
    served = start("take_long", "--workers", "2")
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        (tmp_path / "crash").touch()
        os.kill(served.fork_server(), signal.SIGKILL)
        wait_until(partial(_says, served, "death 4 in a row"), 60, "it died at three starts")
        (tmp_path / "crash").unlink()
        assert keys(list(iteration)) == [f"{n:02d}" for n in range(40)]
    for death, said in enumerate(("another", "another in 1 s", "another in 2 s", "another in 4 s"), 1):
        how = 6 if death > 1 else 9
        assert f"the fork server ended with signal {how}, death {death} in a row; starting {said}\n" in served.log
