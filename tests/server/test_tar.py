import io
import mmap
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol.errors import ShardError
from feedmill_server.tar import PADDING_BYTES, Member, walk
from shardmaker import FORMATS, tar_bytes

END = bytes(1024)

# What tarfile can write and read back: no NUL, no surrogates, no slash (at the end it would make a folder).
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=300)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1100)), max_size=6)

SHARD = tar_bytes(
    [("0001.jpg", b"j" * 700), ("0001.cls", b"7"), ("n" * 150 + ".jpg", b"k" * 512), ("ä.cls", b"")], format="pax"
)


def listing(data: bytes) -> list[Member]:
    return list(walk(memoryview(data), "train.tar"))


def names(data: bytes) -> list[str]:
    return [member.name for member in listing(data)]


def raw(name: bytes, content: bytes = b"", kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """Return a v7 header, whatever it says, and a padded payload."""
    size = b"%011o\0" % len(content) if size is None else size
    head = name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"%011o\0" % 0
    rest = kind + bytes(355)
    checksum = sum(head) + sum(rest) + 8 * ord(" ")
    return head + b"%06o\0 " % checksum + rest + content + bytes(-len(content) % 512)


def written(**attributes: object) -> bytes:
    """Return what tarfile makes of a member with these attributes."""
    info = tarfile.TarInfo("odd.jpg")
    for name, value in attributes.items():
        setattr(info, name, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("tar_format", FORMATS)
@given(files=FILES)
def test_what_tarfile_writes_is_walked(tar_format: str, files: list[tuple[str, bytes]]) -> None:
    """In every format, the members have the names and contents that were written, in order."""
    try:
        data = tar_bytes(files, format=tar_format)
    except ValueError:  # ustar has no room for some names
        return
    assert [(member.name, data[member.offset :][: member.size]) for member in listing(data)] == files


def test_a_mapping_is_walked(tmp_path: Path) -> None:
    """A mapped file does as well as bytes in memory."""
    path = tmp_path / "a.tar"
    path.write_bytes(SHARD)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert list(walk(data, "a")) == listing(SHARD)


def test_directories_are_passed_over() -> None:
    """Folders, in the form of today and in that of v7, are no members, and their sizes mean nothing."""
    data = raw(b"a", kind=b"5", size=b"00000001000\0") + raw(b"b/", kind=b"\0") + raw(b"a/0.jpg", b"x", b"\0") + END
    assert listing(data) == [Member("a/0.jpg", 1536, 1)]


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    """A long path is joined from its two fields."""
    name = "folder/" * 20 + "0001.jpg"
    assert names(tar_bytes([(name, b"")])) == [name]


def test_sizes_in_base_256_are_read() -> None:
    """A GNU size with the top bit set is binary."""
    assert listing(raw(b"0.jpg", b"xyz", size=b"\x80" + (3).to_bytes(11)) + END) == [Member("0.jpg", 512, 3)]


def test_gnu_long_names_are_read() -> None:
    """A long name ends at its NUL; a long link name says nothing of the member."""
    name = b"y" * 200 + b".jpg"
    data = raw(b"", name + b"\0", b"L") + raw(b"", b"target\0", b"K") + raw(b"yyy", b"x") + raw(b"z.jpg") + END
    assert listing(data) == [Member(name.decode(), 2560, 1), Member("z.jpg", 3584, 0)]


def test_pax_records_replace_name_and_size() -> None:
    """A local record holds for one member, a global one for all that follow, and an empty value unsets it."""
    data = (
        raw(b"", b"14 path=g.jpg\n9 size=1\n7 a=bc\n", b"g")
        + raw(b"a.jpg", b"x", size=b"00000000000\0")
        + raw(b"", b"14 path=o.jpg\n9 size=2\n", b"x")
        + raw(b"b.jpg", b"xy", size=b"00000000000\0")
        + raw(b"", b"8 path=\n8 size=\n", b"x")
        + raw(b"c.jpg", b"xyz")
        + END
    )
    assert listing(data) == [Member("g.jpg", 1536, 1), Member("o.jpg", 3584, 2), Member("c.jpg", 5632, 3)]


def test_names_that_are_no_utf8_are_escaped() -> None:
    """Any name can be shown and sent."""
    assert names(raw(b"caf\xe9.jpg") + END) == ["caf\\xe9.jpg"]


def test_one_zero_block_and_any_usual_padding_end_an_archive() -> None:
    """Some writers leave out the second zero block, others fill a record."""
    assert names(raw(b"a.jpg") + bytes(512)) == names(raw(b"a.jpg") + bytes(PADDING_BYTES)) == ["a.jpg"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"short", "not a tar file: it begins with b'short'"),
        (b"PK\x03\x04" * 500, "not a tar file: it begins with b'PK"),
        (raw(b"a.jpg"), "truncated: the file ends at 512 without an end-of-archive block"),
        (raw(b"a.jpg", b"x" * 600)[:1000], "truncated: member a.jpg has 600 bytes at offset 512, but .* ends at 1,000"),
        (raw(b"", b"x" * 600, b"L")[:1000], "truncated: the file ends inside the extension header at offset 512"),
        (raw(b"a.jpg") + b"x" * 512 + END, "damaged: the header at offset 512 has a wrong checksum"),
        (raw(b"", b"a.jpg\0", b"L") + END, "damaged: the archive ends at offset 1,024, before the member"),
        (raw(b"") + END, "damaged: the member whose header is at offset 0 has no name"),
        (raw(b"a", size=b"-0000000001\0") + END, "offset 0 has the impossible size b'-0000000001"),
        (raw(b"a", size=b"\xff" * 12) + END, "offset 0 has the impossible size"),
        (raw(b"a", size=b"\x80" + b"\xff" * 11) + END, "truncated: member a has 309,485,009,821,345,068,724,781,055"),
        (raw(b"a", kind=b"L", size=b"777777777777") + END, "has 68,719,476,735 of 1,048,576 bytes"),
        (raw(b"", b"nonsense", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (raw(b"", b"99 path=a\n", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (raw(b"", b"10 path=a\nz", b"x") + END, "the pax header at offset 512 is malformed at byte 10"),
        (raw(b"", b"6 path=a\n", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (raw(b"", b"10 path=ab", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (raw(b"", b"11 path=\0a\n", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (raw(b"", b"11 size=-1\n", b"x") + END, "the pax header at offset 512 is malformed at byte 0"),
        (
            raw(b"a.jpg") + END + raw(b"b.jpg") + END,
            "ends at offset 512, but other data follow at 1,536; .*--ignore-zeros",
        ),
        (raw(b"a.jpg") + bytes(PADDING_BYTES + 1), "ends at offset 512 in more than 1,048,576 zeros"),
        (written(type=tarfile.SYMTYPE, linkname="x"), "member odd.jpg .* is a symbolic link; .*--dereference"),
        (written(type=tarfile.LNKTYPE, linkname="x"), "member odd.jpg .* is a hard link"),
        (written(type=tarfile.CHRTYPE), "member odd.jpg .* is a device"),
        (written(type=tarfile.BLKTYPE), "member odd.jpg .* is a device"),
        (written(type=tarfile.FIFOTYPE), "member odd.jpg .* is a named pipe"),
        (written(type=b"S"), "member odd.jpg .* is a sparse file"),
        (written(pax_headers={"GNU.sparse.major": "1"}), "member odd.jpg .* is a sparse file"),
        (written(type=b"M"), "member odd.jpg .* is of the unknown type b'M'"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, says: str) -> None:
    """Every damage is a ShardError that says what is wrong, and where."""
    with pytest.raises(ShardError) as caught:
        listing(data)
    assert caught.value.shard == "train.tar"
    assert re.search(says, caught.value.reason)


@pytest.mark.parametrize("tar_format", FORMATS)
def test_a_truncated_shard_is_never_shorter(tar_format: str) -> None:
    """Wherever a shard is cut, it is refused, or has all its members."""
    shard = tar_bytes([("0001.jpg", b"j" * 700), ("0001.cls", b""), ("n" * 90 + "/2.jpg", b"k")], format=tar_format)
    whole = listing(shard)
    for size in range(len(shard)):
        try:
            assert listing(shard[:size]) == whole
        except ShardError:
            continue


@given(st.lists(st.tuples(st.integers(0, len(SHARD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_shard_is_refused_or_stays_within_bounds(mutations: list[tuple[int, int]]) -> None:
    """Changed bytes make nothing but a ShardError or members that lie in the file."""
    data = bytearray(SHARD)
    for position, value in mutations:
        data[position] = value
    try:
        members = listing(bytes(data))
    except ShardError:
        return
    assert all(0 < member.offset <= member.offset + member.size <= len(data) for member in members)


@given(st.binary(min_size=12, max_size=12), st.sampled_from(b"01257LKxgSV\0"), st.binary(max_size=600))
def test_a_signed_lie_is_refused_or_stays_within_bounds(size: bytes, kind: int, content: bytes) -> None:
    """A header whose checksum is right may still say anything: sizes, kinds and extensions are held to the file."""
    data = raw(b"a.jpg", content, bytes([kind]), size) + raw(b"b.jpg") + END
    try:
        members = listing(data)
    except ShardError:
        return
    assert all(0 < member.offset <= member.offset + member.size <= len(data) for member in members)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no tar make a ShardError, or no member."""
    try:
        assert listing(data) == []
    except ShardError:
        return
