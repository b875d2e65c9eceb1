import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedmill_protocol.errors import UsageError
from feedmill_server.pictures import CLASSES, draw, write_shards


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: content.read() for member in tar if (content := tar.extractfile(member))}


def test_shards_are_in_the_webdataset_layout(tmp_path: Path) -> None:
    """Each sample is a JPEG and its label under one key, numbered through all shards."""
    first, second = write_shards(tmp_path / "new", shards=2, samples=3)
    assert (first.name, second.name) == ("pictures-000000.tar", "pictures-000001.tar")
    assert list(members(first)) == [f"{n:06d}.{extension}" for n in range(3) for extension in ("jpg", "cls")]
    assert list(members(second)) == [f"{n:06d}.{extension}" for n in range(3, 6) for extension in ("jpg", "cls")]


def test_pictures_are_rgb_jpegs_of_the_sizes_asked_for(tmp_path: Path) -> None:
    """Widths and heights vary, and both ends of the range are possible."""
    (shard,) = write_shards(tmp_path, shards=1, samples=24, sides=(30, 33))
    pictures = [Image.open(io.BytesIO(content)) for name, content in members(shard).items() if "jpg" in name]
    assert {(picture.format, picture.mode) for picture in pictures} == {("JPEG", "RGB")}
    assert {side for picture in pictures for side in picture.size} == {30, 31, 32, 33}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither the directory nor the moment shows in a shard."""
    once = write_shards(tmp_path / "once", shards=2, samples=4, seed=5, sides=(32, 48))
    again = write_shards(tmp_path / "again", shards=2, samples=4, seed=5, sides=(32, 48))
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    """No picture of one seed is found under another."""
    (one,) = write_shards(tmp_path / "one", shards=1, samples=8, seed=1, sides=(32, 48))
    (two,) = write_shards(tmp_path / "two", shards=1, samples=8, seed=2, sides=(32, 48))
    jpegs = [{content for name, content in members(path).items() if "jpg" in name} for path in (one, two)]
    assert not jpegs[0] & jpegs[1]


def test_how_samples_are_cut_into_shards_does_not_change_them(tmp_path: Path) -> None:
    """A picture follows from the seed and its number alone."""
    (whole,) = write_shards(tmp_path / "whole", shards=1, samples=6, sides=(32, 48))
    first, second = write_shards(tmp_path / "halves", shards=2, samples=3, sides=(32, 48))
    assert members(whole) == members(first) | members(second)


def test_labels_are_shuffled_and_use_every_class(tmp_path: Path) -> None:
    """The first classes that were asked for all occur, in no order."""
    (shard,) = write_shards(tmp_path, shards=1, samples=60, classes=3, sides=(16, 16))
    labels = [int(content) for name, content in members(shard).items() if "cls" in name]
    assert set(labels) == {0, 1, 2}
    assert labels != sorted(labels)


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_every_class_draws_a_pattern_and_not_a_plain_picture(label: int) -> None:
    """Paper and ink both cover a good part of a picture, whatever is left to chance."""
    for seed in range(5):
        picture = draw(label, 120, 90, np.random.default_rng(seed))
        assert picture.size == (120, 90)
        grey = np.asarray(picture.convert("L"), np.float32)
        assert grey.std() > 10, f"seed {seed}"


def test_finished_shards_leave_nothing_else_behind(tmp_path: Path) -> None:
    """Unfinished shards lie in a folder of their own, which goes away."""
    paths = write_shards(tmp_path, shards=2, samples=1, sides=(16, 16))
    assert sorted(tmp_path.iterdir()) == paths


def test_an_interrupted_shard_never_gets_its_name(tmp_path: Path) -> None:
    """A shard that lies there is whole, so that the demo may reuse it."""

    def interrupt(drawn: int) -> None:
        if drawn == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, shards=2, samples=2, sides=(16, 16), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures-000000.tar"]


def test_progress_counts_pictures(tmp_path: Path) -> None:
    """The callback hears of every picture, through all shards."""
    heard: list[int] = []
    write_shards(tmp_path, shards=2, samples=2, sides=(16, 16), progress=heard.append)
    assert heard == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": 0}, "shards=0 of samples=1 hold no picture"),
        ({"samples": 0}, "shards=1 of samples=0 hold no picture"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"classes": 9}, "classes=9: there are 1 to 8, namely stripes,"),
        ({"sides": (40, 30)}, r"sides=\(40, 30\) must be a smallest and a largest side"),
        ({"sides": (8, 30)}, r"sides=\(8, 30\) must be .* from 16 up"),
    ],
)
def test_arguments_that_cannot_work_are_named(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    """Misuse is a UsageError before anything is written."""
    with pytest.raises(UsageError, match=message):
        write_shards(tmp_path / "none", **{"shards": 1, "samples": 1, **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
