import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.errors import ShardError
from feedmill_server.index import ShardIndex
from feedmill_server.tar import Member


def build(*names: str) -> ShardIndex:
    return ShardIndex.build([Member(name, 1000 * j, j) for j, name in enumerate(names)], "train.tar")


def same(one: ShardIndex, other: ShardIndex) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ShardIndex.__slots__)


def packed(**changes: object) -> bytes:
    """Pack an index with entries changed, or with None left out, under a checksum that is right."""
    body = msgpack.unpackb(build("a.jpg", "a.cls", "b.jpg").to_bytes()[4:]) | changes
    data: bytes = msgpack.packb({name: value for name, value in body.items() if value is not None})
    return zlib.crc32(data).to_bytes(4, "little") + data


def test_members_that_follow_each_other_under_a_key_are_a_sample() -> None:
    """An index tells the keys, and for each extension where the member lies."""
    index = build("x/1.jpg", "x/1.seg.png", "x/2.jpg", "y/1.jpg", "y/1.cls")
    assert len(index) == 3
    assert [index.key(i) for i in range(3)] == ["x/1", "x/2", "y/1"]
    assert index.members(0) == {"jpg": (0, 0), "seg.png": (1000, 1)}
    assert index.members(2) == {"jpg": (3000, 3), "cls": (4000, 4)}
    assert index.extensions == ("jpg", "seg.png", "cls")
    assert index.counts() == {"jpg": 3, "seg.png": 1, "cls": 1}
    assert repr(index) == "<ShardIndex: 3 samples of jpg seg.png cls; 0 members ignored>"


def test_keys_end_at_the_first_dot_of_the_base_name() -> None:
    """Dots in folders belong to the key; extensions are in lower case."""
    index = build("./v1.0/a b.JPG")
    assert (index.key(0), index.extensions) == ("./v1.0/a b", ("jpg",))


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._x.jpg", "d/.DS_Store", "d/._x.jpg", "LICENSE", "a.b/LICENSE", "a.", "__meta__.json", "d/__x.a"],
)
def test_other_members_are_counted_and_ignored(name: str) -> None:
    """Hidden files, files without an extension, and WebDataset's own are of no sample, and do not part one."""
    index = build("0.jpg", name, "0.cls")
    assert (len(index), index.ignored, list(index.members(0))) == (1, 1, ["jpg", "cls"])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.jpg", "a.cls", "a.JPG"], "sample a has two members with the extension jpg, the second at offset 2,000"),
        (["a.jpg", "b.jpg", "a.cls"], "members of sample a do not follow each other; .* sorted"),
        (["LICENSE", ".DS_Store"], "has no sample: none of its 2 members"),
        ([], "has no sample"),
    ],
)
def test_members_that_make_no_samples_are_refused(names: list[str], says: str) -> None:
    """What readers would disagree about is an error that names shard and sample."""
    with pytest.raises(ShardError, match=f"^shard train.tar: .*{says}"):
        build(*names)


def test_too_many_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard may have as many samples as a span can count."""
    monkeypatch.setattr(limits, "SHARD_SAMPLES", 2)
    assert len(build("a.jpg", "b.jpg")) == 2
    with pytest.raises(ShardError, match="more than 2 samples"):
        build("a.jpg", "b.jpg", "c.jpg")


@pytest.mark.parametrize("i", [2, -3])
def test_samples_beyond_the_shard_are_index_errors(i: int) -> None:
    """There is no sample n."""
    index = build("a.jpg", "b.jpg")
    with pytest.raises(IndexError):
        index.key(i)
    with pytest.raises(IndexError):
        index.members(i)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1).filter(
            lambda key: not key.startswith("__")
        ),
        st.lists(st.sampled_from(["jpg", "cls", "json", "seg.png"]), min_size=1, unique=True),
        min_size=1,
        max_size=20,
    )
)
def test_an_index_survives_its_bytes(samples: dict[str, list[str]]) -> None:
    """Packing and unpacking gives the same index, and the index gives what it was built of."""
    index = build(*(f"{key}.{extension}" for key, extensions in samples.items() for extension in extensions))
    again = ShardIndex.from_bytes(index.to_bytes())
    assert same(index, again)
    assert {again.key(i): list(again.members(i)) for i in range(len(again))} == samples


def test_a_key_that_is_too_long_to_be_sent_is_refused() -> None:
    """The bound is on bytes of UTF-8, and such that a batch of the longest keys can be sent."""
    longest = "ä" * 511 + "k"
    index = build(f"{longest}.jpg")
    assert index.key(0) == longest
    assert len(index.keys) * limits.BATCH_SAMPLES <= limits.KEYS_BYTES
    with pytest.raises(
        ShardError, match=r"the key of sample ä+\.\.\.ä+ has 1,024 bytes, of at most 1,023; make the shard"
    ):
        build(f"{'ä' * 512}.jpg")


def test_any_changed_byte_is_noticed() -> None:
    """A packed index with one byte changed, or cut anywhere, raises ValueError."""
    data = build("a.jpg", "a.cls", "b.jpg").to_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        for bad in (bytes(changed), data[:position]):
            with pytest.raises(ValueError, match=r"."):
                ShardIndex.from_bytes(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"keys": None},
        {"ignored": "1"},
        {"starts": b""},
        {"starts": b"123"},
        {"starts": np.array([0, 3, 3]).tobytes()},
        {"starts": np.array([0, 1, 2]).tobytes()},
        {"starts": np.array([1, 2, 3]).tobytes()},
        {"offsets": np.array([0, -1, 0]).tobytes()},
        {"sizes": np.array([0, -1, 0]).tobytes()},
        {"sizes": np.array([0, 1]).tobytes()},
        {"kinds": np.array([0, 1, 2], np.int32).tobytes()},
        {"kinds": np.array([0, -1, 0], np.int32).tobytes()},
        {"keys": b"a\0"},
        {"keys": b"a\0b"},
        {"keys": b"a\0" + b"b" * 1024 + b"\0"},
        {"keys": b"a\0\xff\0"},
        {"extensions": ["jpg", 1]},
    ],
)
def test_an_index_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    """Bytes with a right checksum are still held to what an index is."""
    assert len(ShardIndex.from_bytes(packed())) == 2
    with pytest.raises(ValueError, match=r"."):
        ShardIndex.from_bytes(packed(**changes))
