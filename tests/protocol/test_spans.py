"""Spans: their bytes, their count, their samples, and what a receiver refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.spans import SPAN_BYTES, Spans, count, expand, pack, unpack

unhurried = settings(deadline=None)

COUNTS = np.array([10, 0, 3, 2**32 - 1], np.uint32)


def spans_of(*rows: tuple[int, int, int]) -> Spans:
    return np.array(rows, np.uint32).reshape(-1, 3)


@st.composite
def spans_within(draw: st.DrawFn) -> Spans:
    """Spans that lie in shards of COUNTS and make no more than a batch."""

    def row(shard: int) -> st.SearchStrategy[tuple[int, int, int]]:
        return st.integers(0, int(COUNTS[shard]) - 1).flatmap(
            lambda start: st.tuples(
                st.just(shard), st.just(start), st.integers(start + 1, min(start + 2000, int(COUNTS[shard])))
            )
        )

    return spans_of(*draw(st.lists(st.sampled_from([0, 2, 3]).flatmap(row), min_size=1, max_size=30)))


@unhurried
@given(spans_within())
def test_unpack_undoes_pack(spans: Spans) -> None:
    """What one end packs the other end reads, from bytes and from memory of the socket's alike."""
    for payload in (pack(spans), memoryview(pack(spans))):
        assert np.array_equal(unpack(payload, COUNTS), spans)
        assert unpack(payload, COUNTS).dtype == np.uint32


@unhurried
@given(spans_within())
def test_expand_lists_what_count_counts(spans: Spans) -> None:
    """Every span becomes its samples, in order."""
    expected = [[shard, i] for shard, start, stop in spans.tolist() for i in range(start, stop)]
    assert expand(spans).tolist() == expected
    assert count(spans) == len(expected)


def test_spans_travel_as_little_endian_triples() -> None:
    """The bytes are the specification's, whatever the machine's own order and the array's own layout."""
    spans = np.asfortranarray(spans_of((1, 2, 3), (0x01020304, 5, 6)))
    expected = bytes.fromhex("010000000200000003000000" + "040302010500000006000000")
    assert pack(spans) == expected
    assert len(expected) == 2 * SPAN_BYTES
    assert pack(spans.astype(">u4")) == expected


def test_the_largest_index_is_counted_right() -> None:
    """Indices just below 2^32 neither wrap nor turn negative."""
    spans = spans_of((3, 2**32 - 3, 2**32 - 1))
    assert count(spans) == 2
    assert expand(spans).tolist() == [[3, 2**32 - 3], [3, 2**32 - 2]]


def test_no_spans_hold_no_samples() -> None:
    """Counting and expanding nothing gives nothing."""
    assert count(spans_of()) == 0
    assert expand(spans_of()).shape == (0, 2)


@pytest.mark.parametrize("payload", [b"", b"\0" * 11, b"\0" * 13])
def test_a_payload_that_holds_no_whole_spans_is_refused(payload: bytes) -> None:
    """Nothing, and anything but multiples of twelve bytes."""
    with pytest.raises(ProtocolError, match=f"{len(payload)} bytes are not a positive multiple of 12"):
        unpack(payload, COUNTS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((4, 0, 1), "shard 4 of 4 does not exist"),
        ((2**32 - 1, 0, 1), "shard 4294967295 of 4 does not exist"),
        ((0, 5, 5), "5..5 is no part of shard 0, which has 10 samples"),
        ((0, 6, 5), "6..5 is no part of shard 0, which has 10 samples"),
        ((0, 0, 11), "0..11 is no part of shard 0, which has 10 samples"),
        ((1, 0, 1), "0..1 is no part of shard 1, which has 0 samples"),
    ],
)
def test_a_span_outside_its_shard_is_refused_and_named(row: tuple[int, int, int], message: str) -> None:
    """The first wrong span is named, though good ones stand before it."""
    with pytest.raises(ProtocolError, match=message):
        unpack(pack(spans_of((2, 0, 3), row, (2, 0, 9))), COUNTS)


def test_a_batch_has_a_largest_size() -> None:
    """The limit itself passes, one sample more does not, however few spans it takes."""
    most = spans_of((3, 0, limits.BATCH_SAMPLES - 1), (0, 0, 1))
    assert count(unpack(pack(most), COUNTS)) == limits.BATCH_SAMPLES
    with pytest.raises(ProtocolError, match="65537 samples exceed the 65536 of a batch"):
        unpack(pack(spans_of((3, 0, limits.BATCH_SAMPLES), (0, 0, 1))), COUNTS)


@unhurried
@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_spans_or_an_error(payload: bytes) -> None:
    """Whatever a hostile peer sends, every span that comes out lies in its shard."""
    try:
        spans = unpack(payload, COUNTS)
    except ProtocolError:
        return
    assert all(start < stop <= COUNTS[shard] for shard, start, stop in spans.tolist())
