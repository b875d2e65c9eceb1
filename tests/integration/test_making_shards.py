"""Folders of pictures become shards, or are served as they are; pipelines are baked into shards."""

import io
import json
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import feedmill
from feedmill.bake import bake
from feedmill_server.baked import forms
from feedmill_server.pictures import write_shards
from feedmill_server.writing import ShardWriter
from foldermaker import picture, write_tree
from integration import processes
from integration.commands import Run, runner
from integration.epochs import TIMEOUT
from integration.processes import Served, command, environment

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}

PIPELINE = """
from feedmill_server import Pipeline
from torchvision import transforms

IMAGE = transforms.Compose([transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                            transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])])
TRAIN = Pipeline("jpg;jpeg;png cls", transforms=[IMAGE, None], batch_size=16)
TRAPS = Pipeline("jpg cls", transforms=[transforms.Compose([IMAGE, lambda image: 1 / 0]), None])
"""

Serve = Callable[..., Served]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command here."""
    return runner(tmp_path, tmp_path / "cache", monkeypatch, capfd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder of pictures, of whose class the colour tells."""
    kinds = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG"}
    files = {
        f"{name}/{n}.{extension}": picture(*colour, kind=kind, size=(30 + n, 40))
        for name, colour in COLOURS.items()
        for n, (extension, kind) in enumerate(kinds.items())
    }
    return write_tree(tmp_path / "tree", files)


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """Return a pipeline of a user's own."""
    path = tmp_path / "pipes.py"
    path.write_text(PIPELINE)
    return f"{path}:TRAIN"


def colour_of(image: torch.Tensor) -> str:
    """Return which of `COLOURS` an unfinished picture is of."""
    mean = image.float().mean((1, 2))
    return min(COLOURS, key=lambda name: float((mean - torch.tensor(COLOURS[name])).abs().sum()))


def served_colours(url: str) -> dict[str, tuple[str, int]]:
    """Return the colour and the label of every sample."""
    with feedmill.connect(url, dtype=torch.uint8, timeout=TIMEOUT) as feed:
        return {
            key: (colour_of(image), int(label))
            for batch in feed.batches()
            for key, image, label in zip(batch.keys, *batch.tensors, strict=True)
        }


EXPECTED = {f"{name}/{n}": (name, label) for label, name in enumerate(COLOURS) for n in range(3)}


def test_what_is_packed_is_served_with_the_right_labels(tree: Path, run: Run, serve: Serve, pipeline: str) -> None:
    """The picture of every sample is of the class that its label names."""
    done = run("pack", tree, tree.parent / "out" / "t-%03d.tar", "--samples", "4")
    assert (done.code, done.stderr) == (0, "")
    shards = f"{tree.parent}/out/t-{{000..002}}.tar"
    assert done.stdout == f"9 pictures of 3 classes\nfeedmill serve '{shards}' --preset imagenet-train\n"
    assert served_colours(serve(shards, "--pipeline", pipeline).url) == EXPECTED
    assert (tree.parent / "out" / "classes.txt").read_text().split() == list(COLOURS)


def test_a_folder_is_served_as_it_is(tree: Path, serve: Serve, pipeline: str) -> None:
    """The same samples as from shards."""
    assert served_colours(serve("--dir", tree, "--pipeline", pipeline).url) == EXPECTED


def test_a_picture_that_changes_while_it_is_served_is_a_bad_sample(tree: Path, serve: Serve, pipeline: str) -> None:
    """It is named with its path; the others are served on."""
    url = serve("--dir", tree, "--pipeline", pipeline).url
    (tree / "blue" / "0.jpg").write_bytes(b"")
    (tree / "red" / "2.png").unlink()
    with feedmill.connect(url, on_error="skip", timeout=TIMEOUT) as feed:
        (batch,) = feed.batches()
    reasons = {skipped.key: skipped.reason for skipped in batch.skipped}
    assert reasons.keys() == {"blue/0", "red/2"}
    assert "changed since it was listed" in reasons["blue/0"]
    assert "No such file" in reasons["red/2"]
    assert sorted(batch.keys) == sorted(EXPECTED.keys() - reasons.keys())


def test_packing_says_in_one_line_what_it_cannot_do(tree: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Exit code 2, and nothing is written."""
    (tree / "red" / "bad.jpg").write_bytes(b"not a picture")
    bad = run("pack", tree, "out/t-%d.tar", "--check")
    assert bad.code == 2
    assert "1 pictures are bad (red/bad.jpg: no JPEG, PNG" in bad.stderr
    assert bad.stderr.count("\n") == 1
    assert not (tree.parent / "out").exists()
    done = run("pack", tree, "out/t-%d.tar", "--skip-bad")
    assert done.stdout.startswith("9 pictures of 3 classes\n")
    assert "left out: red/bad.jpg: no JPEG, PNG" in caplog.text
    for options, said in (
        (("--samples", "0"), "samples=0: expected an integer in 1.."),
        (("--bytes", "many"), "bytes='many': expected a size like 512MiB or 2GB"),
        (("--seed", "-1"), "seed=-1: expected an integer in 0.."),
    ):
        refused = run("pack", tree, "o/t-%d.tar", *options)
        assert (refused.code, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr


# Baking.


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return shards of 50 photographs."""
    folder = tmp_path_factory.mktemp("originals")
    write_shards(folder, shards=2, samples=25, sides=(40, 60))
    return f"{folder}/pictures-{{000000..000001}}.tar"


@pytest.fixture(scope="module")
def source(originals: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve them to all tests, by the pipeline ``TRAIN``."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "pipes.py").write_text(PIPELINE)
    served = processes.start(folder, originals, "--pipeline", folder / "pipes.py:TRAIN")
    processes.SHARED.add(served.process.pid)
    yield served.url
    processes.stop(served)


def epoch(url: str, number: int, *, shuffle: bool) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Yield key and finished tensors of the samples of an epoch."""
    with feedmill.connect(url, seed=5, shuffle=shuffle, timeout=TIMEOUT) as feed:
        feed.set_epoch(number)
        for batch in feed.batches():
            for key, *row in zip(batch.keys, *batch.tensors, strict=True):
                yield key, row


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_baked_shards_give_the_tensors_of_the_epochs(
    tmp_path: Path, originals: str, source: str, run: Run, serve: Serve, pipeline: str
) -> None:
    """Finished by the client, to the bit, in the order of the plan; every epoch begins a shard."""
    done = run("bake", originals, "b/b-%d.tar", "--pipeline", pipeline, "--epochs", 2, "--seed", 5, "--samples", 20)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == "100 samples of 2 epochs\nfeedmill serve 'b/b-{0..5}.tar' --pipeline b/b.json\n"
    expected = [sample for number in range(2) for sample in epoch(source, number, shuffle=True)]
    baked = serve(f"{tmp_path}/b/b-{{0..5}}.tar", "--pipeline", tmp_path / "b" / "b.json").url
    found = list(epoch(baked, 0, shuffle=False))
    assert [key for key, _ in found] == [f"{n:09d}/{key}" for n, (key, _) in enumerate(expected)]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert [row.dtype for row in ours] == [torch.float32, torch.int64]
        assert all(map(torch.equal, ours, theirs))
    with feedmill.connect(baked, timeout=TIMEOUT) as feed:
        assert feed.plan.counts.tolist() == [20, 20, 10, 20, 20, 10]
        assert feed.plan.batch_size == 16


def test_an_interrupted_baking_goes_on(tmp_path: Path, source: str) -> None:
    """Also in the middle of a batch, and with one epoch after the other: the shards are those of one go."""
    writer = ShardWriter(f"{tmp_path}/b-%d.tar")
    done: list[tuple[int, int]] = []
    with feedmill.connect(source, seed=5, dtype=torch.uint8, timeout=TIMEOUT) as feed, writer.making({}):
        stored = forms(feed.fields, "npy", 90)
        assert bake(feed, writer, stored, 2, 7, lambda *_: None) == 16
        before = contents(tmp_path)
        for number in (0, 3, 4, 7, 8, 15):
            writer.path(number).unlink()
        assert bake(feed, writer, stored, 2, 7, lambda *args: done.append(args)) == 16
    assert contents(tmp_path) == before
    assert done[6:9] == [(49, 100), (50, 100), (57, 100)]


def test_pictures_can_be_baked_as_jpegs(
    tmp_path: Path, originals: str, source: str, run: Run, serve: Serve, pipeline: str
) -> None:
    """Smaller, and nearly what they were."""
    done = run("bake", originals, "b/%02d.tar", "--pipeline", pipeline, "--seed", 5, "--format", "jpg", "--quality", 95)
    assert (done.code, done.stderr) == (0, "")
    with tarfile.open(tmp_path / "b" / "00.tar") as tar:
        first = tar.extractfile(tar.getmembers()[0])
        assert first is not None
        assert Image.open(io.BytesIO(first.read())).size == (32, 32)
    baked = serve(tmp_path / "b" / "00.tar", "--pipeline", tmp_path / "b" / "shards.json").url
    for (_, ours), (_, theirs) in zip(epoch(baked, 0, shuffle=False), epoch(source, 0, shuffle=True), strict=True):
        assert (ours[0] - theirs[0]).abs().mean() < 0.15
        assert ours[1] == theirs[1]


def test_baked_shards_have_no_more_bytes_than_asked_for(
    tmp_path: Path, originals: str, run: Run, pipeline: str
) -> None:
    """What a tar ends with is counted, too."""
    sample = 512 + 7 * 512 + 512 + 512  # a picture of 3,200 bytes and a label, with a header each
    done = run("bake", originals, "b/%02d.tar", "--pipeline", pipeline, "--bytes", 5 * sample)
    assert (done.code, done.stderr) == (0, "")
    shards = sorted((tmp_path / "b").glob("*.tar"))
    assert [path.stat().st_size for path in shards] == [4 * sample + 1024] * 12 + [2 * sample + 1024]


def test_baking_says_in_one_line_what_it_cannot_do(tmp_path: Path, originals: str, run: Run, pipeline: str) -> None:
    """Exit code 2; what the server said is said once."""
    traps = pipeline.replace("TRAIN", "TRAPS")
    for args, said in (
        ((originals, "b-%d.tar"), "give either --preset NAME or --pipeline FILE.py:NAME"),
        (("none.tar", "b-%d.tar", "--pipeline", pipeline), "shard none.tar: No such file or directory"),
        ((originals, "b-%d.tar", "--pipeline", traps), "the pipeline fails on the first samples"),
        ((originals, "b.tar", "--pipeline", pipeline), "'b.tar' names no shards"),
        ((originals, "b-%d.tar", "--pipeline", pipeline, "--epochs", "0"), "epochs=0: expected an integer in 1.."),
        ((originals, "b-%d.tar", "--pipeline", pipeline, "--quality", "101"), "quality=101: expected an integer in 1"),
        (
            (originals, "b-%d.tar", "--pipeline", pipeline, "--bytes", "1MB", "--format", "jpg"),
            "bytes='1MB': the size of JPEGs is not known before; give --samples",
        ),
    ):
        refused = run("bake", *args)
        assert refused.code == 2
        assert refused.stderr.startswith("feedmill: ")
        assert refused.stderr.count("\n") == 1
        assert said in refused.stderr
    assert not list(tmp_path.glob("b*.tar"))


def test_baking_ends_with_its_server_on_ctrl_c(tmp_path: Path, originals: str, pipeline: str) -> None:
    """No process and no unfinished shard is left; what is finished stays."""
    args = ("bake", originals, "b/b-%03d.tar", "--pipeline", pipeline, "--epochs", "1000", "--samples", "50")
    with subprocess.Popen(command(*args), env=environment(tmp_path), cwd=tmp_path, stderr=subprocess.PIPE) as process:
        processes.wait_until((tmp_path / "b" / "b-002.tar").exists, 30, "a shard is there")
        family = processes.descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    processes.wait_until(lambda: not any(map(processes.alive, family)), 5, "the server has ended")
    assert not list((tmp_path / "b").glob(".*.partial"))
    assert json.loads((tmp_path / "b" / "b.json").read_bytes())["epochs"] == 1000
