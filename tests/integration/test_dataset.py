"""FeedDataset in torch's DataLoader: every sample once over all workers, in the order of the plan."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import feedmill
from feedmill.dataset import Options
from integration.epochs import TIMEOUT, Reference
from integration.fakes import FakeServer, silence
from integration.fleet import Fleet
from integration.processes import alive, children, descendants, read_line, wait_until
from integration.trainers import trainer

pytestmark = [
    # Of 3.12, where torch forks a process with threads.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    # That there are fewer cores than workers.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def reference_values(reference: Reference) -> list[torch.Tensor]:
    """Return the tensors of epoch 0."""
    return [batch.tensors[0] for batch in reference("slow")]


def dataset_of(url: str, **options: Any) -> feedmill.FeedDataset:
    return feedmill.FeedDataset(url, "slow", timeout=TIMEOUT, prefetch=2, **options)


def loader_of(dataset: feedmill.FeedDataset, workers: int, **options: Any) -> "DataLoader[Any]":
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def values(batches: Any) -> list[torch.Tensor]:
    return [tensor.clone() for (tensor,) in batches]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_loader_hands_out_the_epoch_in_the_order_of_the_plan(
    fleet: Fleet, reference_values: list[torch.Tensor], workers: int
) -> None:
    """However many workers there are; and then the next epoch."""
    dataset = dataset_of(fleet["four"])
    loader = loader_of(dataset, workers)
    assert len(loader) == len(dataset) == 13
    assert_equal(values(loader), reference_values)
    second = values(loader)
    assert sorted(rows(second)) == sorted(rows(reference_values))
    assert rows(second) != rows(reference_values)
    dataset.close()


SPAWNS = """
import sys, warnings, feedmill, torch
warnings.simplefilter("ignore")
if __name__ == "__main__":
    dataset = feedmill.FeedDataset(sys.argv[1], "slow", timeout=60)
    context, workers = sys.argv[2], int(sys.argv[3])
    loader = torch.utils.data.DataLoader(dataset, None, num_workers=workers, multiprocessing_context=context)
    with feedmill.connect(sys.argv[1], "slow", timeout=60) as feed:
        for _ in range(2):
            found = [tensor.clone() for (tensor,) in loader]
            print(all(ours.equal(theirs) for ours, (theirs,) in zip(found, feed, strict=True)), len(found))
"""


@pytest.mark.parametrize(("context", "workers"), [("spawn", 1), ("spawn", 4), ("forkserver", 2)])
def test_workers_need_not_be_forked(tmp_path: Path, fleet: Fleet, context: str, workers: int) -> None:
    """In new processes a dataset connects as well, and their epochs go on."""
    with trainer(tmp_path, SPAWNS, fleet["four"], context, str(workers)) as (process, _):
        output, errors = process.communicate(timeout=100)
        assert (output, errors, process.returncode) == ("True 13\nTrue 13\n", "", 0)


def rows(batches: list[torch.Tensor]) -> list[float]:
    """Return the numbers of the samples."""
    return [float(value) for batch in batches for value in batch[:, 0]]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (3, False), (3, True)])
def test_epochs_are_those_of_a_feed(fleet: Fleet, workers: int, persistent: bool) -> None:  # noqa: FBT001 # a parameter
    """One after the other, or as set; also in workers that live on."""
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        expected = [[batch.tensors[0].clone() for batch in feed.batches()] for _ in range(3)]
    dataset = dataset_of(fleet["four"])
    loader = loader_of(dataset, workers, persistent_workers=persistent)
    for epoch in range(2):
        assert_equal(values(loader), expected[epoch])
    dataset.set_epoch(2)
    assert_equal(values(loader), expected[2])
    dataset.set_epoch(0)
    for epoch in range(2):
        assert_equal(values(loader), expected[epoch])
    del loader
    dataset.close()


def test_an_epoch_that_was_left_early_is_followed_by_the_next_in_all_workers(fleet: Fleet) -> None:
    """Also where torch's own seed is the same every time, and some workers may not have begun."""
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        feed.set_epoch(3)
        expected = [batch.tensors[0].clone() for batch in feed.batches()]
    dataset = dataset_of(fleet["four"])
    loader = loader_of(dataset, 2)
    for _ in range(3):
        torch.manual_seed(1)
        next(iter(loader))
    torch.manual_seed(1)
    assert_equal(values(loader), expected)


def test_workers_that_never_began_are_not_an_epoch_behind() -> None:
    """The numbers that workers come to, without the workers."""
    dataset = feedmill.FeedDataset("tcp://127.0.0.1:1")
    assert [turn(dataset, worker, 4, seed=10) for worker in (0, 1)] == [0, 0]
    assert [turn(dataset, worker, 4, seed=20) for worker in (3, 1, 0, 2)] == [1, 1, 1, 1]
    assert [turn(dataset, worker, 4, seed=20) for worker in (2, 1, 0, 3)] == [2, 2, 2, 2]
    dataset.set_epoch(7)
    assert [turn(dataset, worker, 2, seed=2**63 - 1) for worker in (1, 0)] == [0, 0]


def turn(dataset: feedmill.FeedDataset, worker: int, workers: int, seed: int) -> int:
    with worker_info(dataset, worker, workers, seed):
        return dataset._begin()


def worker_info(dataset: feedmill.FeedDataset, worker: int, workers: int, seed: int) -> Any:
    """Stand in for a DataLoader's worker."""
    from torch.utils.data._utils.worker import WorkerInfo

    info = WorkerInfo(id=worker, num_workers=workers, seed=seed + worker, dataset=dataset)
    patch = pytest.MonkeyPatch()
    patch.setattr("torch.utils.data._utils.worker._worker_info", info)

    class Patched:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            patch.undo()

    return Patched()


def test_ranks_and_workers_share_an_epoch(fleet: Fleet) -> None:
    """Two ranks with three workers each: as many batches on both, and every sample once."""
    found = []
    for rank in range(2):
        dataset = dataset_of(fleet["four"], rank=rank, world_size=2)
        found.append(values(loader_of(dataset, 3)))
        with feedmill.connect(fleet["four"], "slow", rank=rank, world_size=2, timeout=TIMEOUT) as feed:
            assert_equal(found[-1], [batch.tensors[0] for batch in feed.batches()])
    assert len(found[0]) == len(found[1])
    assert sorted(rows(found[0]) + rows(found[1])) == list(range(100))


def test_workers_have_the_rank_of_the_process_that_made_them(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the process group themselves."""
    monkeypatch.setattr("feedmill.ranks.world", lambda: (1, 2))
    dataset = dataset_of(fleet["four"])
    with feedmill.connect(fleet["four"], "slow", rank=1, world_size=2, timeout=TIMEOUT) as feed:
        expected = [batch.tensors[0].clone() for batch in feed.batches()]
    assert len(dataset) == len(expected) == 7
    assert_equal(values(loader_of(dataset, 2)), expected)
    pickled = pickle.dumps(dataset)
    monkeypatch.setattr("feedmill.ranks.world", lambda: None)
    copied = pickle.loads(pickled)  # noqa: S301 # our own
    copied.set_epoch(0)
    assert_equal(values(copied), expected)
    copied.close()


def test_more_workers_than_batches_are_no_harm(fleet: Fleet) -> None:
    """Some have nothing to do."""
    dataset = dataset_of(fleet["four"], batch_size=50)
    assert [len(batch) for batch in values(loader_of(dataset, 3))] == [50, 50]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_would_collate_batches_is_refused(fleet: Fleet, workers: int) -> None:
    """batch_size=1 is DataLoader's default, and would add a dimension to every tensor."""
    dataset = dataset_of(fleet["four"])
    with pytest.raises(feedmill.UsageError, match="give batch_size=None to DataLoader"):
        next(iter(DataLoader(dataset, num_workers=workers)))
    dataset.close()


def test_what_cannot_work_is_said(fleet: Fleet) -> None:
    """Arguments at once, the rest when it is known."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        feedmill.FeedDataset("tcp://127.0.0.1:1", batchsize=3)  # type: ignore[call-arg]
    dataset = feedmill.FeedDataset("tcp://127.0.0.1:1")
    with pytest.raises(feedmill.UsageError, match=r"epoch=-1: expected an integer"):
        dataset.set_epoch(-1)
    with pytest.raises(feedmill.UsageError, match=r"state={}: expected what state_dict\(\) returned"):
        dataset.load_state_dict({})
    with (
        worker_info(dataset, 0, 1025, 0),
        pytest.raises(feedmill.UsageError, match="num_workers=1025: expected at most 1024"),
    ):
        dataset._begin()
    meta = feedmill.FeedDataset(fleet["four"], "slow", device="meta")
    with (
        worker_info(meta, 0, 1, 0),
        pytest.raises(feedmill.UsageError, match="device='meta': DataLoader's workers have tensors on the CPU"),
    ):
        next(iter(meta))


def test_it_is_pickled_without_its_connection(fleet: Fleet, reference_values: list[torch.Tensor]) -> None:
    """A copy connects on its own."""
    dataset = dataset_of(fleet["four"])
    iteration = iter(dataset)
    next(iteration)
    copied = pickle.loads(pickle.dumps(dataset))  # noqa: S301 # our own
    assert copied._feed is None
    assert copied.state_dict() == dataset.state_dict()
    copied.set_epoch(0)
    assert_equal(values(copied), reference_values)
    dataset.close()
    copied.close()


def test_options_are_the_arguments_of_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and type."""
    import inspect
    from typing import get_type_hints

    parameters = inspect.signature(feedmill.connect).parameters
    names = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert names == list(Options.__annotations__)
    monkeypatch.setattr(feedmill.feed, "torch", torch, raising=False)  # which it imports for type checkers alone
    ours, theirs = get_type_hints(Options), get_type_hints(feedmill.connect)
    assert ours == {name: theirs[name] for name in names}


# States.


def test_without_workers_the_state_is_the_datasets(fleet: Fleet, reference_values: list[torch.Tensor]) -> None:
    """A plain DataLoader then has nothing in hand."""
    dataset = dataset_of(fleet["four"])
    iteration = iter(loader_of(dataset, 0))
    found = [next(iteration)[0].clone() for _ in range(5)]
    state = dataset.state_dict()
    dataset.close()
    dataset.close()
    assert dataset.state_dict() == state
    again = dataset_of(fleet["four"])
    again.load_state_dict(state)
    assert again.state_dict() == state
    again.set_epoch(0)  # as loops do
    assert_equal(found + values(loader_of(again, 0)), reference_values)
    again.close()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_go_on_where_a_feed_was(
    fleet: Fleet,
    reference_values: list[torch.Tensor],
    persistent: bool,  # noqa: FBT001 # a parameter
) -> None:
    """A state that is common to all is shared out; the epochs that follow are whole."""
    with feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        found = [next(iteration).tensors[0].clone() for _ in range(5)]
        state = feed.state_dict()
        second = [batch.tensors[0].clone() for batch in feed.batches()]
    dataset = dataset_of(fleet["four"])
    dataset.load_state_dict(state)
    loader = loader_of(dataset, 2, persistent_workers=persistent)
    assert_equal(found + values(loader), reference_values)
    assert_equal(values(loader), second)
    with pytest.raises(feedmill.UsageError, match="use torchdata's StatefulDataLoader"):
        dataset.state_dict()
    dataset.set_epoch(0)
    assert_equal(values(loader), reference_values)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 with torch 2.14
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_torchdatas_loader_resumes_at_every_step(fleet: Fleet, workers: int) -> None:
    """Also before the first batch and at both ends of the last one; the next epoch follows."""
    epochs: list[list[torch.Tensor]] = []
    states: list[Any] = []

    def loader_and_dataset() -> tuple[Any, feedmill.FeedDataset]:
        dataset = dataset_of(fleet["four"], batch_size=20)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers), dataset

    loader, dataset = loader_and_dataset()
    states.append(loader.state_dict())
    for _ in range(2):
        epochs.append([])
        for (tensor,) in loader:
            epochs[-1].append(tensor.clone())
            if len(epochs) == 1:
                states.append(loader.state_dict())
        if len(epochs) == 1:
            states.append(loader.state_dict())
    assert len(states) == 7
    dataset.close()
    for step, state in enumerate(states):
        loader, dataset = loader_and_dataset()
        loader.load_state_dict(pickle.loads(pickle.dumps(state)))  # noqa: S301 # our own
        if step < 6:
            assert_equal(epochs[0][:step] + values(loader), epochs[0])
        assert_equal(values(loader), epochs[1])
        dataset.close()


# Ends.


LOADS = """
import sys, warnings, feedmill, torch
warnings.simplefilter("ignore")
if __name__ == "__main__":
    dataset = feedmill.FeedDataset(sys.argv[1], sys.argv[2], timeout=20)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2):
        print(len(batch[0]), flush=True)
        if len(sys.argv) > 3:
            break
    print("done", flush=True)
"""


def workers_of(pid: int) -> list[int]:
    wait_until(lambda: len(children(pid)) == 2, 30, "the workers have begun")
    return descendants(pid)


@pytest.fixture
def mute() -> Iterator[FakeServer]:
    """Keep a server that never answers."""
    with FakeServer(silence) as fake:
        yield fake


def test_ctrl_c_ends_a_trainer_whose_workers_wait(tmp_path: Path, mute: FakeServer) -> None:
    """A terminal sends it to all of them; nothing is left."""
    with trainer(tmp_path, LOADS, mute.url, "slow") as (process, _):
        workers = workers_of(process.pid)
        mute.wait_greeted(2)
        begun = time.monotonic()
        for pid in (*workers, process.pid):
            os.kill(pid, signal.SIGINT)
        process.communicate(timeout=10)
        assert time.monotonic() - begun < 8.0
        wait_until(lambda: not any(map(alive, workers)), 2, "the workers have ended")


def test_workers_do_not_outlive_a_trainer_that_was_killed(tmp_path: Path, fleet: Fleet) -> None:
    """They notice when they have nothing to do, which is soon when batches come."""
    with trainer(tmp_path, LOADS, fleet["four"], "slow") as (process, output):
        assert read_line(output, 30) == "8\n"
        workers = descendants(process.pid)
        process.kill()
        process.wait(5)
        wait_until(lambda: not any(map(alive, workers)), 15, "the workers have ended")


def test_workers_that_wait_for_servers_outlive_their_trainer_by_their_timeout(tmp_path: Path, mute: FakeServer) -> None:
    """Every wait has a deadline."""
    with trainer(tmp_path, LOADS.replace("timeout=20", "timeout=3"), mute.url, "slow") as (process, _):
        workers = workers_of(process.pid)
        mute.wait_greeted(2)
        process.kill()
        process.wait(5)
        wait_until(lambda: not any(map(alive, workers)), 15, "the workers have ended")


def test_a_trainer_that_leaves_its_loader_exits_promptly_and_quietly(tmp_path: Path, fleet: Fleet) -> None:
    """In the middle of an epoch, with batches on their way."""
    with trainer(tmp_path, LOADS, fleet["four"], "slow", "break") as (process, output):
        assert [read_line(output, 30), read_line(output, 30)] == ["8\n", "done\n"]
        begun = time.monotonic()
        _, errors = process.communicate(timeout=15)
        assert time.monotonic() - begun < 8.0
        assert (process.returncode, errors) == (0, "")
