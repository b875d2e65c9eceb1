"""Data that cannot become a batch: named under "raise", left out and reported under "skip"; the server serves on."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import feedmill
from integration.epochs import TIMEOUT, keys
from integration.processes import Served, wait_until
from shardmaker import write_tar

Serve = Callable[..., Served]


def encoded(format: str) -> bytes:  # noqa: A002
    """Return a picture of noise, which takes as many bytes as pictures do."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format)
    return file.getvalue()


JPEG = encoded("JPEG")


def _bomb() -> bytes:
    """Return a JPEG whose header promises 144 megapixels."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", 12_000, 12_000) + JPEG[at + 4 :]


GOOD = {"jpg": JPEG, "cls": b"1"}
SAMPLES = {
    "00": GOOD,
    "truncated": GOOD | {"jpg": JPEG[: len(JPEG) // 2]},
    "tailless": GOOD | {"jpg": JPEG[:-2]},
    "headless": GOOD | {"jpg": b"\0\0\0\0" + JPEG[4:]},
    "empty": GOOD | {"jpg": b""},
    "bomb": GOOD | {"jpg": _bomb()},
    "unlabelled": {"jpg": JPEG},
    "mislabelled": GOOD | {"cls": b"cat"},
    "pictureless": {"cls": b"1"},
    "png": GOOD | {"jpg": encoded("PNG")},
    "99": GOOD,
}
REASONS = {
    "truncated": "OSError: image file is truncated",
    "tailless": "OSError: image file is truncated",
    "headless": "UnidentifiedImageError: cannot identify image file",
    "empty": "UnidentifiedImageError: cannot identify image file",
    "bomb": "the image has 12000x12000 pixels, more than 100,000,000",
    "unlabelled": "MissingField: has no member cls, only jpg",
    "mislabelled": "ValueError: invalid literal for int() with base 10: b'cat'",
    "pictureless": "MissingField: has no member ppm or png or jpg or jpeg, only cls",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards of bad samples: all together, and one each."""
    folder = tmp_path_factory.mktemp("bad")
    write_tar(folder / "all.tar", SAMPLES.items())
    return folder


@pytest.mark.parametrize("exact", [False, True], ids=["fused", "exact"])
def test_every_kind_of_bad_sample_is_left_out_and_reported(
    folder: Path,
    serve: Serve,
    exact: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """With shard, key and reason; what is only misnamed is served; and on "raise" the first of them ends the epoch."""
    served = serve(
        folder / "all.tar", "--preset", "imagenet-train", "--workers", "2", "--batch-size", "11", *["--exact"] * exact
    )
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        for _ in range(2):  # the server is none the worse for it
            (batch,) = feed.batches()
            assert list(batch.keys) == ["00", "png", "99"]
            assert batch.missing == len(REASONS)
            assert [(skipped.shard, skipped.key) for skipped in batch.skipped] == [("all.tar", key) for key in REASONS]
            for skipped in batch.skipped:
                assert REASONS[skipped.key][:90] in skipped.reason
            assert [len(tensor) for tensor in batch.tensors] == [3, 3]
    with feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed:
        with pytest.raises(feedmill.SampleError, match="OSError: image file is truncated") as raised:
            list(feed.batches())
        assert (raised.value.shard, raised.value.key) == ("all.tar", "truncated")
    assert "replacing it" not in served.log


NUMBERS = """
import time
from feedmill_server import Pipeline
def slow(x):
    time.sleep(0.02)
    return x
P = Pipeline("cls", transforms=[slow], batch_size=10)
"""


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (_cut, "changed since it was indexed"),
    "rewritten": (_rewrite, "changed since it was indexed"),
    "deleted": (Path.unlink, "No such file or directory"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_a_shard_that_is_harmed_while_it_is_served_is_named_and_the_others_go_on(
    tmp_path: Path,
    serve: Serve,
    harm: str,
    opened: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """Whether the workers have it open or not; one that is deleted while it is open may be read on."""
    (tmp_path / "mine.py").write_text(NUMBERS)
    shards = [
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{n:02d}", {"cls": b"%d" % n}) for n in range(20)])
        for name in ("a", "b", "c")
    ]
    served = serve(*shards, "--pipeline", f"{tmp_path}/mine.py:P", "--workers", "2")
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        if opened:
            assert len(keys(list(feed.batches()))) == 60
    do, reason = HARMS[harm]
    do(shards[1])
    intact = [f"{name}{n:02d}" for name in "ac" for n in range(20)]
    with feedmill.connect(served.url, seed=1, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    found = [key for key in keys(batches) if not key.startswith("b")]
    assert found == intact
    skipped = [skipped for batch in batches for skipped in batch.skipped]
    assert sum(batch.missing for batch in batches) == len(skipped)
    assert all((s.shard, s.key) == ("b.tar", "") and reason[:20] in s.reason for s in skipped)
    may_be_read = harm == "deleted" and opened
    assert len(keys(batches)) + len(skipped) == 60
    assert may_be_read or len(skipped) == 20
    if not may_be_read:
        with (
            feedmill.connect(served.url, seed=2, shuffle=False, timeout=TIMEOUT) as feed,
            pytest.raises(feedmill.ShardError, match=reason) as raised,
        ):
            list(feed.batches())
        assert raised.value.shard == "b.tar"
    assert "replacing it" not in served.log


FAILING_DISK = """
import errno, os
pread = os.pread
def fail(fd, size, offset):
    if os.readlink(f"/proc/self/fd/{fd}").endswith("/b.tar") and offset > 10_000:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return pread(fd, size, offset)
os.pread = fail  # here where the workers are forked: as if the disk failed them
"""


def test_a_disk_that_fails_is_named_with_the_shard(tmp_path: Path, serve: Serve) -> None:
    """What can be read is served."""
    (tmp_path / "mine.py").write_text(NUMBERS + FAILING_DISK)
    shards = [
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{n:02d}", {"cls": b"%d" % n}) for n in range(20)])
        for name in ("a", "b")
    ]
    served = serve(*shards, "--pipeline", f"{tmp_path}/mine.py:P", "--workers", "2")
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    read = keys(batches)
    assert read == [f"a{n:02d}" for n in range(20)] + [f"b{n:02d}" for n in range(10)]
    with (
        feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed,
        pytest.raises(
            feedmill.ShardError, match=r"^shard b.tar: 2 bytes at offset 10,\d+ cannot be read: Input/output"
        ),
    ):
        list(feed.batches())


def test_a_shard_that_cannot_be_inflated_for_want_of_room_is_named(tmp_path: Path, serve: Serve) -> None:
    """The cache's disk is full: one shard after the other says so, and what needs no room is served."""
    (tmp_path / "mine.py").write_text(
        NUMBERS + "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
    )
    plain = write_tar(tmp_path / "a.tar", [(f"a{n:02d}", {"cls": b"%d" % n}) for n in range(20)])
    gzipped = write_tar(
        tmp_path / "b.tgz", [(f"b{n:02d}", {"cls": b"%d" % n, "txt": bytes(9999)}) for n in range(20)], gzip=True
    )
    served = serve(plain, gzipped, "--pipeline", f"{tmp_path}/mine.py:P", "--workers", "2")
    for copy in (tmp_path / "feedmill" / "inflated").glob("*.tar"):  # as if it had been evicted
        copy.unlink()
    with feedmill.connect(served.url, shuffle=False, on_error="skip", timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    assert keys(batches) == [f"a{n:02d}" for n in range(20)]
    assert {(s.shard, s.key) for batch in batches for s in batch.skipped} == {("b.tgz", "")}
    with (
        feedmill.connect(served.url, shuffle=False, timeout=TIMEOUT) as feed,
        pytest.raises(feedmill.ShardError, match=r"b.tgz: cannot be inflated into .*: File too large; make room there"),
    ):
        list(feed.batches())
    inflated = tmp_path / "feedmill" / "inflated"
    wait_until(lambda: not list(inflated.iterdir()), 10, "what the other worker tried is gone too")


def test_a_server_that_may_hardly_open_files_says_so_at_once(tmp_path: Path, serve: Serve) -> None:
    """Rather than in the middle of an epoch."""
    (tmp_path / "mine.py").write_text(NUMBERS)
    shard = write_tar(tmp_path / "a.tar", [(f"{n}", {"cls": b"1"}) for n in range(9)])
    (tmp_path / "sitecustomize.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
    )
    with pytest.raises(AssertionError, match="ended with 2: ") as raised:
        serve(
            shard,
            "--pipeline",
            f"{tmp_path}/mine.py:P",
            "--workers",
            "3",
            PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        )
    assert "this process may open 100 files, of at least 870; raise it with 'ulimit -Hn'" in str(raised.value)
