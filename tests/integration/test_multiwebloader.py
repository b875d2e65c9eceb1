"""MultiWebLoader: the batches of WebLoader, made by other processes, none of which outlives its use."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import feedmill as wl
from feedmill_protocol.errors import SampleError, UsageError
from integration.loaders import COMPOSED, Sample, equal, labels, write
from integration.processes import READY_SECONDS, alive, children, descendants, environment, read_line, wait_until
from shardmaker import write_tar

N = 47

END_SECONDS = 15.0
"""Within which everything has gone: one or two, and several times that on a busy machine."""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the shard that most tests read."""
    return write(tmp_path_factory.mktemp("shard") / "pictures.tar", N)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make shards of samples that can be batched as they are; return a pattern."""
    folder = tmp_path_factory.mktemp("numbers")
    for shard in range(3):
        write_tar(
            folder / f"{shard}.tar",
            [(f"{shard}-{n}", {"cls": b"%d" % (10 * shard + n), "id": b"%d" % n}) for n in range(10)],
        )
    return f"{folder}/{{0..2}}.tar"


def stage(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Add what is drawn."""
    return ({**sample, "Drawn": torch.rand(3)} for sample in samples)


def crop(array: Any) -> Any:
    """Cut out a piece, at random."""
    at = np.random.randint(10)  # noqa: NPY002 # what a user's transform draws from
    return array[at : at + 20, :20]


OPTIONS: dict[str, dict[str, Any]] = {
    "the seed's": {
        "fields": "ppm;png;jpg cls",
        "decode": "PIL",
        "transforms": [COMPOSED, None],
        "converters": "torch",
        "batch_size": 8,
        "epochs": 2,
        "shuffle": 100,
    },
    "as written, keys and lists, a part, of a shard that comes twice": {
        "fields": "__key__ png cls",
        "decode": "PIL",
        "transforms": [None, COMPOSED, None],
        "tensor_batches": False,
        "batch_size": 10,
        "partial_batches": False,
        "exact": True,
        "seed": 7,
        "subset": (1, 2),
        "shuffle": 1000,
    },
    "arrays, numbers and lambdas": {
        "fields": "png cls json",
        "transforms": [crop, lambda label: label + 0.5, lambda found: np.float64(found["half"])],
        "batch_transforms": [lambda images: images * 2, None, None],
        "converters": ["torch", None, "numpy"],
        "batch_size": 16,
    },
    "single samples": {
        "fields": "__key__ png cls json",
        "decode": "rgb8",
        "transforms": [None, crop, None, lambda found: found["half"] / 3],  # no float32
        "epochs": 2,
    },
    "a pipeline": {"fields": "drawn cls", "pipeline": [stage, stage], "batch_size": 20, "shardshuffle": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batches_are_those_of_a_webloader(shard: str, options: dict[str, Any]) -> None:
    """To the bit, in the same order, and as many as len says."""
    shards = [shard] * (1 + ("subset" in options))
    expected = list(wl.WebLoader(shards, **options))
    with wl.MultiWebLoader(shards, processes=2, **options) as loader:
        assert len(loader) == len(expected)
        assert equal(list(loader), expected)


def test_without_fields_they_are_the_dicts_of_a_webloader(numbers: str) -> None:
    """As long as all that a sample has can be batched."""
    expected = list(wl.WebLoader(numbers, batch_size=8))
    with wl.MultiWebLoader(numbers, processes=2, batch_size=8) as loader:
        assert equal(list(loader), expected)


def test_iterations_go_on_with_the_next_epochs_on_the_same_server(numbers: str) -> None:
    """One that came to its end leaves the server for the next one, which is the next epoch."""
    alone = wl.WebLoader(numbers, 3, fields="cls", batch_size=8, shuffle=100)
    with wl.MultiWebLoader(numbers, 3, processes=1, fields="cls", batch_size=8, shuffle=100) as loader:
        first, servers = labels(loader), children(os.getpid())
        second = labels(loader)
        assert children(os.getpid()) == servers
        assert (first, second) == (labels(alone), labels(alone))
        assert first != second


def test_a_loop_that_is_left_leaves_no_process(numbers: str) -> None:
    """By break, or by an error; the next iteration starts others."""
    before = set(children(os.getpid()))
    loader = wl.MultiWebLoader(numbers, processes=2, fields="cls", batch_size=8)
    for _ in loader:
        started = [pid for child in set(children(os.getpid())) - before for pid in (child, *descendants(child))]
        assert len(started) >= 3  # broker, fork server, one of the workers
        break
    wait_until(lambda: not any(map(alive, started)), END_SECONDS, "nothing of it is left")
    with pytest.raises(TypeError):
        sum(loader)  # lists are no numbers
    wait_until(lambda: set(children(os.getpid())) <= before, END_SECONDS, "nothing of the next is left")


def test_a_worker_that_is_killed_is_replaced(numbers: str) -> None:
    """No sample is lost, none comes twice."""
    with wl.MultiWebLoader(numbers, processes=2, queue_size=1, fields="cls", batch_size=2, epochs=3) as loader:
        seen = []
        for number, batch in enumerate(loader):
            seen += batch[0].tolist()
            if number % 10 == 5:
                [server] = children(os.getpid())[-1:]
                for pid in descendants(server)[-1:]:
                    with suppress(ProcessLookupError):  # the one before may just be going
                        os.kill(pid, signal.SIGKILL)
        assert seen == [*range(30)] * 3


def test_a_pipe_and_what_is_done_to_batches_run_in_the_trainer(numbers: str) -> None:
    """They may be anything, and keep what they like."""
    here = []

    def note(labels: Any) -> Any:
        here.append(os.getpid())
        return labels

    def every_other(batches: Iterator[Any]) -> Iterator[Any]:
        return islice(batches, 0, None, 2)

    with wl.MultiWebLoader(
        numbers, processes=1, fields="cls", batch_size=5, batch_transforms=note, multi_pipe=every_other
    ) as loader:
        assert labels(loader) == [n for n in range(30) if n // 5 % 2 == 0]
    assert here == [os.getpid()] * 6


TRAINER = """
import sys, time
import feedmill as wl
for batch in wl.MultiWebLoader(sys.argv[1], epochs=1000, processes=2, fields="cls", batch_size=4):
    print("a batch", flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_trainer_that_is_ended_leaves_no_process(numbers: str, tmp_path: Path, how: int) -> None:
    """Whatever ends it."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(tmp_path),
    ) as trainer:
        assert trainer.stdout is not None
        assert read_line(trainer.stdout, READY_SECONDS) == "a batch\n"
        started = descendants(trainer.pid)
        assert len(started) >= 3
        trainer.send_signal(how)
        trainer.stdout.close()
        trainer.wait(END_SECONDS)
    wait_until(lambda: not any(map(alive, started)), END_SECONDS, "nothing of it is left")


# What cannot be.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fields": "txt cls"}, r"^field 'txt' is a str in sample 000, and only tensors come .*, or use WebLoader$"),
        (
            {"fields": "png"},
            r"^field 'png' is float32 \[60, 40, 3\] in sample 000 and .*41, 3\] in sample 001, .*WebLo",
        ),
        ({}, r"^field 'png' is float32 .*use WebLoader$"),
        ({"fields": "__key__"}, r"^fields='__key__': give another beside __key__, or use WebLoader$"),
        (
            {"fields": "__key__ cls", "transforms": [str, None]},
            r"^transforms: __key__ comes from no worker; change it in batch_",
        ),
        ({"fields": "cls", "split": False}, r"^split=False: the processes share the samples"),
        ({"fields": "cls", "processes": 0}, r"^processes=0: "),
        ({"fields": "cls", "queue_size": 0}, r"^queue_size=0: "),
        ({"fields": "cls", "multi_pipe": "gpu"}, r"^multi_pipe='gpu': "),
    ],
)
def test_what_cannot_come_from_other_processes_is_an_error_when_the_loader_is_made(
    shard: str, options: dict[str, Any], says: str
) -> None:
    """Before any is started. It says what would work."""
    with pytest.raises(UsageError, match=says):
        wl.MultiWebLoader(shard, **options)


def test_a_pipeline_that_leaves_all_samples_out_is_an_error(shard: str) -> None:
    """There is nothing to learn the fields from."""
    with pytest.raises(wl.PipelineError, match=r"^pipeline: makes no sample of any; in other processes it must make"):
        wl.MultiWebLoader(shard, fields="cls", pipeline=lambda samples: (s for s in samples if not s))


def test_an_iterable_is_for_one_process() -> None:
    """Nobody could say which of its samples is whose."""
    with pytest.raises(UsageError, match=r"^an iterable is read in one process: give it to WebLoader, or write"):
        wl.MultiWebLoader(None, source=[{"cls": 1}], fields="cls")  # type: ignore[arg-type]


def test_a_sample_that_cannot_be_made_ends_the_iteration_and_the_server(shard: str) -> None:
    """Shard, key and the user's line are named, as by WebLoader."""
    before = children(os.getpid())
    loader = wl.MultiWebLoader(
        shard, processes=1, fields="cls", transforms=lambda label: 1 // (label - 20), batch_size=8
    )
    with pytest.raises(
        SampleError, match=r"^shard pictures\.tar, sample 020: ZeroDivisionError: .*test_multiwebloader"
    ):
        list(loader)
    wait_until(lambda: set(children(os.getpid())) <= set(before), END_SECONDS, "the server has ended")
