"""The example of a training on several ranks, as a user would run it, through everything that may happen to one."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import feedmill
from integration.epochs import TIMEOUT
from integration.fleet import Data, Fleet
from integration.processes import Served, wait_until
from integration.trainers import trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_ddp.py"

NOTES = """
import os, runpy, sys, warnings, feedmill, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
_, example, notes, *sys.argv[1:] = sys.argv
batches = feedmill.Feed.batches
def noted(feed):
    with open(f"{notes}-{os.environ['RANK']}", "a") as file:
        for batch in batches(feed):
            print(batch.epoch, batch.index, *batch.keys, file=file, flush=True)
            yield batch
feedmill.Feed.batches = noted
runpy.run_path(example, run_name="__main__")
"""
"""Runs the example, and notes every batch that it gets."""


@contextmanager
def training(folder: Path, notes: Path, world_size: int, *args: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run the example on so many ranks, as torchrun does."""
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        yield [
            stack.enter_context(
                trainer(
                    folder,
                    NOTES,
                    *(str(EXAMPLE), str(notes), *args),
                    env={
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(world_size),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                    },
                )
            )[0]
            for rank in range(world_size)
        ]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        output, errors = process.communicate(timeout=90)
        assert process.returncode == 0, output + errors


def noted(notes: Path, world_size: int) -> list[str]:
    """Return what was noted, in the order of the plan: a line for every batch."""
    ranks = [Path(f"{notes}-{rank}") for rank in range(world_size)]
    lines = [rank.read_text().splitlines() if rank.exists() else [] for rank in ranks]
    return [line for step in zip(*lines, strict=False) for line in step]


def keys_of(lines: list[str]) -> list[str]:
    """Return the epoch and key of every sample."""
    return [f"{epoch} {key}" for epoch, _, *keys in map(str.split, lines) for key in keys]


def test_a_training_survives_a_server_and_goes_on_after_an_interruption_on_other_ranks(
    tmp_path: Path, data: Data, fleet: Fleet, serve: Callable[..., Served]
) -> None:
    """Two ranks lose one of two servers, are killed, and come back as three: the samples are those of a quiet run."""
    pictures = data["pictures"]
    served = serve(
        *pictures.shards,
        *("--stream", "pictures", "--preset", "imagenet-train", "--batch-size", "16", "--workers", "1"),
    )
    ports = [url.rpartition(":")[2] for url in (served.url, fleet["two"])]
    args: tuple[str, ...] = (
        f"tcp://127.0.0.1:{{{','.join(ports)}}}",
        "--stream",
        "pictures",
        "--classes",
        "10",
        "--epochs",
        "2",
    )
    args = (*args, "--checkpoint", str(tmp_path / "run.pt"), "--every", "1")
    with training(tmp_path, tmp_path / "first", 2, *args) as processes:
        wait_until(lambda: len(noted(tmp_path / "first", 2)) >= 2, 60, "both ranks have begun")
        served.process.kill()
        wait_until(lambda: len(noted(tmp_path / "first", 2)) >= 12, 60, "two steps of the second epoch have begun")
        for process in processes:
            process.kill()
    state: dict[str, Any] = torch.load(tmp_path / "run.pt", weights_only=True)["feed"]
    assert state["epoch"] == 1
    before = [line for line in noted(tmp_path / "first", 2) if is_behind(line, state)]
    with training(tmp_path, tmp_path / "second", 3, *args) as processes:
        finish(processes)
    found = before + noted(tmp_path / "second", 3)
    with feedmill.connect(fleet["two"], "pictures", batch_size=state["batch_size"], timeout=TIMEOUT) as feed:
        expected = [f"{batch.epoch} {key}" for _ in range(2) for batch in feed.batches() for key in batch.keys]
    assert keys_of(found) == expected


def is_behind(line: str, state: dict[str, Any]) -> bool:
    """Tell whether a batch was handed out when the state was taken."""
    epoch, index = map(int, line.split()[:2])
    return (epoch, index) < (state["epoch"], state["batches"])
