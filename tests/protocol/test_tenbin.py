"""Tenbin: what it writes it reads, and what it does not know it refuses."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from feedmill_protocol.errors import ProtocolError, UsageError
from feedmill_protocol.tenbin import CODES, MAGIC, Array, decode, dumps, encode, loads

unhurried = settings(deadline=None)

ARRAYS = st.sampled_from(CODES).flatmap(
    lambda code: arrays_of.arrays(
        np.dtype(code), arrays_of.array_shapes(min_dims=0, max_dims=9, min_side=0, max_side=3)
    )
)


def head(code: bytes = b"f4", *shape: int, info: bytes = b"", rank: int | None = None) -> bytes:
    return struct.pack(f"<8s8sq{len(shape)}q", code, info, len(shape) if rank is None else rank, *shape)


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@unhurried
@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_arrays_come_back_from_frames_and_from_files(arrays: list[Array]) -> None:
    """Every dtype, every rank, empty ones too; what comes back can be written to."""
    for found, infos in (decode(encode(arrays)), loads(dumps(arrays)), loads(bytearray(dumps(arrays)))):
        assert all(same(a, b) for a, b in zip(found, arrays, strict=True))
        assert all(array.flags.writeable and array.flags.aligned for array in found)
        assert infos == [""] * len(arrays)


def test_infos_travel_with_their_arrays() -> None:
    """Up to eight characters."""
    assert decode(encode([np.zeros(2), np.zeros(3)], ["image", "12345678"]))[1] == ["image", "12345678"]


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(4, dtype=">f4"), np.arange(9)[::-2]])
def test_arrays_in_another_order_are_put_in_order(array: Array) -> None:
    """Transposed, big-endian and reversed ones arrive as they read."""
    (found,), _ = decode(encode([array]))
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("<")


def test_elements_are_not_copied_without_need() -> None:
    """Frames are views of arrays, and arrays views of frames that may be written to."""
    array = np.zeros(5, np.int16)
    frames = encode([array])
    array[3] = 7
    (found,), _ = decode(frames)
    assert found[3] == 7
    array[3] = 8
    assert found[3] == 8


@pytest.mark.parametrize(
    ("arrays", "infos", "says"),
    [
        ([], None, "there are no arrays"),
        ([np.zeros(2, "U3")], None, "tenbin has no dtype <U3"),
        ([np.zeros(2, object)], None, "tenbin has no dtype object"),
        ([np.zeros((1,) * 10)], None, "an array of 10 dimensions"),
        ([np.zeros(2)], ["123456789"], "at most 8 ASCII"),
        ([np.zeros(2)], ["ä"], "at most 8 ASCII"),
        ([np.zeros(2)], ["a", "b"], "one for each of 1 arrays"),
    ],
)
def test_what_tenbin_cannot_hold_is_refused(arrays: list[Array], infos: list[str] | None, says: str) -> None:
    """The message says what can be held."""
    with pytest.raises(UsageError, match=says):
        encode(arrays, infos)


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([head()], "1 frames"),
        ([b"f4", b""], "a header of 2 bytes"),
        ([head(b"O8", 1), bytes(8)], "expected a dtype of .* got 'O8'"),
        ([head(b"f4\0\0\0\0\0x", 1), bytes(4)], "expected a dtype"),
        ([head(rank=-1), b""], r"expected a rank in 0\.\.9, got -1"),
        ([head(rank=10), b""], "expected a rank"),
        ([head(b"f4", 1, 2, rank=1), bytes(4)], "does not fit rank 1"),
        ([head(b"f4", -1), b""], "is negative"),
        ([head(b"f4", 2**31), b""], "exceeds"),
        ([head(b"f4", 2**62, 2**62, 0), b""], "exceeds"),
        ([head(b"f4", 3), bytes(11)], r"11 bytes, where float32\[3\] has 12"),
        ([head(b"f4", 3), bytes(13)], "13 bytes"),
        ([head(b"f4", 0, info=b"\xff"), b""], "not ASCII"),
    ],
)
def test_frames_that_are_no_arrays_are_refused(frames: list[bytes], says: str) -> None:
    """The error names the array and what was expected."""
    with pytest.raises(ProtocolError, match=says):
        decode(frames)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 frames; there is one array at least"),
        (b"~TenBin~", "at byte 0: 8 bytes are left over"),
        (b"~TenBeer" + bytes(72), "at byte 0: expected b'~TenBin~'"),
        (struct.pack("<8sq", MAGIC, -1) + bytes(64), "a chunk of -1 bytes"),
        (struct.pack("<8sq", MAGIC, 2**62) + bytes(64), "with 64 left"),
        (dumps([np.zeros(3)])[:-1], "at byte 80: a chunk of 24 bytes, with 63 left"),
        (dumps([np.zeros(3)])[:80], "1 frames"),
    ],
)
def test_bytes_that_are_no_file_are_refused(data: bytes, says: str) -> None:
    """The error says where."""
    with pytest.raises(ProtocolError, match=says):
        loads(data)


@unhurried
@given(st.binary(max_size=200), st.integers(0, 200), ARRAYS)
def test_whatever_comes_there_are_arrays_or_a_protocol_error(junk: bytes, at: int, array: Array) -> None:
    """Junk alone, and a good file with junk written over a part of it."""
    damaged = bytearray(dumps([array, array]))
    damaged[at : at + len(junk)] = junk
    header, data = (bytes(frame) for frame in encode([array]))
    for file in (junk, bytes(damaged)):
        with suppress(ProtocolError):
            loads(file)
    for frames in ([junk, data], [header, junk], [junk]):
        with suppress(ProtocolError):
            decode(frames)
