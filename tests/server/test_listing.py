import os
from pathlib import Path

import pytest

from feedmill_protocol import limits
from feedmill_protocol.errors import ShardError, UsageError
from feedmill_server.listing import expand, names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a-1.tar", "a-0.tar", "b-0.tar", "[x].tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_patterns_keep_their_order_and_globs_are_sorted() -> None:
    """Braces come as written, the files of a glob by name."""
    paths = expand(["b-0.tar", "{a-*,[[]*}.tar"])
    assert [str(path) for path in paths] == ["b-0.tar", "a-0.tar", "a-1.tar", "[x].tar"]


def test_absolute_patterns_and_the_home_folder_are_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern may begin with / or ~."""
    monkeypatch.setenv("HOME", str(folder))
    assert expand([f"{folder}/a-*.tar"]) == expand(["~/a-{0,1}.tar"]) == [folder / "a-0.tar", folder / "a-1.tar"]


def test_a_file_that_looks_like_a_glob_is_found() -> None:
    """What exists under the very name is meant."""
    assert expand(["[x].tar"]) == [Path("[x].tar")]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (
            "s3://b/a-{0..2}.tar",
            r"^shard s3://b/a-\{0..2\}.tar: feedmill reads files; copy it to a disk here, or mount it",
        ),
        ("pipe:cat a-*.tar", r"^shard pipe:cat a-\*.tar: feedmill reads files"),
        ("a-{0..2}.tar", r"^shard a-2.tar: No such file or directory; 'a-\{0..2\}.tar' asks for it"),
        ("c-*.tar", r"^shard c-\*.tar: no file matches 'c-\*.tar'"),
        ("b-0.tar/x", "Not a directory"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_is_not_there_is_an_error(pattern: str, says: str) -> None:
    """The error names the file that is missing and the pattern that asked for it."""
    with pytest.raises(ShardError, match=says):
        expand([pattern])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_told_apart_from_an_empty_one(folder: Path) -> None:
    """A container's user, for example, is often not allowed what the one who started it is."""
    (folder / "closed").mkdir(mode=0)
    with pytest.raises(ShardError, match=r"closed cannot be read: Permission denied"):
        expand(["closed/*.tar"])


def test_a_shard_given_twice_is_an_error(folder: Path) -> None:
    """However it is written."""
    with pytest.raises(UsageError, match=r"a-0.tar is given 3 times"):
        expand(["a-0.tar", "./a-*.tar", str(folder / "a-0.tar")])


def test_a_shard_may_be_given_twice_on_purpose(folder: Path) -> None:
    """It then has a place, but not a name, for each time."""
    paths = expand(["a-0.tar"] * 2, repeated=True)
    assert paths == [Path("a-0.tar")] * 2
    assert names(paths) == ["a-0.tar"] * 2


def test_no_shards_are_an_error() -> None:
    """An empty list of patterns has no stream."""
    with pytest.raises(UsageError, match="no shards are given"):
        expand([])


def test_too_many_shards_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds for all patterns together."""
    monkeypatch.setattr(limits, "SHARDS", 2)
    with pytest.raises(UsageError, match=r"'b-0.tar' brings the shards to more than 2"):
        expand(["a-*.tar", "b-0.tar"])


def test_shards_are_called_by_their_base_names() -> None:
    """The folder does not matter, so servers may have it elsewhere."""
    assert names([Path("/x/a.tar"), Path("/y/b.tar")]) == ["a.tar", "b.tar"]


def test_base_names_that_come_twice_are_told_by_their_folders() -> None:
    """Then all names begin where the paths part."""
    assert names([Path("/x/y/1/a.tar"), Path("/x/y/2/a.tar"), Path("/x/y/b.tar")]) == ["1/a.tar", "2/a.tar", "b.tar"]


def test_names_can_be_sent() -> None:
    """A file name that is no UTF-8 is escaped."""
    assert names([Path("caf\udce9.tar")]) == ["caf\\xe9.tar"]
