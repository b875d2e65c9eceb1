import io
from pathlib import Path

import numpy as np
from PIL import Image

from feedmill_protocol import tenbin
from feedmill_server.fields import parse
from feedmill_server.inspection import Members, described, members, problems, samples
from feedmill_server.shards import ShardStore
from shardmaker import write_tar


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    return file.getvalue()


def store(tmp_path: Path, *contents: dict[str, bytes]) -> ShardStore:
    path = write_tar(tmp_path / "a.tar", [(f"{'ab'[n % 2]}/{n}", fields) for n, fields in enumerate(contents)])
    return ShardStore([path], cache=tmp_path)


def test_members_are_summed_up_by_extension(tmp_path: Path) -> None:
    """Count, bytes, and the smallest, median and largest."""
    with store(tmp_path, {"jpg": b"j" * 10, "cls": b"1"}, {"jpg": b"j" * 20}, {"jpg": b"j" * 60}) as shards:
        assert members(shards.index(0)) == [Members("jpg", 3, 90, 10, 20, 60), Members("cls", 1, 1, 1, 1, 1)]


def test_what_a_pipeline_may_stumble_over_is_said(tmp_path: Path) -> None:
    """Samples that lack something, empty members, files that are no samples; a sound shard has no problems."""
    with store(tmp_path, {"jpg": b"j", "cls": b"1"}, {"jpg": b""}) as shards:
        assert problems(shards.index(0)) == ["1 of 2 samples have no cls", "1 members are empty"]
    path = write_tar(tmp_path / "stray.tar", [("0", {"jpg": b"j"}), ("__meta", {"json": b"{}"})])
    with ShardStore([path], cache=tmp_path) as shards:
        assert problems(shards.index(0)) == ["1 members are of no sample and are left out"]
    with store(tmp_path / "..", {"jpg": b"j"}, {"jpg": b"k"}) as shards:
        assert problems(shards.index(0)) == []


def test_samples_are_chosen_by_the_beginning_of_their_keys(tmp_path: Path) -> None:
    """An empty prefix chooses all."""
    with store(tmp_path, *[{"cls": b"1"}] * 4) as shards:
        index = shards.index(0)
        assert list(samples(index, "b/")) == [1, 3]
        assert list(samples(index)) == [0, 1, 2, 3]


def test_a_sample_is_described_by_its_values(tmp_path: Path) -> None:
    """Small members by value, pictures and arrays by size and shape, the rest by its bytes."""
    sample = {"png": picture(), "cls": b"7", "txt": b"a cat", "json": b'{"a": [1]}', "npy": array(), "bin": b"12345"}
    sample["ten"] = tenbin.dumps([np.zeros((2, 3), np.uint8), np.zeros(2, np.float32)])
    with store(tmp_path, sample) as shards:
        assert described(shards.open(0), 0) == {
            "png": f"40x30 in {len(picture())} bytes",
            "cls": "7",
            "txt": "'a cat'",
            "json": "{'a': [1]}",
            "npy": "float32 [2, 3]",
            "bin": "5 bytes",
            "ten": "uint8 [2, 3], float32 [2]",
        }


def test_fields_are_chosen_as_in_a_pipeline(tmp_path: Path) -> None:
    """The first extension that exists; a dash where none does."""
    with store(tmp_path, {"png": picture(), "cls": b"7"}) as shards:
        found = described(shards.open(0), 0, parse("ppm;png cls txt"))
    assert found == {"ppm;png": f"40x30 in {len(picture())} bytes", "cls": "7", "txt": "-"}


def test_what_cannot_be_decoded_is_told_like_the_rest(tmp_path: Path) -> None:
    """One bad member is no reason to see nothing of the others."""
    with store(tmp_path, {"cls": b"seven", "png": b"no picture", "txt": b"\xff", "json": b"[" * 100_000}) as shards:
        found = described(shards.open(0), 0)
    assert found["cls"] == "cannot be decoded: invalid literal for int() with base 10: b'seven' (5 bytes)"
    assert all(words.startswith("cannot be decoded: ") for words in found.values())


def test_a_large_member_is_not_decoded(tmp_path: Path) -> None:
    """A line needs no megabytes of text."""
    with store(tmp_path, {"txt": b"x" * 2_000_000}) as shards:
        assert described(shards.open(0), 0) == {"txt": "2,000,000 bytes"}


def test_nothing_that_a_terminal_obeys_is_printed(tmp_path: Path) -> None:
    """Escapes are shown, and long texts are cut."""
    with store(tmp_path, {"txt": b"\x1b[2J" + b"x" * 100, "json": b"\x1b"}) as shards:
        said = described(shards.open(0), 0)
    assert all(map(str.isprintable, said.values()))
    assert said["txt"] == r"'\x1b[2J" + "x" * 51 + "…"
