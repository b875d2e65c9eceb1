import errno
import gzip
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from feedmill_protocol.errors import ShardError
from feedmill_server import shards
from feedmill_server.cache import replacing
from feedmill_server.shards import Shard, ShardStore
from feedmill_server.tar import Member, Source, walk
from shardmaker import write_tar

SAMPLES = [(f"{i:04d}", {"jpg": b"jpeg %d" % i, "cls": b"%d" % i}) for i in range(10)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the user another cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    return tmp_path / "users" / "feedmill"


@pytest.fixture
def path(data: Path, users: Path) -> Path:
    return write_tar(data / "a.tar", SAMPLES)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the shards whose headers were walked through."""
    scanned: list[str] = []

    def counting(source: Source, shard: str) -> Iterator[Member]:
        scanned.append(shard)
        return walk(source, shard)

    monkeypatch.setattr(shards, "walk", counting)
    return scanned


def contents(shard: Shard) -> list[tuple[str, dict[str, bytes]]]:
    index = shard.index
    return [
        (index.key(i), {extension: shard.read(*place) for extension, place in index.members(i).items()})
        for i in range(len(index))
    ]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def change(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_shard_gives_its_samples(data: Path, users: Path, *, compressed: bool) -> None:
    """Plain or gzip, every sample has the bytes that were written."""
    path = write_tar(data / "a.tar", SAMPLES, gzip=compressed)
    with ShardStore([path]) as store:
        assert contents(store.open(0)) == SAMPLES
        assert store.open(0) is store.open(0)
        assert repr(store) == "<ShardStore: 1 shards, 1 of them open>"
        assert repr(store.open(0)).startswith("<Shard a.tar, open: <ShardIndex: 10 samples of jpg cls")


def test_a_shard_is_closed_with_its_file(path: Path) -> None:
    """It may be closed twice, and opened again."""
    before = descriptors()
    store = ShardStore([path])
    with store.open(0) as shard:
        assert shard.read(*shard.index.members(3)["jpg"]) == b"jpeg 3"
    assert shard.closed
    shard.close()
    assert descriptors() == before
    assert contents(store.open(0)) == SAMPLES
    store.close()
    store.close()


@pytest.mark.parametrize("short", [False, True])
def test_a_shard_is_read_into_buffers(path: Path, monkeypatch: pytest.MonkeyPatch, *, short: bool) -> None:
    """One after the other, also where the system stops in the middle; a shard that has changed is an error."""
    if short:
        monkeypatch.setattr(os, "preadv", lambda *_: 3)
    with ShardStore([path]) as store:
        shard = store.open(0)
        offset, _ = shard.index.members(3)["jpg"]
        first, second = bytearray(4), bytearray(2)
        shard.read_into(offset, memoryview(first), memoryview(second))
        assert first + second == b"jpeg 3"
        change(path)
        with pytest.raises(ShardError, match=r"^shard a.tar: changed since it was indexed"):
            shard.read_into(offset, memoryview(first))
        with pytest.raises(ShardError, match=r"^shard a.tar: .* are not within its"):
            shard.read_into(2**62, memoryview(first))


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, 10**9), (10**9, 0), (2**62, 2**62)])
def test_reads_beyond_a_shard_are_errors(path: Path, offset: int, size: int) -> None:
    """An index that lies is noticed, whatever it says."""
    with ShardStore([path]) as store, pytest.raises(ShardError, match=r"^shard a.tar: .* are not within its"):
        store.open(0).read(offset, size)


def test_only_some_shards_stay_open(data: Path, users: Path) -> None:
    """The shard that was opened longest ago is closed."""
    with ShardStore([write_tar(data / f"{i}.tar", SAMPLES) for i in range(3)], open_shards=2) as store:
        opened = [store.open(i) for i in (0, 1, 0, 2)]
        assert [shard.closed for shard in opened] == [False, True, False, False]


def test_an_index_is_stored_beside_the_shard(path: Path, scans: list[str], users: Path) -> None:
    """The next store scans nothing."""
    for _ in range(2):
        assert len(ShardStore([path]).index(0)) == 10
    assert scans == ["a.tar"]
    assert [file.name for file in (path.parent / ".feedmill").iterdir()] == ["a.tar.index"]
    assert not users.exists()


def test_an_index_goes_to_the_users_cache_from_a_folder_that_cannot_be_written(
    path: Path, scans: list[str], users: Path
) -> None:
    """Data are often read-only."""
    (path.parent / ".feedmill").write_text("in the way")
    for _ in range(2):
        assert len(ShardStore([path]).index(0)) == 10
    assert scans == ["a.tar"]
    assert len(list((users / "indexes").iterdir())) == 1


def test_a_cache_that_is_given_takes_everything(data: Path, users: Path, tmp_path: Path, scans: list[str]) -> None:
    """Nothing is written anywhere else."""
    path = write_tar(data / "a.tgz", SAMPLES, gzip=True)
    for _ in range(2):
        with ShardStore([path], cache=tmp_path / "given") as store:
            store.open(0)
    assert scans == ["a.tgz"]
    assert sorted(file.name for file in (tmp_path / "given").iterdir()) == ["indexes", "inflated"]
    assert not users.exists()
    assert list(data.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_is_warned_of_once(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Serving goes on without it."""
    (tmp_path / "given").write_text("in the way")
    paths = [write_tar(data / f"{i}.tar", SAMPLES) for i in range(2)]
    with ShardStore(paths, cache=tmp_path / "given") as store:
        assert [contents(store.open(i)) for i in range(2)] == [SAMPLES, SAMPLES]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "indexes cannot be stored" in record.getMessage()


@pytest.mark.parametrize("spoil", [lambda data: data[:20], lambda data: b"", lambda data: data[:-1] + b"?"])
def test_an_index_that_is_damaged_is_made_again(
    path: Path, scans: list[str], spoil: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A cache is no reason to fail, or to say much."""
    ShardStore([path]).index(0)
    stored = path.parent / ".feedmill" / "a.tar.index"
    good = stored.read_bytes()
    stored.write_bytes(spoil(good))
    assert len(ShardStore([path]).index(0)) == 10
    assert scans == ["a.tar"] * 2
    assert stored.read_bytes() == good
    assert not caplog.records


def test_an_index_of_another_state_is_made_again(path: Path, scans: list[str]) -> None:
    """A shard that was replaced between two runs is scanned again."""
    ShardStore([path]).index(0)
    write_tar(path, SAMPLES[:5])
    assert len(ShardStore([path]).index(0)) == 5
    assert scans == ["a.tar"] * 2


@pytest.mark.parametrize("compressed", [False, True])
def test_a_shard_that_changes_in_use_is_an_error(data: Path, users: Path, *, compressed: bool) -> None:
    """Neither its index nor its data are given any more, nor in a store that was given the stamps of the first."""
    path = write_tar(data / "a.tar", SAMPLES, gzip=compressed)
    store = ShardStore([path])
    assert store.stamps == (None,)
    store.index(0)
    change(path)
    for changed in (store, ShardStore([path], stamps=store.stamps)):
        for use in (changed.index, changed.open):
            with pytest.raises(ShardError, match=r"^shard a.tar: changed since it was indexed; .*restart"):
                use(0)


def test_a_shard_that_changes_while_it_is_indexed_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of something half written is not kept."""

    def changing(source: Source, shard: str) -> Iterator[Member]:
        change(path)
        return walk(source, shard)

    monkeypatch.setattr(shards, "walk", changing)
    with pytest.raises(ShardError, match="changed since it was indexed"):
        ShardStore([path]).index(0)
    assert not (path.parent / ".feedmill").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_shard_that_takes_long_to_open_is_seen_to_get_on(data: Path, users: Path, *, compressed: bool) -> None:
    """For every header, and for every megabyte that is inflated; not once it is known."""
    path = write_tar(data / "a.tar", [(f"{i}", {"bin": bytes(2**20)}) for i in range(4)], gzip=compressed)
    signs: list[int] = []
    with ShardStore([path]) as store:
        store.alive = lambda: signs.append(1)
        store.open(0)
        assert len(signs) >= 4 + 4 * compressed
        signs.clear()
        store.close()
        store.open(0)
        assert not signs


def test_what_is_no_file_is_an_error(data: Path, users: Path) -> None:
    """A folder or a named pipe is refused, with what to write instead, and does not block."""
    os.mkfifo(data / "pipe")
    store = ShardStore([data, data / "pipe", data / "none.tar"])
    for i, says in enumerate([r"is no file; give .*/data/\*.tar'", "is no file", "none.tar: .*No such file.*; check"]):
        with pytest.raises(ShardError, match=says):
            store.open(i)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be a user without rights, even if the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_shard_that_may_not_be_read_is_an_error() -> None:
    """The error says whose fault it is; a shard that is open stays open."""
    with tempfile.TemporaryDirectory() as folder:  # unlike pytest's, in a folder that everybody may look into
        Path(folder).chmod(0o755)
        paths = [write_tar(Path(folder) / f"{i}.tar", SAMPLES) for i in range(2)]
        with ShardStore(paths) as store:
            shard = store.open(0)
            for path in paths:
                path.chmod(0)
            with somebody_else(), pytest.raises(ShardError, match=r"Permission denied; let the server's user read it"):
                store.open(1)
            assert contents(shard) == SAMPLES


@pytest.mark.parametrize("harm", ["cut", "emptied", "rewritten"])
def test_a_shard_that_is_written_to_while_it_is_open_gives_no_other_bytes(path: Path, harm: str) -> None:
    """Whatever is written: the error names the shard, and no process dies of it."""
    with ShardStore([path]) as store:
        shard = store.open(0)
        place = shard.index.members(9)["jpg"]
        assert shard.read(*place) == b"jpeg 9"
        data = path.read_bytes()
        with path.open("r+b") as file:
            if harm == "rewritten":
                file.write(data.replace(b"jpeg", b"JPEG"))
            else:
                file.truncate(1000 if harm == "cut" else 0)
        os.utime(path, (1, 1))  # the clock of a file system may tick a hundred times a second only
        with pytest.raises(ShardError, match=r"^shard a.tar: changed since it was indexed"):
            shard.read(*place)


def test_a_shard_that_is_deleted_while_it_is_open_can_be_read_to_its_end(path: Path) -> None:
    """Its bytes are what they were; those who come later are told."""
    with ShardStore([path]) as store, ShardStore([path]) as late:
        shard = store.open(0)
        path.unlink()
        assert contents(shard) == SAMPLES
        with pytest.raises(ShardError, match=r"^shard a.tar: .*No such file or directory; check path and disk"):
            late.open(0)


def test_a_disk_that_fails_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which bytes of which shard."""

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with ShardStore([path]) as store:
        shard = store.open(0)
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(ShardError, match=r"^shard a.tar: 6 bytes at offset 512 cannot be read: Input/output error"):
            shard.read(512, 6)


def test_a_disk_that_gives_a_read_in_pieces_gives_all_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may be short wherever it likes."""
    pread = os.pread
    with ShardStore([path]) as store:
        shard = store.open(0)
        monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 2), offset))
        assert contents(shard) == SAMPLES


def test_a_full_disk_keeps_no_index_from_being_used(
    path: Path, users: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made anew at every start, and one line says why; no half of one is left."""

    @contextmanager
    def full(target: Path) -> Iterator[BinaryIO]:
        with replacing(target) as file, Path("/dev/full").open("wb", buffering=0) as disk:
            os.dup2(disk.fileno(), file.fileno())
            yield file

    monkeypatch.setattr(shards, "replacing", full)
    for _ in range(2):
        with ShardStore([path]) as store:
            assert contents(store.open(0)) == SAMPLES
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert f"({users}/indexes/" in caplog.messages[0]
    assert "No space left on device); shards will be scanned at every start" in caplog.messages[0]
    assert [file for file in (path.parent, users) for file in file.rglob("*.tmp")] == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"text", "not a tar file"),
        (bytes(10240), "has no sample"),
        (gzip.compress(b"x" * 10000)[:-9], "its gzip stream is truncated"),
        (gzip.compress(b""), "the file is empty"),
    ],
)
def test_damage_names_the_shard(data: Path, users: Path, content: bytes, says: str) -> None:
    """What the walk, the index and the inflation refuse comes out as it is."""
    (data / "a.tar").write_bytes(content)
    with pytest.raises(ShardError, match=f"^shard a.tar: {says}"):
        ShardStore([data / "a.tar"]).open(0)
