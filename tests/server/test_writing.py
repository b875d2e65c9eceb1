import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedmill_protocol.errors import FeedmillError, ServerUnavailable, ShardError, UsageError
from feedmill_server.shards import ShardStore
from feedmill_server.writing import Sample, ShardWriter, tar_size

SAMPLES: list[Sample] = [("a/1", {"JPG": b"1" * 513, "cls": b"7"}), ("x" * 150, {"JPG": b"", "cls": b"8"})]


def write(folder: Path, **made: object) -> Path:
    writer = ShardWriter(f"{folder}/t-%03d.tar")
    with writer.making(made):
        writer.write(0, iter(SAMPLES))
        writer.index(0, 2)
        return writer.path(0)


def test_a_shard_is_what_tar_and_feedmill_read(tmp_path: Path) -> None:
    """Names, contents, and the index beside it."""
    path = write(tmp_path)
    with tarfile.open(path) as tar:
        found = [(member.name, file.read()) for member in tar if (file := tar.extractfile(member))]
    assert found == [(f"{key}.{extension}", data) for key, fields in SAMPLES for extension, data in fields.items()]
    assert sum(tar_size(name, len(data)) for name, data in found) + 1024 == path.stat().st_size
    assert (tmp_path / ".feedmill" / "t-000.tar.index").exists()
    with ShardStore([path]) as store:
        shard = store.open(0)
        assert [shard.index.key(i) for i in range(2)] == ["a/1", "x" * 150]


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    """At any time, by anybody."""
    assert write(tmp_path / "a").read_bytes() == write(tmp_path / "b").read_bytes()


def test_an_interrupted_shard_is_not_there(tmp_path: Path) -> None:
    """Neither under its name nor under another."""

    def interrupted() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise KeyboardInterrupt

    writer = ShardWriter(f"{tmp_path}/t-%03d.tar")
    with writer.making({}):
        with pytest.raises(KeyboardInterrupt):
            writer.write(0, interrupted())
        assert not writer.has(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".feedmill", "t.json"]


def test_what_was_made_is_said_beside_the_shards_and_compared(tmp_path: Path) -> None:
    """Nobody goes on with other shards."""
    write(tmp_path, seed=1, tree="x")
    write(tmp_path, seed=1, tree="x")
    assert json.loads((tmp_path / "t.json").read_bytes()) == {"seed": 1, "tree": "x"}
    with pytest.raises(UsageError, match=r"t.json says that these shards were made from something else \(seed\)"):
        write(tmp_path, seed=2, tree="x")
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(UsageError, match=r"from something else \(seed, tree\); delete it and them"):
        write(tmp_path, seed=2, tree="x")
    (tmp_path / "t.json").unlink()
    with pytest.raises(UsageError, match=r"t-000.tar exists, and \S+t.json, which would say how it was made, does not"):
        write(tmp_path, seed=1, tree="x")


def test_two_cannot_write_the_same_shards_at_a_time(tmp_path: Path) -> None:
    """The second is told; others may write beside them."""
    first, second, other = (ShardWriter(f"{tmp_path}/{name}") for name in ("t-%d.tar", "t-%d.tar", "v-%d.tar"))
    with first.making({}):
        with pytest.raises(UsageError, match=r"t-0.tar: another process is writing these shards"), second.making({}):
            pass
        with other.making({}):
            pass
    write(tmp_path)


def test_a_shard_of_other_samples_is_found_out(tmp_path: Path) -> None:
    """One that somebody put there, say."""
    write(tmp_path)
    writer = ShardWriter(f"{tmp_path}/t-%03d.tar")
    with writer.making({}):
        with pytest.raises(ShardError, match=r"shard t-000.tar: has 2 samples, not 3; delete it"):
            writer.index(0, 3)
        writer.path(1).write_bytes(b"")
        with pytest.raises(ShardError, match=r"shard t-001.tar: the file is empty"):
            writer.index(1, 3)


@pytest.mark.parametrize("pattern", ["t.tar", "t-%06d.tgz", "t-%d-%d.tar", "t-%s.tar", "t-%6d.tar", "%-%d.tar", "x/"])
def test_a_pattern_without_one_number_is_an_error(pattern: str) -> None:
    """It shows one that works."""
    with pytest.raises(UsageError, match=r"names no shards; expected a pattern with one number, like train-%06d.tar"):
        ShardWriter(pattern)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """Not a traceback; before and while a shard is written."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"file cannot be written: Not a directory"):
        write(tmp_path / "file")
    writer = ShardWriter(f"{tmp_path}/t-%03d.tar")
    with writer.making({}):
        (tmp_path / ".t-000.tar.partial").mkdir()
        with pytest.raises(FeedmillError, match=r"cannot be written: Is a directory"):
            writer.write(0, SAMPLES)


@pytest.mark.parametrize(
    ("pattern", "shards", "braces"),
    [("t-%06d.tar", 3, "t-{000000..000002}.tar"), ("t%d.tar", 11, "t{0..10}.tar"), ("%03d.tar", 1, "000.tar")],
)
def test_shards_are_named_as_serve_takes_them(tmp_path: Path, pattern: str, shards: int, braces: str) -> None:
    """To be pasted."""
    writer = ShardWriter(f"{tmp_path}/{pattern}")
    assert writer.braces(shards) == f"{tmp_path}/{braces}"
    assert writer.description.name == ("shards.json" if pattern.startswith("%") else "t.json")


def test_a_tar_ends_in_two_empty_blocks(tmp_path: Path) -> None:
    """As POSIX has it; GNU tar complains of one."""
    data = write(tmp_path).read_bytes()
    assert data.endswith(bytes(1024))
    assert not data.endswith(bytes(1024 + 512))


def test_what_ends_the_samples_is_told_as_it_is(tmp_path: Path) -> None:
    """A server that is lost while its feed is baked is no full disk, although its error is an OSError, too."""

    def lost() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise ServerUnavailable(60.0, {"tcp://a:1": "lost"})

    writer = ShardWriter(f"{tmp_path}/t-%03d.tar")
    with writer.making({}), pytest.raises(ServerUnavailable, match="tcp://a:1"):
        writer.write(0, lost())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".feedmill", "t.json"]
