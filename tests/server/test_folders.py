from pathlib import Path

import numpy as np
import pytest

from feedmill_server import folders
from feedmill_server.catalog import Catalog
from feedmill_server.folders import FolderStore
from feedmill_server.tree import Tree
from foldermaker import write_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Return 3 classes of 20 pictures each, which say what they are; a virtual shard has 16 at most."""
    monkeypatch.setattr(folders, "SHARD_SAMPLES", 16)
    files = {f"{label}/{n:02d}.jpg": f"{label} {n}".encode() for label in "abc" for n in range(20)}
    return Tree.scan(str(write_tree(tmp_path / "tree", files)))


def test_every_picture_is_in_one_virtual_shard_with_its_label(tree: Tree) -> None:
    """Under the key that its path gives."""
    store = FolderStore(tree)
    assert store.names == ("files-000000", "files-000001", "files-000002", "files-000003")
    found = {}
    for i in range(len(store)):
        shard = store.open(i)
        for j in range(len(shard.index)):
            members = {e: shard.read(*place) for e, place in shard.index.members(j).items()}
            found[shard.index.key(j)] = members
    assert found == {
        f"{name}/{n:02d}": {"jpg": f"{name} {n}".encode(), "cls": b"%d" % label}
        for label, name in enumerate("abc")
        for n in range(20)
    }


def test_every_virtual_shard_has_its_share_of_every_class(tree: Tree) -> None:
    """Few shards are shuffled together, and they should be like the whole."""
    store = FolderStore(tree)
    for i in range(len(store)):
        index = store.index(i)
        labels = [index.key(j)[0] for j in range(len(index))]
        assert [labels.count(name) for name in "abc"] == [5, 5, 5]


def test_equal_trees_have_equal_catalogs_on_any_node(tmp_path: Path) -> None:
    """Another picture, another size or another label make another."""
    trees = [
        {"a/1.jpg": b"1", "b/1.jpg": b"1"},
        {"a/1.jpg": b"2", "b/1.jpg": b"2"},
        {"a/1.jpg": b"1", "b/1.jpg": b"12"},
        {"a/1.jpg": b"1", "b/2.jpg": b"1"},
        {"a/1.jpg": b"1", "b/1.jpg": b"1", "b/2.jpg": b"1"},
    ]
    stores = [FolderStore(Tree.scan(str(write_tree(tmp_path / str(i), files)))) for i, files in enumerate(trees)]
    catalogs = [Catalog.build(store) for store in stores]
    assert catalogs[0].digest == catalogs[1].digest
    assert len({catalog.digest for catalog in catalogs}) == 4
    assert catalogs[4].counts.tolist() == [3]
    assert catalogs[4].extensions == {"jpg": 3, "cls": 3}


def test_only_so_many_indexes_are_kept(tree: Tree) -> None:
    """The last that were used."""
    store = FolderStore(tree, open_shards=2)
    first, second = store.open(0), store.open(1)
    assert store.open(0) is first
    store.open(2)
    assert store.open(0) is first
    assert store.open(1) is not second


def test_bytes_can_be_read_into_buffers(tree: Tree) -> None:
    """As from a shard."""
    shard = FolderStore(tree).open(0)
    buffers = np.zeros(1, np.uint8), np.zeros(2, np.uint8)
    offset, _ = shard.index.members(0)["jpg"]
    shard.read_into(offset, *(buffer.data for buffer in buffers))
    assert b"".join(buffer.tobytes() for buffer in buffers) == b"a 0"


def test_sizes_are_those_of_the_pictures(tree: Tree) -> None:
    """All of them."""
    assert sum(FolderStore(tree).sizes) == tree.sizes.sum()
