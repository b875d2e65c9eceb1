import os
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from feedmill_protocol.errors import UsageError
from feedmill_server.tree import Tree, unique_keys
from foldermaker import picture, write_tree


def names(tree: Tree) -> list[str]:
    return [tree.name(i).decode() for i in range(len(tree))]


def test_classes_and_pictures_are_those_of_torchvision(tmp_path: Path) -> None:
    """Sorted by name, numbered from 0, however deep the pictures lie, whatever the case of their extension."""
    jpeg = picture(1, 2, 3)
    files = ["b/2.jpg", "b/10.JPEG", "b/deep/er/1.png", "B/x.webp", "a.dir/readme.txt", "a.dir/p.ppm", "top.jpg"]
    write_tree(tmp_path, dict.fromkeys(files, jpeg))
    (tmp_path / "linked").symlink_to(tmp_path / "B")
    theirs = ImageFolder(str(tmp_path))
    tree = Tree.scan(str(tmp_path))
    assert list(tree.classes) == theirs.classes
    ours = {f"{tmp_path}/{name}": label for name, label in zip(names(tree), tree.labels.tolist(), strict=True)}
    assert ours == dict(theirs.samples)
    assert tree.passed_over == 1
    assert repr(tree) == f"<Tree {tmp_path}: 6 pictures of 4 classes>"


def test_what_is_hidden_is_neither_class_nor_picture(tmp_path: Path) -> None:
    """Caches, and what macOS leaves behind."""
    write_tree(tmp_path, {".cache/1.jpg": b"", "a/.thumbs/1.jpg": b"", "a/._1.jpg": b"", "a/1.jpg": b""})
    tree = Tree.scan(str(tmp_path))
    assert (tree.classes, names(tree), tree.passed_over) == (("a",), ["a/1.jpg"], 0)


def test_progress_is_told_after_every_class(tmp_path: Path) -> None:
    """A million files take a while."""
    done: list[tuple[int, int]] = []
    Tree.scan(
        str(write_tree(tmp_path, {"a/1.jpg": b"", "b/1.jpg": b"", "c/1.jpg": b""})), lambda *args: done.append(args)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/1.jpg", "a/1"),
        ("a.b/c/1.2.3.JPG", "a.b/c/1_2_3"),
        ("a/__1.jpg", "a/1"),
        ("a/__.jpg", "a/_"),
        (os.fsdecode(b"a/\xff.png"), "a/\\xff"),
    ],
)
def test_a_key_is_what_webdataset_reads_as_one(tmp_path: Path, name: str, key: str) -> None:
    """It ends at the first dot, is UTF-8, and does not begin with two underscores."""
    tree = Tree.scan(str(write_tree(tmp_path, {name: b""})))
    assert tree.key(0) == key
    assert tree.extension(0) == name.rpartition(".")[2]


def test_keys_that_are_alike_are_told_apart() -> None:
    """a.jpg and a.png are two samples."""
    assert unique_keys(["a", "b", "a", "a", "a-2"]) == ["a", "b", "a-2", "a-3", "a-2-2"]


def test_a_picture_that_changes_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Its size or its time; or it is gone, or something else now."""
    root = write_tree(tmp_path, {"a/1.jpg": b"1", "a/2.jpg": b"2", "a/3.jpg": b"3", "a/4.jpg": b"4", "a/5.jpg": b"5"})
    tree = Tree.scan(str(root))
    (root / "a/2.jpg").write_bytes(b"22")
    os.utime(root / "a/3.jpg", ns=(1, 1))
    for name in ("a/4.jpg", "a/5.jpg"):
        (root / name).unlink()
    os.mkfifo(root / "a/5.jpg")
    assert tree.read(0) == b"1"
    for i, name in ((1, "2"), (2, "3")):
        with pytest.raises(ValueError, match=rf"^changed since it was listed, start again: \S+/a/{name}.jpg$"):
            tree.read(i)
    with pytest.raises(FileNotFoundError, match=r"/a/4\.jpg"):
        tree.read(3)
    with pytest.raises((OSError, ValueError), match=r"/a/5\.jpg"):  # and does not wait for a writer
        tree.read(4)


def test_a_tree_survives_the_way_to_another_process(tmp_path: Path) -> None:
    """As the fork server gets it."""
    tree = Tree.scan(str(write_tree(tmp_path, {os.fsdecode(b"\xff/1.jpg"): b"12", "z/2.png": b"3"})))
    there = Tree.from_bytes(tree.to_bytes())
    assert (there.root, there.classes, there.passed_over) == (tree.root, tree.classes, 0)
    assert [there.read(i) for i in range(2)] == [b"3", b"12"]
    assert there.labels.tolist() == [0, 1]


def test_a_digest_tells_trees_apart_wherever_they_lie(tmp_path: Path) -> None:
    """Paths and sizes count, times do not."""
    trees = [{"a/1.jpg": b"1"}, {"a/1.jpg": b"2"}, {"a/1.jpg": b"12"}, {"b/1.jpg": b"1"}, {"a/1.png": b"1"}]
    digests = [Tree.scan(str(write_tree(tmp_path / str(i), files))).digest() for i, files in enumerate(trees)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_what_is_no_tree_is_an_error(tmp_path: Path) -> None:
    """It names the folder, and what was expected."""
    with pytest.raises(UsageError, match=r"none cannot be listed: No such file or directory; check its path"):
        Tree.scan(str(tmp_path / "none"))
    write_tree(tmp_path, {"flat/1.jpg": b"", "empty/a/1.jpg": b"", "empty/b/readme.txt": b""})
    with pytest.raises(UsageError, match=r"flat has no folders, which would be classes; expected pictures like"):
        Tree.scan(str(tmp_path / "flat"))
    with pytest.raises(UsageError, match=r"empty/b has no picture; expected pictures like DIR/CLASS/picture.jpg"):
        Tree.scan(str(tmp_path / "empty"))


def test_links_that_lead_nowhere_or_in_circles_are_errors(tmp_path: Path) -> None:
    """Torchvision would go round for ever."""
    write_tree(tmp_path, {"circle/a/1.jpg": b"", "broken/a/1.jpg": b""})
    (tmp_path / "circle/a/again").symlink_to(tmp_path / "circle/a")
    (tmp_path / "broken/a/2.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UsageError, match=r"circle/a/again leads back to a folder that it lies in"):
        Tree.scan(str(tmp_path / "circle"))
    with pytest.raises(UsageError, match=r"broken/a/2.jpg cannot be read: No such file or directory"):
        Tree.scan(str(tmp_path / "broken"))
