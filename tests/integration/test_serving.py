"""How a server is configured, what it says of itself, and what it keeps on disk."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import feedmill
from integration.epochs import TIMEOUT, Reference, assert_same, keys
from integration.fleet import PIPELINES, Data
from integration.processes import Served, command, environment
from shardmaker import write_tar

DRAWS = f"{PIPELINES}:DRAWS"

Serve = Callable[..., Served]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Return two shards in a folder of their own."""
    folder = tmp_path / "shards"
    folder.mkdir()
    return [
        write_tar(folder / f"n-{i}.tar", [(f"{i}{n:02d}", {"cls": b"%d" % n}) for n in range(30)]) for i in range(2)
    ]


def check(folder: Path, *args: str | Path, without_rights: bool = False, **env: str) -> str:
    """Run ``feedmill serve --check`` and return what it prints."""
    line = command("serve", *args, "--check")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, *line] if without_rights else line,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(folder, env),
        cwd=folder,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_check_prints_the_configuration_and_the_catalog_and_exits(tmp_path: Path, shards: list[Path]) -> None:
    """Everything that is in force, from wherever it came."""
    (tmp_path / "mill.toml").write_text(f"name = 'toml'\nmemory = '5MB'\n[streams.train]\npipeline = '{DRAWS}'\n")
    out = check(
        tmp_path, "shards/n-{0..1}.tar", "--config", "mill.toml", "--workers", "3", FEEDMILL_NAME="environment",
        FEEDMILL_WORKERS="7",
    )  # fmt: skip
    for line in (
        "workers = 3",
        "memory = 5000000",
        "name = 'environment'",
        "[streams.train]",
        "batch_size  = 8",
        "field       = cls: float64 [202]",
        "samples     = 60",
        "members     = 60 cls",
    ):
        assert line in out.splitlines()
    assert [line.split() for line in out.splitlines()[-2:]] == [["30", "n-0.tar"], ["30", "n-1.tar"]]
    assert "ready" not in out


def test_check_says_the_same_twice_and_on_copies_of_the_shards(tmp_path: Path, shards: list[Path]) -> None:
    """Catalog and fingerprint depend on the data and the pipeline, not on the folder or the time."""
    copies = tmp_path / "copies"
    copies.mkdir()
    for shard in shards:
        (copies / shard.name).write_bytes(shard.read_bytes())
    first, second = (
        [line for line in check(tmp_path, *paths, "--pipeline", DRAWS).splitlines() if line.startswith(("cat", "fin"))]
        for paths in (shards, [copies / shard.name for shard in shards])
    )
    assert len(first) == 2
    assert first == second


def _forbid_reading_headers(shard: Path) -> None:
    """Damage the last header of a shard, and leave size and time as they were: whoever scans it now fails."""
    status = shard.stat()
    data = bytearray(shard.read_bytes())
    position = data.index(b"029.cls")
    data[position + 148 : position + 156] = b"garbage!"  # the checksum
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_index_of_a_shard_is_kept_beside_it_and_used_until_the_shard_changes(
    tmp_path: Path, shards: list[Path]
) -> None:
    """The second start reads no headers; a shard that was written anew is scanned anew."""
    check(tmp_path, *shards, "--pipeline", DRAWS)
    assert sorted(path.name for path in (shards[0].parent / ".feedmill").iterdir()) == [
        "n-0.tar.index",
        "n-1.tar.index",
    ]
    _forbid_reading_headers(shards[0])
    assert "samples     = 60" in check(tmp_path, *shards, "--pipeline", DRAWS)
    write_tar(shards[0], [(f"{n:02d}", {"cls": b"1"}) for n in range(7)])
    assert "samples     = 37" in check(tmp_path, *shards, "--pipeline", DRAWS)


WITHOUT_RIGHTS = """
import ctypes, os, sys
# Not even root may write where the mode says no: without CAP_DAC_OVERRIDE (1), dropped for good with
# PR_CAPBSET_DROP (24), it is a user like any other.
if os.getuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):
    sys.exit("cannot drop the right to write everywhere")
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_index_of_a_shard_in_a_read_only_folder_is_kept_in_the_users_cache(
    tmp_path: Path, shards: list[Path]
) -> None:
    """$XDG_CACHE_HOME has it, and the second start uses it."""
    folder = shards[0].parent
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        check(tmp_path, *shards, "--pipeline", DRAWS, without_rights=True)
        assert not (folder / ".feedmill").exists()
        assert len(list((tmp_path / "feedmill" / "indexes").iterdir())) == 2
        _forbid_reading_headers(shards[0])
        assert "samples     = 60" in check(tmp_path, *shards, "--pipeline", DRAWS, without_rights=True)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_a_cache_folder_of_ones_own_has_indexes_and_inflated_shards(tmp_path: Path) -> None:
    """`--cache` is all that is written to."""
    folder = tmp_path / "shards"
    folder.mkdir()
    shard = write_tar(folder / "n.tgz", [(f"{n}", {"cls": b"1"}) for n in range(9)], gzip=True)
    check(tmp_path, shard, "--pipeline", DRAWS, "--cache", tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["indexes", "inflated"]
    assert list(folder.iterdir()) == [shard]
    assert not (tmp_path / "feedmill").exists()


def test_a_configuration_file_serves_several_streams_with_paths_beside_itself(
    tmp_path: Path, shards: list[Path], serve: Serve
) -> None:
    """Streams may share shards, and each has its own pipeline and batch size."""
    (tmp_path / "mine.py").write_text(
        "from feedmill_server import Pipeline\nPLAIN = Pipeline('cls', batch_size=5)\n"
        "TWICE = Pipeline('cls', transforms=[lambda x: 2 * x])\n"
    )
    (tmp_path / "mill.toml").write_text(
        "[streams.train]\nshards = 'shards/n-*.tar'\npipeline = 'mine.py:TWICE'\nbatch_size = 20\n"
        "[streams.val]\nshards = ['shards/n-1.tar']\npipeline = 'mine.py:PLAIN'\n"
    )
    served = serve("--config", tmp_path / "mill.toml")
    with (
        feedmill.connect(served.url, "train", shuffle=False, timeout=TIMEOUT) as train,
        feedmill.connect(served.url, "val", shuffle=False, timeout=TIMEOUT) as val,
    ):
        assert (len(train), len(val)) == (3, 6)
        assert [x for (labels,) in train for x in labels.tolist()] == [2 * n for n in range(30)] * 2
        assert [x for (labels,) in val for x in labels.tolist()] == list(range(30))
    with pytest.raises(feedmill.StreamMismatch, match=r"there is no stream 'vla' here; there is train, val"):
        feedmill.connect(served.url, stream="vla", timeout=TIMEOUT)


def test_a_server_can_be_configured_by_the_environment_alone(tmp_path: Path, shards: list[Path], serve: Serve) -> None:
    """What containers like best; over ipc for a change."""
    served = serve(
        FEEDMILL_SHARDS=f"{shards[0]} {shards[1]}",
        FEEDMILL_STREAM="numbers",
        FEEDMILL_PIPELINE=DRAWS,
        FEEDMILL_BATCH_SIZE="10",
        FEEDMILL_WORKERS="1",
        FEEDMILL_BIND=f"ipc://{tmp_path}/socket",
        FEEDMILL_NAME="mill",
    )
    assert served.url == f"ipc://{tmp_path}/socket"
    assert "1 workers" in served.log
    with feedmill.connect(served.url, timeout=TIMEOUT) as feed:
        assert len(feed) == 6
        assert len(set(keys(list(feed.batches())))) == 60
        assert "'numbers'" in repr(feed)


def test_the_log_says_what_is_served_from_where_and_to_whom(data: Data, serve: Serve, reference: Reference) -> None:
    """And the last line says how much it was."""
    dataset = data["slow"]
    served = serve(*dataset.shards, "--stream", "slow", "--pipeline", f"{PIPELINES}:SLOW", "--batch-size", "8")
    with feedmill.connect(served.url, "slow", prefetch=1, timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    assert_same(batches, reference("slow"))
    served.process.terminate()
    assert served.process.wait(5) == 0
    assert "stream slow: 100 samples in 2 shards, batches of 8, cls float64[202]" in served.log
    assert f"serving at {served.url} with {len(os.sched_getaffinity(0))} workers" in served.log
    assert "at 127.0.0.1: stream 'slow'" in served.log
    assert "stopped; " in served.log


def test_memory_for_one_batch_is_enough(shards: list[Path], serve: Serve) -> None:
    """Batches wait for the one slot, and nothing waits for ever."""
    served = serve(*shards, "--pipeline", DRAWS, "--batch-size", "30", "--memory", "49152", "--workers", "2")
    with (
        feedmill.connect(served.url, prefetch=8, timeout=TIMEOUT) as one,
        feedmill.connect(served.url, prefetch=8, seed=1, timeout=TIMEOUT) as other,
    ):
        for _ in range(3):
            assert [len(labels) for (labels,) in one] == [30, 30]
            assert [len(labels) for (labels,) in other] == [30, 30]
