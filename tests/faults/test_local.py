"""Private servers and their trainers, ended in every way: no process is left, and nothing on the disk."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen

import pytest

import feedmill
from faults.oracle import write_shards
from feedmill_server import Pipeline
from integration.processes import alive, children, descendants, read_line, wait_until
from integration.trainers import trainer

END_SECONDS = 15.0
"""Within which everything has gone: one or two, and several times that on a busy machine."""

SCRIPT = """
import os, signal, sys, time, warnings
import feedmill
from feedmill_server import Pipeline

def slow(value):
    time.sleep(0.01)
    return value

def iterate(feed):
    while True:
        for batch in feed.batches():
            yield batch

def main(how):
    if how == "starting":
        print("begun", flush=True)
    feed = feedmill.local(Pipeline("cls", transforms=[slow], batch_size=4), sys.argv[2:], workers=2)
    if how == "forked":  # as the workers of a DataLoader, which take a while to notice
        warnings.simplefilter("ignore")
        if not os.fork():
            time.sleep(60)
            os._exit(0)
    for number, batch in enumerate(iterate(feed)):
        print("begun", flush=True)
        if how == "break" and number == 3:
            break
        if how == "exception" and number == 3:
            raise RuntimeError("on purpose")
        if how == "exec" and number == 3:
            os.execlp("true", "true")

main(sys.argv[1])
"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return 240 samples in four shards."""
    return [str(path) for path in write_shards(tmp_path_factory.mktemp("private"), 4, 60)]


@contextmanager
def training(folder: Path, how: str, shards: list[str]) -> Iterator[tuple[Popen[str], list[int]]]:
    """Run a trainer until it has begun; give it, and the processes of its server. Those have to end with the block."""
    (temporary := folder / "temporary").mkdir()
    with trainer(folder, SCRIPT, how, *shards, env={"TMPDIR": str(temporary)}) as (process, output):
        assert read_line(output, 60) == "begun\n"
        family: list[int] = []
        server: list[int] = []

        def complete() -> bool:  # the broker, the fork server, and two workers unless it is only starting
            family[:] = descendants(process.pid)
            forks = [pid for pid in children(process.pid) if not _is_server(pid)]
            server[:] = [pid for pid in family if pid not in forks]
            return len(server) >= (2 if how == "starting" else 4)  # while it starts, the next may be there already

        try:
            wait_until(complete, 30, "the server has its processes")
            yield process, server
            wait_until(lambda: not any(map(alive, server)), END_SECONDS, "the server has ended")
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert list(temporary.iterdir()) == []


def _is_server(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return b"feedmill_server.private" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.parametrize(("how", "code"), [("break", 0), ("exception", 1), ("exec", 0)])
def test_a_trainer_that_ends_by_itself_takes_its_server_along(
    tmp_path: Path, shards: list[str], how: str, code: int
) -> None:
    """Nobody has closed the feed."""
    with training(tmp_path, how, shards) as (process, _):
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        assert ("RuntimeError: on purpose" in errors) == (how == "exception")
        assert "feedmill" not in errors.replace("feedmill.local", "")


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("running", signal.SIGINT),
        ("running", signal.SIGTERM),
        ("running", signal.SIGKILL),
        ("starting", signal.SIGINT),
        ("starting", signal.SIGKILL),
        ("forked", signal.SIGTERM),
        ("forked", signal.SIGKILL),
    ],
)
def test_a_trainer_that_is_ended_takes_its_server_along(
    tmp_path: Path, shards: list[str], how: str, number: signal.Signals
) -> None:
    """Also while its server is only starting, and though a fork of it holds all that it held."""
    with training(tmp_path, how, shards) as (process, _):
        process.send_signal(number)
        assert process.wait(END_SECONDS) == -number


def test_ctrl_c_at_a_terminal_reaches_the_trainer_alone(tmp_path: Path, shards: list[str]) -> None:
    """A terminal sends it to the process group, and the trainer may have something to do before it ends."""
    with training(tmp_path, "running", shards) as (process, server):
        assert {os.getpgid(pid) for pid in server}.isdisjoint({os.getpgid(process.pid)})
        os.kill(server[0], signal.SIGINT)
        assert process.stdout is not None
        for _ in range(5):
            assert read_line(process.stdout, 30) == "begun\n"
        process.kill()


PARTS: dict[str, Callable[[int], list[int]]] = {
    "the broker": lambda broker: [broker],
    "all of it": lambda broker: [broker, *descendants(broker)],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_server_that_is_killed_is_told_soon(shards: list[str], part: str) -> None:
    """At the next batch that is not there, and in every iteration from then on; closing is in order."""
    before = children(os.getpid())
    with feedmill.local(Pipeline("cls", batch_size=4), shards, workers=1) as feed:
        iteration = feed.batches()
        next(iteration)
        (server,) = set(children(os.getpid())) - set(before)
        family = [server, *descendants(server)]
        for pid in PARTS[part](server):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(feedmill.ServerUnavailable, match="the private server was ended by signal 9"):
            list(iteration)
        with pytest.raises(feedmill.ServerUnavailable, match="the private server was ended by signal 9"):
            list(feed)
        wait_until(lambda: not any(map(alive, family)), END_SECONDS, "nothing of it is left")


def test_workers_that_are_killed_are_replaced_as_always(shards: list[str]) -> None:
    """Every sample comes, and the fork server that is killed unpacks the pipeline again."""
    before = children(os.getpid())
    with feedmill.local(Pipeline("cls", transforms=[lambda value: value], batch_size=4), shards, workers=2) as feed:
        (server,) = set(children(os.getpid())) - set(before)
        keys = []
        for batch in feed.batches():
            keys += batch.keys
            if batch.index in {5, 20}:
                for pid in descendants(server)[: 1 if batch.index == 20 else None]:
                    with suppress(ProcessLookupError):  # those that died with their parent
                        os.kill(pid, signal.SIGKILL)
        assert len(keys) == len(set(keys)) == 240


INIT = """
import ctypes, os, sys
import feedmill
from feedmill_server import Pipeline
from integration.processes import descendants

ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become ours, as they do in a container
with feedmill.local(Pipeline("cls", batch_size=4), sys.argv[1:], workers=2) as feed:
    next(feed.batches())
    family = descendants(os.getpid())
print(len(family) >= 3, [pid for pid in family if os.path.exists(f"/proc/{pid}")])
"""


def test_closing_a_feed_leaves_not_even_a_zombie(tmp_path: Path, shards: list[str]) -> None:
    """A trainer that is a container's first process inherits orphans, and buries none."""
    with trainer(tmp_path, INIT, *shards, env={"PYTHONPATH": ":".join(filter(None, sys.path))}) as (process, _):
        output, errors = process.communicate(timeout=60)
        assert (output, errors) == ("True []\n", "")
