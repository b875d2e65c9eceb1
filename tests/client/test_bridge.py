"""What a bridge sends on, and when it ends; without servers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from feedmill.bridge import bridge, portable
from feedmill.cli import main
from feedmill.tensorcom import Connection
from feedmill_protocol.errors import UsageError


@dataclass
class Feed:
    """Epochs of so many batches of two samples."""

    batches: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return ((torch.zeros(2, 3, 4, 5), torch.tensor([i, i])) for i in range(self.batches))


def test_dtypes_that_tensorcom_lacks_become_wider() -> None:
    """With the same values; the others stay."""
    values = torch.tensor([0, 1, 200])
    given = [values.to(d) for d in (torch.bool, torch.uint32, torch.bfloat16, torch.int64, torch.uint8, torch.float16)]
    sent = portable(given)
    assert [array.dtype.name for array in sent] == ["uint8", "int64", "float32", "int64", "uint8", "float16"]
    assert sent[1].tolist() == sent[2].tolist() == [0, 1, 200]
    with pytest.raises(UsageError, match="no complex64"):
        portable([torch.zeros(2, dtype=torch.complex64)])


def test_channels_of_pictures_come_last() -> None:
    """As tensorcom's servers send them, in memory too; other tensors stay."""
    pictures = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    masks = torch.zeros(2, 1, 4, 5)
    last, same = portable([pictures, masks])
    assert (last.shape, same.shape) == ((2, 4, 5, 3), (2, 1, 4, 5))
    assert np.array_equal(last, pictures.permute(0, 2, 3, 1).numpy())
    assert last.flags.c_contiguous
    assert portable([pictures], nhwc=False)[0].shape == (2, 3, 4, 5)


def test_pictures_that_have_their_channels_last_in_memory_are_not_copied() -> None:
    """As those of a feed have."""
    pictures = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    (sent,) = portable([pictures])
    sent[0, 0, 0, 2] = 7
    assert pictures[0, 2, 0, 0] == 7


def test_so_many_epochs_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One after the other; the log says now and then how it goes."""
    clock = iter(range(0, 1000, 4))
    with (
        Connection(f"zrpush+ipc://{tmp_path}/s", allow64=True, timeout=20) as writer,
        Connection(f"zrpull+ipc://{tmp_path}/s", total=12, timeout=20) as reader,
        caplog.at_level("INFO", "feedmill"),
    ):
        assert bridge(Feed(3), writer, epochs=2, clock=lambda: next(clock)) == 6
        assert [int(labels[0]) for _, labels in reader] == [0, 1, 2, 0, 1, 2]
    said = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert said == ["epoch 0: sent 3 batches", "epoch 1: sent 6 batches"]


def test_an_epoch_without_batches_is_an_error(tmp_path: Path) -> None:
    """And no endless loop."""
    with (
        Connection(f"zrpush+ipc://{tmp_path}/s", timeout=20) as writer,
        pytest.raises(UsageError, match="holds no batch"),
    ):
        bridge(Feed(0), writer)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tcp://127.0.0.1:1", "zsub://127.0.0.1:1"], "zsub://127.0.0.1:1 receives; a bridge sends"),
        (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"], "expected one of zpush"),
        (["zpub://127.0.0.1:1", "zpub://127.0.0.1:2"], "expected tcp://HOST:PORT"),
        (["tcp://127.0.0.1:1", "zpub://127.0.0.1:*", "--epochs", "0"], "--epochs=0: expected"),
    ],
)
def test_command_lines_that_cannot_work_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with exit code 2."""
    assert main(["bridge", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("feedmill: ")
    assert says in said
    assert said.count("\n") == 1
