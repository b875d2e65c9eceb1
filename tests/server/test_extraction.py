from pathlib import Path

import pytest

from feedmill_protocol.errors import ShardError, UsageError
from feedmill_server.extraction import extract
from feedmill_server.fields import parse
from feedmill_server.shards import Shard, ShardStore
from shardmaker import tar_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where files should go; whatever appears beside it has escaped."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def shard(tmp_path: Path, *names: str, content: bytes = b"new") -> Shard:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([(name, content) for name in names], format="pax"))
    return ShardStore([path], cache=tmp_path).open(0)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_members_become_files_named_by_key_and_extension(tmp_path: Path, folder: Path) -> None:
    """Folders of the key are made; what tar calls ./a is a."""
    with shard(tmp_path, "./cats/0.jpg", "./cats/0.seg.PNG", "./cats/0.cls") as opened:
        assert extract(opened, 0, folder) == 9
    assert files(folder) == ["cats/0.cls", "cats/0.jpg", "cats/0.seg.png"]
    assert (folder / "cats/0.jpg").read_bytes() == b"new"


def test_fields_choose_members(tmp_path: Path, folder: Path) -> None:
    """The first extension that exists of each; what a sample does not have is left out."""
    with shard(tmp_path, "0.jpg", "0.png", "0.cls") as opened:
        extract(opened, 0, folder, parse("png;jpg txt"))
    assert files(folder) == ["0.png"]


@pytest.mark.parametrize("name", ["../0.jpg", "/0.jpg", "a/../../0.jpg", "..//0.jpg", "a/b/../0.jpg"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, folder: Path, name: str) -> None:
    """Neither a parent nor a root is followed, and nothing is made on the way."""
    before = files(tmp_path)
    with shard(tmp_path, name) as opened, pytest.raises(ShardError, match=r"member .*0\.jpg would be written outside"):
        extract(opened, 0, folder)
    assert set(files(tmp_path)) - set(before) == {"a.tar", f"indexes/{next((tmp_path / 'indexes').iterdir()).name}"}
    assert not list(folder.iterdir())


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    """A shard cannot make one, but it may know of one that is there."""
    (tmp_path / "elsewhere").mkdir()
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    with shard(tmp_path, "a/b/0.jpg") as opened, pytest.raises(UsageError, match="a is a link"):
        extract(opened, 0, folder, force=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_there_is_not_replaced_unless_that_is_asked_for(tmp_path: Path, folder: Path) -> None:
    """Nor is a link written through: with force it is replaced itself."""
    (tmp_path / "precious").write_bytes(b"old")
    (folder / "0.jpg").symlink_to(tmp_path / "precious")
    (folder / "1.jpg").symlink_to(tmp_path / "dangling")
    with shard(tmp_path, "0.jpg", "1.jpg") as opened:
        for i in (0, 1):
            with pytest.raises(UsageError, match=rf"{i}\.jpg exists; --force replaces it"):
                extract(opened, i, folder)
            extract(opened, i, folder, force=True)
    assert (tmp_path / "precious").read_bytes() == b"old"
    assert not (tmp_path / "dangling").exists()
    assert (folder / "0.jpg").read_bytes() == b"new"


def test_what_cannot_be_written_is_named(tmp_path: Path, folder: Path) -> None:
    """A file where a folder should be, a folder where a file should be, a name that is too long."""
    (folder / "a").write_bytes(b"")
    (folder / "0.jpg").mkdir()
    with shard(tmp_path, "a/0.jpg", "0.jpg", f"{'n' * 300}/0.jpg") as opened:
        for i, says in enumerate((r"a: File exists", r"0\.jpg: Is a directory", r"n: File name too long")):
            with pytest.raises(UsageError, match=says):
                extract(opened, i, folder, force=True)


def test_a_half_written_file_is_removed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves no file that looks whole."""
    with shard(tmp_path, "0.jpg", content=b"x" * 100_000) as opened:
        real = Path.open

        def full(self: Path, mode: str = "r") -> object:
            if mode == "xb":
                real(self, mode).close()
                return real(Path("/dev/full"), "wb")
            return real(self, mode)

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(UsageError, match=r"cannot write .*0\.jpg: No space left on device"):
            extract(opened, 0, folder)
    assert not files(folder)
