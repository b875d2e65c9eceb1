"""``.ten`` files, ours and tensorcom's."""

from pathlib import Path

import numpy as np
import pytest
import tensorcom.tenbin
import torch

from feedmill import tenbin
from feedmill_protocol.errors import DataError, UsageError

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([3, 4], np.int64)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Arrays and infos, in order; they may be written to."""
    tenbin.save(tmp_path / "a.ten", IMAGES, LABELS, infos=["image", "label"])
    (images, labels), infos = tenbin.load(tmp_path / "a.ten", infos=True)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert infos == ["image", "label"]
    images[0] = 1


def test_tensorcom_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    """The very same bytes."""
    ours, theirs = str(tmp_path / "ours.ten"), str(tmp_path / "theirs.ten")
    tenbin.save(ours, IMAGES, LABELS, infos=["image", "label"])
    tensorcom.tenbin.save(theirs, IMAGES, LABELS, infos=["image", "label"])
    assert Path(ours).read_bytes() == Path(theirs).read_bytes()
    assert np.array_equal(tensorcom.tenbin.load(ours)[0], IMAGES)
    assert np.array_equal(tenbin.load(theirs)[1], LABELS)


def test_tensors_are_saved_as_arrays(tmp_path: Path) -> None:
    """What is neither is refused."""
    tenbin.save(tmp_path / "a.ten", torch.arange(3))
    (numbers,) = tenbin.load(tmp_path / "a.ten")
    assert numbers.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="list is no array"):
        tenbin.save(tmp_path / "b.ten", [1, 2])
    assert not (tmp_path / "b.ten").exists()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    """With what is wrong about them."""
    with pytest.raises(UsageError, match=r"a\.ten: No such file"):
        tenbin.load(tmp_path / "a.ten")
    (tmp_path / "a.ten").write_bytes(b"PK" * 50)
    with pytest.raises(DataError, match=r"a\.ten is no \.ten file, or damaged: tenbin: at byte 0: expected"):
        tenbin.load(tmp_path / "a.ten")
