"""The bounds of the protocol: that they fit together, and that the reasons given for them are true."""

from feedmill_protocol import limits
from feedmill_protocol.spans import SPAN_BYTES


def test_frames_of_the_sender_are_welcome_at_the_receiver() -> None:
    """Both ends' frame sizes fit each other, and a header is the smallest of frames."""
    assert limits.HEADER_BYTES <= limits.FRAME_BYTES <= limits.FRAME_BYTES_MAX


def test_a_block_holds_the_pictures_that_its_reason_names() -> None:
    """4 GiB is 7,100 float32 images of 224²."""
    assert limits.BLOCK_BYTES // (3 * 224 * 224 * 4) // 100 == 71


def test_the_other_payloads_are_smaller_than_a_batchs() -> None:
    """Spans, counts and keys are as large as their reasons say."""
    assert limits.BATCH_SAMPLES * SPAN_BYTES == 768 * 1024
    assert limits.SHARDS * 4 == 8_000_000
    assert limits.KEYS_BYTES == 1024 * limits.BATCH_SAMPLES
    assert limits.KEYS_BYTES < limits.BLOCK_BYTES


def test_the_alignment_is_a_power_of_two() -> None:
    """Pages and cache lines are multiples of it or divide it."""
    assert limits.ALIGNMENT.bit_count() == 1


def test_indices_of_samples_fit_a_span() -> None:
    """The stop of the last span of the largest shard is a 32-bit integer."""
    assert limits.SHARD_SAMPLES < 2**32
