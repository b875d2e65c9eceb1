from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol.errors import SampleError, UsageError
from feedmill_server.packing import Bad, check, cut, order, pack
from feedmill_server.shards import ShardStore
from feedmill_server.tree import Tree
from foldermaker import picture, write_tree

ORDER_OF_SEED_5 = [8, 14, 3, 11, 12, 21, 23, 13, 22, 17]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return 3 classes of 10 files each, which say what they are."""
    files = {f"{label}/{n}.jpg": f"{label}/{n}".encode() for label in "abc" for n in range(10)}
    return Tree.scan(str(write_tree(tmp_path / "tree", files)))


def nothing(_done: int, _total: int) -> None:
    """Tell nobody."""


def pack_into(
    folder: Path,
    tree: Tree,
    *,
    seed: int | None = 0,
    samples: int | None = 7,
    max_bytes: int | None = None,
    left_out: tuple[Bad, ...] = (),
) -> str:
    pattern = f"{folder}/t-%02d.tar"
    return pack(tree, pattern, seed=seed, samples=samples, max_bytes=max_bytes, left_out=left_out, progress=nothing)


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the samples of all shards in a folder, by their keys, in order."""
    found = {}
    with ShardStore(sorted(folder.glob("*.tar"))) as store:
        for i in range(len(store)):
            shard = store.open(i)
            for j in range(len(shard.index)):
                found[shard.index.key(j)] = {e: shard.read(*place) for e, place in shard.index.members(j).items()}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_every_picture_is_packed_with_its_label(tmp_path: Path, tree: Tree) -> None:
    """Bytes as they are; names of the labels beside them; what to serve is said."""
    assert pack_into(tmp_path / "out", tree) == f"{tmp_path}/out/t-{{00..04}}.tar"
    assert read(tmp_path / "out") == {
        f"{name}/{n}": {"jpg": f"{name}/{n}".encode(), "cls": b"%d" % label}
        for label, name in enumerate("abc")
        for n in range(10)
    }
    assert (tmp_path / "out" / "classes.txt").read_text() == "a\nb\nc\n"


def test_a_seed_is_an_order(tmp_path: Path, tree: Tree) -> None:
    """The same bytes for the same tree and seed, wherever; without, as they are sorted."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", None)):
        pack_into(tmp_path / name, tree, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    orders = [list(read(tmp_path / name)) for name in "acd"]
    assert orders[2] == [f"{name}/{n}" for name in "abc" for n in range(10)]
    assert len({tuple(keys) for keys in orders}) == 3


def test_an_order_does_not_change_between_releases(tree: Tree) -> None:
    """Who goes on with a later one needs the same."""
    assert order(tree, 5).tolist()[:10] == ORDER_OF_SEED_5


def test_only_what_is_missing_is_made(tmp_path: Path, tree: Tree) -> None:
    """The same as without an interruption, and finished shards are not touched."""
    pack_into(tmp_path / "a", tree)
    before = contents(tmp_path / "a")
    for name in ("t-01.tar", "t-04.tar"):
        (tmp_path / "a" / name).unlink()
    kept = (tmp_path / "a" / "t-00.tar").stat().st_mtime_ns
    done: list[tuple[int, int]] = []
    pack(
        tree, f"{tmp_path}/a/t-%02d.tar", seed=0, samples=7, max_bytes=None, left_out=(),
        progress=lambda *args: done.append(args),
    )  # fmt: skip
    assert contents(tmp_path / "a") == before
    assert (tmp_path / "a" / "t-00.tar").stat().st_mtime_ns == kept
    assert done == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]


def test_another_tree_or_other_options_do_not_go_on(tmp_path: Path, tree: Tree) -> None:
    """The error says what has changed."""
    pack_into(tmp_path / "a", tree)
    with pytest.raises(UsageError, match=r"made from something else \(seed\)"):
        pack_into(tmp_path / "a", tree, seed=1)
    with pytest.raises(UsageError, match=r"made from something else \(samples, bytes\)"):
        pack_into(tmp_path / "a", tree, samples=None, max_bytes=5000)
    (Path(tree.root) / "a" / "new.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"made from something else \(tree\)"):
        pack_into(tmp_path / "a", Tree.scan(tree.root))


def test_shards_are_cut_by_their_bytes(tmp_path: Path, tree: Tree) -> None:
    """None is larger than it should be, and none could have had a sample more."""
    limit = 9300
    pack_into(tmp_path / "a", tree, samples=None, max_bytes=limit)
    sizes = [len(data) for data in contents(tmp_path / "a").values()]
    assert len(sizes) == 8
    assert max(sizes) <= limit
    assert min(sizes[:-1]) > limit - 2048


@given(st.lists(st.integers(1, 50), min_size=1), st.none() | st.integers(1, 9), st.none() | st.integers(1, 99))
def test_a_cut_leaves_nothing_out(sizes: list[int], samples: int | None, max_bytes: int | None) -> None:
    """Every sample once, in order; limits hold but for a shard of one; a shard takes what it can."""
    shards = cut(sizes, samples, max_bytes)
    assert [i for shard in shards for i in shard] == list(range(len(sizes)))
    for shard, following in zip(shards, [*shards[1:], None], strict=True):
        total = sum(sizes[i] for i in shard)
        assert len(shard) == 1 or (
            (samples is None or len(shard) <= samples) and (max_bytes is None or total <= max_bytes)
        )
        if following:
            more = total + sizes[following.start]
            assert len(shard) == samples or (max_bytes is not None and more > max_bytes)


def test_bad_pictures_are_found_and_may_be_left_out(tmp_path: Path) -> None:
    """A look at their headers: empty ones, others in disguise, and ones of too many pixels."""
    good = picture(1, 2, 3)
    huge = b"P5 20000 20000 255\n"
    files = {"a/1.jpg": good, "a/2.jpg": b"", "a/3.jpg": b"GIF89a" + bytes(99), "b/4.png": huge, "b/5.png": good}
    tree = Tree.scan(str(write_tree(tmp_path / "tree", files)))
    done: list[tuple[int, int]] = []
    bad = check(tree, lambda *args: done.append(args))
    assert [(each.picture, each.path) for each in bad] == [(1, "a/2.jpg"), (2, "a/3.jpg"), (3, "b/4.png")]
    assert bad[0].reason == bad[1].reason == "no JPEG, PNG, PPM, WEBP or BMP file"
    assert "400000000 pixels" in bad[2].reason
    assert done == [(5, 5)]
    pack_into(tmp_path / "out", tree, left_out=tuple(bad))
    assert sorted(read(tmp_path / "out")) == ["a/1", "b/5"]
    with pytest.raises(UsageError, match=r"made from something else \(left_out\)"):
        pack_into(tmp_path / "out", tree)
    with pytest.raises(UsageError, match=r"no picture is left to pack"):
        pack_into(tmp_path / "none", tree, left_out=tuple(Bad(i, "", "") for i in range(5)))


def test_a_picture_that_goes_away_ends_it_with_its_name(tmp_path: Path, tree: Tree) -> None:
    """Shards that are finished stay."""
    (Path(tree.root) / "c" / "9.jpg").unlink()
    with pytest.raises(SampleError, match=r"shard t-04.tar, sample c/9: .*No such file.*/c/9\.jpg"):
        pack_into(tmp_path / "out", tree, seed=None)
    assert len(contents(tmp_path / "out")) == 4


def test_shards_do_not_go_into_the_tree(tmp_path: Path, tree: Tree) -> None:
    """Nor into one of its classes, by whatever path."""
    (tmp_path / "link").symlink_to(tree.root)
    for folder in (Path(tree.root), tmp_path / "link" / "a", tmp_path / "x" / ".." / "tree" / "new"):
        with pytest.raises(UsageError, match=r"lies in the tree \S+ that is packed; choose a folder elsewhere"):
            pack_into(folder, tree)
    pack_into(tmp_path, tree)


def test_one_folder_has_one_list_of_classes(tmp_path: Path, tree: Tree) -> None:
    """A set for validation may lie beside that for training; one of other classes may not."""
    pack_into(tmp_path / "out", tree)
    pack(tree, f"{tmp_path}/out/val-%d.tar", seed=0, samples=99, max_bytes=None, left_out=(), progress=nothing)
    other = Tree.scan(str(write_tree(tmp_path / "other", {"z/1.jpg": b""})))
    with pytest.raises(UsageError, match=r"out/classes.txt has other classes; choose another folder"):
        pack(other, f"{tmp_path}/out/o-%d.tar", seed=0, samples=99, max_bytes=None, left_out=(), progress=nothing)
    for end in "\n\r":
        odd = Tree.scan(str(write_tree(tmp_path / f"odd{ord(end)}", {f"a{end}b/1.jpg": b""})))
        with pytest.raises(UsageError, match=r"has a name of several lines"):
            pack_into(tmp_path / "odd-out", odd)
    assert not (tmp_path / "odd-out").exists()
    assert not (tmp_path / "out" / "o.json").exists()
