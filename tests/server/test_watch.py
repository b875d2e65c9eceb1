import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feedmill_server import watch as watch_module
from feedmill_server.phases import Phase
from feedmill_server.watch import STUCK, Watch, where
from integration.processes import wait_until

OURS = Path(watch_module.__file__).parent


@contextmanager
def process(watch: Watch, fd: int, function: Callable[[], object]) -> Iterator[int]:
    """Fork a process that listens and calls a function; give its id."""
    if not (pid := os.fork()):
        watch.listen(fd)
        watch.beat()
        function()
        os._exit(0)
    try:
        wait_until(lambda: watch.beats, 10, "it listens")
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def made() -> Iterator[tuple[Watch, int]]:
    watch, fd = Watch.create()
    yield watch, fd
    os.close(fd)
    watch.close()


def _loop() -> None:
    while True:
        pass


def _wait_for_a_pipe() -> None:
    os.read(os.pipe()[0], 1)


def _hold_the_gil() -> None:
    ctypes.PyDLL(None).pause()  # PyDLL keeps the GIL, as extensions do


@pytest.mark.parametrize("hang", [_loop, _wait_for_a_pipe, _hold_the_gil])
def test_whatever_a_process_is_stuck_in_it_says_where_and_ends(
    made: tuple[Watch, int], hang: Callable[[], None]
) -> None:
    """In Python, in the kernel, in C with the GIL: one signal, and the process ends of it."""
    watch, _ = made
    with process(*made, hang) as pid:
        time.sleep(0.05)  # it may have to get there
        os.kill(pid, STUCK)
        wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG), 5, "it has ended")
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == STUCK
    assert f"in {hang.__name__}" in watch.words
    assert where(watch.words).endswith(f"in {hang.__name__}")


def test_a_watch_shows_the_sample_in_hand(made: tuple[Watch, int]) -> None:
    """The longest key, too, and none when it is done."""
    watch, fd = made
    other = Watch(fd)
    assert (other.beats, other.key, other.words) == (0, "", "")
    for row, key in enumerate(("größer", "k" * 1023, "short", "")):
        watch.begin(row, key)
        assert (other.row, other.key) == (row, key)
        watch.beat()
        assert (other.row, other.key) == (-1, "")
    assert other.beats == 4
    watch.say("w" * 100_000)
    assert set(other.words) == {"w"}
    assert other.key == ""
    other.close()


def test_a_watch_adds_up_how_long_each_phase_took(made: tuple[Watch, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """From when a sample was begun, not from the end of the last; its key may become known later."""
    watch, fd = made
    other = Watch(fd)
    now = 1000.0
    watch.beat()  # a worker's own start
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for row in (0, 1):
        now += 50.0  # between two samples
        watch.begin(row, "")
        now += 1.0
        watch.begin(row, "key")
        now += 1.0
        watch.lap(Phase.READ)
        now += 4.0
        watch.lap(Phase.DECODE)
        now += 8.0
        watch.lap(Phase.TRANSFORM)
        watch.beat()
    assert other.seconds == (4.0, 8.0, 16.0)
    assert (other.beats, other.row, other.key) == (3, -1, "")
    other.close()


def test_a_beat_costs_nothing_that_one_would_notice(made: tuple[Watch, int]) -> None:
    """A sample takes milliseconds; this must stay far below a hundredth of one."""
    watch, _ = made
    best = 1.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            watch.begin(7, "")
            watch.begin(7, "n01440764/ILSVRC2012_val_00000293")
            for phase in Phase:
                watch.lap(phase)
            watch.beat()
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 10e-6


def _stack(*calls: tuple[str, str]) -> str:
    lines = [f'  File "{file}", line {line} in {function}' for line, (file, function) in enumerate(calls, 7)]
    return "\n".join(["Stack (most recent call first):", *lines, ""])


WORKER = [(f"{OURS}/pipeline.py", "__call__"), (f"{OURS}/worker.py", "sample"), (f"{OURS}/worker.py", "_part")]


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (
            [("/home/me/augment.py", "wait"), ("/home/me/augment.py", "jitter")],
            "augment.py:8 in jitter -> augment.py:7 in wait",
        ),
        ([("a.py", f"f{i}") for i in range(9)], "... -> a.py:10 in f3 -> a.py:9 in f2 -> a.py:8 in f1 -> a.py:7 in f0"),
        ([(f"{OURS}/shards.py", "read")], "pipeline.py:8 in __call__ -> shards.py:7 in read"),
    ],
    ids=["user", "deep", "ours"],
)
def test_the_innermost_calls_of_the_users_code_are_named(calls: list[tuple[str, str]], said: str) -> None:
    """In the order of the calls; ours where the user's were not reached."""
    assert where(_stack(*calls, *WORKER)) == said


def test_where_there_is_no_stack_there_is_no_place() -> None:
    """A worker that waits in the kernel writes none."""
    assert where("") == where("MemoryError: none left") == ""
