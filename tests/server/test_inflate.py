import gzip
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feedmill_protocol.errors import ShardError
from feedmill_server.inflate import InflatedCache, is_gzip
from shardmaker import write_tar

SAMPLES = [(f"{i:04d}", {"jpg": bytes(1000), "cls": b"1"}) for i in range(20)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tgz", SAMPLES, gzip=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inflated(cache: InflatedCache, source: Path) -> bytes:
    with source.open("rb", buffering=0) as file, cache.open(file, source.name) as plain:
        return plain.read()


def age(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 10 kB: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_gzip_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    """The name of a file says nothing of its content."""
    for name, compressed in (("a.tar", True), ("a.tgz", False)):
        with write_tar(tmp_path / name, SAMPLES, gzip=compressed).open("rb") as file:
            assert is_gzip(file) is compressed


def test_a_shard_is_inflated_once(source: Path, folder: Path) -> None:
    """The second time, the file of the first is used."""
    cache = InflatedCache(folder, 10**6)
    assert repr(cache) == f"InflatedCache('{folder}', max_bytes=1000000)"
    assert inflated(cache, source) == gzip.decompress(source.read_bytes())
    [file] = folder.iterdir()
    before = file.stat()
    age(file, 100)
    assert inflated(InflatedCache(folder), source) == file.read_bytes()
    assert file.stat().st_ino == before.st_ino


def test_a_shard_that_is_used_again_does_not_change_for_who_has_it_open(source: Path, folder: Path) -> None:
    """They tell by its modification time; when it was used is another."""
    inflated(InflatedCache(folder), source)
    [file] = folder.iterdir()
    age(file, 100)
    before = file.stat()
    inflated(InflatedCache(folder), source)
    after = file.stat()
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_atime_ns > before.st_atime_ns


def test_a_shard_that_changes_is_inflated_again(source: Path, folder: Path) -> None:
    """Size and modification time tell the states of a file."""
    cache = InflatedCache(folder)
    inflated(cache, source)
    write_tar(source, SAMPLES[:10], gzip=True)
    assert inflated(cache, source) == gzip.decompress(source.read_bytes())


def test_the_least_recently_used_give_way(tmp_path: Path, folder: Path) -> None:
    """Beyond the bound, what was used longest ago goes; an open descriptor outlives that."""
    sources = [write_tar(tmp_path / f"{i}.tgz", SAMPLES, gzip=True) for i in range(3)]
    size = len(gzip.decompress(sources[0].read_bytes()))
    cache = InflatedCache(folder, 2 * size)
    with sources[0].open("rb") as file, cache.open(file, "0") as first:
        [oldest] = folder.iterdir()
        age(oldest, 100)
        inflated(cache, sources[1])
        [newer] = set(folder.iterdir()) - {oldest}
        age(newer, 200)
        inflated(cache, sources[0])  # used again
        inflated(cache, sources[2])
        assert oldest.exists()
        assert not newer.exists()
        assert len(list(folder.iterdir())) == 2
        oldest.unlink()
        assert len(first.read()) == size


def test_the_shard_just_made_stays_however_large(source: Path, folder: Path) -> None:
    """A bound below one shard leaves that one."""
    assert inflated(InflatedCache(folder, 1), source)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("cut", [3, 15, 100, -4])
def test_a_truncated_stream_is_refused(source: Path, folder: Path, cut: int) -> None:
    """A gzip file cut anywhere is an error that names it, and leaves nothing behind."""
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(ShardError, match=r"^shard a.tgz: its gzip stream is truncated or damaged: .*again"):
        inflated(InflatedCache(folder), source)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("position", [2, 40, -6])
def test_a_damaged_stream_is_refused(source: Path, folder: Path, position: int) -> None:
    """Wrong methods, wrong data and wrong checksums are noticed."""
    data = bytearray(source.read_bytes())
    data[position] ^= 0xFF
    source.write_bytes(data)
    with pytest.raises(ShardError, match=r"^shard a.tgz: its gzip stream is truncated or damaged"):
        inflated(InflatedCache(folder), source)
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(source: Path, folder: Path) -> None:
    """The error names shard and folder, and says what to do."""
    with (
        pytest.raises(ShardError, match=r"^shard a.tgz: cannot be inflated into .*/cache: .*; make room there"),
        small_files(),
    ):
        inflated(InflatedCache(folder), source)
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_an_error(source: Path, folder: Path) -> None:
    """So is a file where the folder should be."""
    folder.write_text("in the way")
    with pytest.raises(ShardError, match="cannot be inflated into"):
        inflated(InflatedCache(folder), source)


def test_abandoned_temporary_files_are_swept(source: Path, folder: Path) -> None:
    """What a killed process left an hour ago goes; what is being written stays."""
    folder.mkdir()
    abandoned, busy = folder / "x.tar.1.tmp", folder / "x.tar.2.tmp"
    abandoned.touch()
    busy.touch()
    age(abandoned, 4000)
    inflated(InflatedCache(folder), source)
    assert not abandoned.exists()
    assert busy.exists()


def test_processes_that_inflate_at_once_are_both_right(source: Path, folder: Path) -> None:
    """Each writes a file of its own, and the last name given counts."""
    code = (
        "import sys, tarfile\n"
        "from pathlib import Path\n"
        "from feedmill_server.inflate import InflatedCache\n"
        "sys.stdin.read(1)\n"
        "with open(sys.argv[1], 'rb') as file, InflatedCache(Path(sys.argv[2])).open(file, 'a') as plain:\n"
        "    print(len(tarfile.open(fileobj=plain).getnames()))\n"
    )
    command = [sys.executable, "-c", code, str(source), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(3)
    ]
    for process in processes:  # they have started, and wait: let them go
        assert process.stdin
        process.stdin.write(b"!")
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in processes] == [b"40"] * 3
    assert len(list(folder.iterdir())) == 1
    assert tarfile.is_tarfile(next(folder.iterdir()))
