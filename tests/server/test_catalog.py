import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from feedmill_protocol.errors import ShardError
from feedmill_server import catalog
from feedmill_server.catalog import Catalog
from feedmill_server.shards import ShardStore
from shardmaker import write_tar


def shard(folder: Path, number: int, samples: int) -> Path:
    folder.mkdir(exist_ok=True)
    return write_tar(
        folder / f"{number}.tar",
        [(f"{i}", {"jpg": b"", "cls": b""} if i % 2 else {"jpg": b""}) for i in range(samples)],
    )


def test_a_catalog_counts_samples_and_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards come in the order of the store, and progress is told after each."""
    monkeypatch.setattr(catalog, "SUBMITTED", 2)
    done: list[tuple[int, int]] = []
    paths = [shard(tmp_path, i, i + 1) for i in range(5)]
    built = Catalog.build(ShardStore(paths), lambda *progress: done.append(progress))
    assert built.names == ("0.tar", "1.tar", "2.tar", "3.tar", "4.tar")
    assert built.counts.tolist() == [1, 2, 3, 4, 5]
    assert built.counts.dtype == np.dtype(np.uint32)
    assert built.extensions == {"jpg": 15, "cls": 6}
    assert done == [(i, 5) for i in range(1, 6)]
    contents = b"".join(ShardStore(paths).index(i).digest() for i in range(5))
    lines = "".join(f"{i}.tar\0{i + 1}\0{path.stat().st_size}\n" for i, path in enumerate(paths))
    assert built.digest == hashlib.sha256(hashlib.sha256(contents).digest() + lines.encode()).hexdigest()[:32]


def test_equal_shards_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    """Folder, time and cache do not matter; order, names and counts do."""
    here, there = ([shard(tmp_path / folder, i, 3) for i in range(2)] for folder in "ab")
    os.utime(there[0], (1, 1))
    digest = Catalog.build(ShardStore(here)).digest
    assert digest == Catalog.build(ShardStore(here)).digest == Catalog.build(ShardStore(there)).digest
    assert digest != Catalog.build(ShardStore(here[::-1])).digest
    assert digest != Catalog.build(ShardStore([here[0], shard(tmp_path / "c", 1, 4)])).digest


def test_another_layout_is_another_digest(tmp_path: Path) -> None:
    """Shards of the same name, size and count may have other samples, or the same in another order."""
    orders: list[list[tuple[str, dict[str, bytes]]]] = [
        [("a", {"jpg": b"1"}), ("b", {"jpg": b"2"})],
        [("b", {"jpg": b"2"}), ("a", {"jpg": b"1"})],
        [("a", {"jpg": b"1"}), ("c", {"jpg": b"2"})],
        [("a", {"jpg": b"1"}), ("b", {"png": b"2"})],
        [("a", {"jpg": b"1"}), ("b", {"jpg": b"22"})],
    ]
    digests = set()
    for i, order in enumerate(orders):
        (folder := tmp_path / str(i)).mkdir()
        path = write_tar(folder / "0.tar", order)
        digests.add(fresh := Catalog.build(ShardStore([path])).digest)
        assert Catalog.build(ShardStore([path])).digest == fresh  # of the stored index
        assert path.stat().st_size == (tmp_path / "0" / "0.tar").stat().st_size
    assert len(digests) == len(orders)


def test_a_damaged_shard_is_an_error(tmp_path: Path) -> None:
    """A catalog leaves nothing out."""
    bad = tmp_path / "bad.tar"
    bad.write_text("text")
    with pytest.raises(ShardError, match=r"^shard bad.tar: not a tar file"):
        Catalog.build(ShardStore([shard(tmp_path, 0, 1), bad, shard(tmp_path, 1, 1)]))
