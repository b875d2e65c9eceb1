"""`feedmill.local`: a private server gives what a remote one gives, takes any pipeline, and says what is wrong."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import feedmill
from feedmill_server import Pipeline
from integration.epochs import TIMEOUT, Reference, assert_same
from integration.fleet import PIPELINES, Data
from integration.pipelines import SLOW
from integration.processes import children, environment, wait_until
from integration.trainers import trainer
from shardmaker import write_tar


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Return a shard of the numbers from 0 to 19."""
    return write_tar(tmp_path / "numbers.tar", [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(20)])


def times(factor: int) -> Callable[[int], torch.Tensor]:
    """Return a lambda that is a closure."""
    return lambda value: torch.tensor(factor * value)


def values(feed: feedmill.Feed) -> list[int]:
    """Return the numbers of an epoch, sorted."""
    return sorted(int(value) for (batch,) in feed for value in batch)


# The same batches.


def test_a_preset_gives_the_batches_of_a_remote_server(data: Data, reference: Reference) -> None:
    """Pictures, augmented, to the bit."""
    dataset = data["pictures"]
    with feedmill.local(
        "imagenet-train", dataset.shards, workers=2, batch_size=dataset.batch_size, timeout=TIMEOUT
    ) as feed:
        assert_same(list(feed.batches()), reference("pictures"))


@pytest.mark.parametrize("pipeline", [SLOW, f"{PIPELINES}:SLOW"], ids=["object", "file"])
def test_a_pipeline_gives_the_batches_of_a_remote_server(
    data: Data, reference: Reference, pipeline: Pipeline | str
) -> None:
    """Whether it is named or handed over; its random numbers are the same."""
    with feedmill.local(pipeline, data["slow"].shards, workers=2, timeout=TIMEOUT) as feed:
        assert_same(list(feed.batches()), reference("slow"))


# Any pipeline.


def test_a_pipeline_may_be_made_of_lambdas_and_closures(numbers: Path) -> None:
    """What Python's own pickle refuses."""
    with feedmill.local(Pipeline("cls", transforms=[times(2)], batch_size=8), numbers, workers=1) as feed:
        assert len(feed) == 3
        assert values(feed) == [2 * n for n in range(20)]


@pytest.mark.parametrize("memory", [None, "1MB"])
def test_batches_are_kept_for_another_iteration_of_their_epoch_if_there_is_memory_for_that(
    tmp_path: Path, numbers: Path, memory: str | None
) -> None:
    """Otherwise they are made again, the same ones."""
    drawn = tmp_path / "drawn"

    def draw(value: int) -> torch.Tensor:
        number = random.random()  # says epoch and sample
        with drawn.open("a") as file:
            file.write(f"{number}\n")
        return torch.tensor(number, dtype=torch.float64)

    pipeline = Pipeline("cls", transforms=[draw], batch_size=4)
    with feedmill.local(pipeline, numbers, workers=1, memory=memory, prefetch=1, timeout=TIMEOUT) as feed:
        first = torch.cat([batch for (batch,) in feed])
        feed.set_epoch(0)
        assert torch.equal(torch.cat([batch for (batch,) in feed]), first)
    epoch = set(first.tolist())  # what is asked ahead of the next one may be made twice
    made = sum(float(line) in epoch for line in drawn.read_text().splitlines())
    assert made == 20 if memory else made > 20


SCRIPT = """
import sys
import torch, feedmill
from feedmill_server import Pipeline
from beside import three

factor = three()

def scaled(value):
    print("noise")
    return torch.tensor(factor * value)

class Shift:
    def __call__(self, value):
        return scaled(value) + 1

with feedmill.local(Pipeline("cls", transforms=[Shift()]), sys.argv[1], workers=1) as feed:
    print(sorted(feed.__iter__().__next__()[0].tolist()))
"""


def test_a_pipeline_may_be_defined_in_a_script_and_what_lies_beside_it(tmp_path: Path, numbers: Path) -> None:
    """A script's names come along, modules are found where it finds them; what workers print is not its output."""
    (tmp_path / "beside.py").write_text("def three():\n    return 3\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, numbers],
        cwd="/",
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == (f"{[3 * n + 1 for n in range(20)]}\n", 0), done.stderr
    assert done.stderr.count("noise") >= 20


# In other processes.


class Feeds(IterableDataset[list[int]]):
    """A feed in the workers of a DataLoader, which closes it there."""

    def __init__(self, feed: feedmill.Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Any:
        with self.feed:
            yield values(self.feed)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_workers_use_the_server_and_leave_it_to_the_trainer(numbers: Path) -> None:
    """They connect on their own; neither that they close the feed nor that they end ends it."""
    with feedmill.local(Pipeline("cls"), numbers, workers=1, timeout=TIMEOUT) as feed:
        loader = DataLoader(Feeds(feed), batch_size=None, num_workers=1, multiprocessing_context="fork")
        assert list(loader) == [list(range(20))]
        assert values(feed) == list(range(20))


def test_a_feed_that_nobody_holds_ends_its_server(numbers: Path) -> None:
    """Forgetting to close is no leak."""
    before = children(os.getpid())
    feed = feedmill.local(Pipeline("cls"), numbers, workers=1)
    (server,) = set(children(os.getpid())) - set(before)
    next(feed.batches())
    del feed
    wait_until(lambda: server not in children(os.getpid()), 15, "the server has ended")


PACKS = """
import hashlib
from feedmill.private import _packed
from feedmill_server import Pipeline
words = {"one", "two", "three", "four"}
print(hashlib.sha256(_packed(Pipeline("cls", transforms=[lambda x: x in words or x in {"five", "six"}]))).hexdigest())
"""


def test_the_same_pipeline_is_the_same_in_every_process(tmp_path: Path) -> None:
    """All ranks of a training make their own, and compare: the order of a set, another each time, means nothing."""
    digests = set()
    for hash_seed in "123":
        with trainer(tmp_path, PACKS, env={"PYTHONHASHSEED": hash_seed}) as (process, _):
            output, errors = process.communicate(timeout=60)
            assert errors == ""
            digests.add(output)
    assert len(digests) == 1


def test_sets_arrive_as_what_they_were(numbers: Path) -> None:
    """Those of strings take a way of their own."""
    words, fixed, primes = {"1", "3"}, frozenset({"5"}), {7, 11}

    def known(value: int) -> int:
        words.add("13")
        return int(str(value) in words or str(value) in fixed or value in primes)

    with feedmill.local(Pipeline("cls", transforms=[known], batch_size=20), numbers, workers=1, shuffle=False) as feed:
        assert [n for n, value in enumerate(next(iter(feed))[0]) if value] == [1, 3, 5, 7, 11, 13]


# What is wrong.


def fails(_: object) -> torch.Tensor:
    """Have no luck."""
    raise ValueError("no luck today")


LOCK = threading.Lock()
GOOD = Pipeline("cls")


@pytest.mark.parametrize(
    ("pipeline", "options", "kind", "says"),
    [
        (
            "imagenet",
            {},
            feedmill.UsageError,
            "'imagenet': expected a Pipeline, FILE.py:NAME.* presets are imagenet-tr",
        ),
        ("nowhere.py:train", {}, feedmill.PipelineError, "there is no file .*nowhere.py"),
        (3, {}, feedmill.UsageError, "pipeline=3: expected a feedmill_server.Pipeline"),
        (Pipeline("cls", transforms=[fails]), {}, feedmill.PipelineError, r"no luck today \(test_local.py, line"),
        (Pipeline("png"), {}, feedmill.PipelineError, "no sample has the field 'png'; the samples have cls"),
        (Pipeline("cls", transforms=[lambda _: LOCK]), {}, feedmill.UsageError, "cannot be sent .*lock"),
        (GOOD, {"workers": -1}, feedmill.UsageError, "workers=-1: expected an integer in 0..4096"),
        (GOOD, {"workers": object()}, feedmill.UsageError, "workers=<object .*: expected text"),
        (GOOD, {"memory": "lots"}, feedmill.UsageError, "memory='lots': expected a size like"),
        (GOOD, {"cache": 3}, feedmill.UsageError, "cache=3: expected a string"),
        (GOOD, {"sample_timeout": 0}, feedmill.UsageError, "sample_timeout=0: expected a number of seconds"),
        (GOOD, {"worker_memory": 1}, feedmill.UsageError, "worker_memory=1: expected 64MiB or more"),
        (GOOD, {"exact": "perhaps"}, feedmill.UsageError, "exact='perhaps': expected true or false"),
        (GOOD, {"order": "any"}, feedmill.UsageError, "order='any': expected 'plan' or 'arrival'"),
        (GOOD, {"memory": 4096, "batch_size": 1024}, feedmill.UsageError, "give memory= several times .* batch_size=$"),
        (GOOD, {"wrokers": 2}, TypeError, "unexpected keyword argument 'wrokers'"),
        (GOOD, {"stream": "val"}, TypeError, "multiple values for argument 'stream'"),
    ],
)
def test_what_cannot_work_is_said(
    numbers: Path, pipeline: Any, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """In the trainer, with the class and the text that `feedmill serve` and `feedmill.connect` have for it."""
    with pytest.raises(kind, match=says):
        feedmill.local(pipeline, numbers, **({"workers": 1} | options))


@pytest.mark.parametrize(
    ("shards", "kind", "says"),
    [
        ("nowhere-{0..3}.tar", feedmill.ShardError, "shard nowhere-0.tar: No such file.*check its path and bounds"),
        ([], feedmill.UsageError, "stream train has no shards"),
        (3, feedmill.UsageError, "shards must be a list of strings"),
        ([Path("a.tar"), 3], feedmill.UsageError, "shards must be a list of strings"),
    ],
)
def test_shards_that_are_none_are_said(shards: Any, kind: type[Exception], says: str) -> None:
    """With all that the trainer needs to find them."""
    with pytest.raises(kind, match=says):
        feedmill.local(GOOD, shards, workers=1)


def test_a_shard_error_has_its_attributes(tmp_path: Path) -> None:
    """It is the server's, made anew in the trainer."""
    with pytest.raises(feedmill.ShardError) as raised:
        feedmill.local(GOOD, tmp_path / "nowhere.tar", workers=1)
    assert raised.value.shard == str(tmp_path / "nowhere.tar")
    assert raised.value.reason.startswith("No such file")


def test_an_embedded_python_is_told_so(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no executable, or one that is no Python: whatever that does, it does not begin to serve."""
    for executable, says in (
        ("", "embedded in a program"),
        ("/nowhere/python", "cannot start /nowhere/python: No such file"),
        ("/bin/true", "ended with exit code 0"),
    ):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(feedmill.FeedmillError, match=says):
            feedmill.local("imagenet-eval", numbers)


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
import feedmill
try:
    feedmill.local("imagenet-eval", "x.tar")
except feedmill.UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["feedmill_server", "cloudpickle"])
def test_without_the_server_extra_the_error_says_what_to_install(tmp_path: Path, name: str) -> None:
    """The base install has `feedmill.local`, and says what it lacks."""
    with trainer(tmp_path, WITHOUT, name) as (process, _):
        output, errors = process.communicate(timeout=60)
        assert (output, errors) == (f"feedmill.local needs {name}; pip install 'feedmill[server]'\n", "")
