"""What the messages say of themselves: defaults, the bytes that follow them, texts cut to fit."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedmill_protocol.messages import Batch, Get, Hello, Message, Ping, Pong, Welcome, shorten
from feedmill_protocol.tensors import FieldSpec, TensorSpec

unhurried = settings(deadline=None)


def welcome(*, shards: int, counts: bool) -> Welcome:
    return Welcome(
        server="s",
        boot="b",
        stream="train",
        fields=(FieldSpec("image", "uint8", (3, 8, 8)),),
        batch_size=4,
        catalog="c",
        fingerprint="f",
        shards=shards,
        workers=1,
        counts=counts,
    )


def batch(*tensors: TensorSpec, keys: int) -> Batch:
    return Batch(epoch=0, batch=0, attempt=1, tensors=tensors, keys=keys)


@pytest.mark.parametrize(
    ("message", "payload_bytes"),
    [
        (Hello(), 0),
        (Get(stream="", fingerprint="", seed=0, epoch=0, batch=0, spans=3), 36),
        (welcome(shards=1000, counts=True), 4000),
        (welcome(shards=1000, counts=False), 0),
        (batch(keys=0), 0),
        (batch(TensorSpec("uint8", (2, 3)), keys=5), 64 + 5),
        (batch(TensorSpec("float32", (17,)), TensorSpec("bool", (1,)), keys=0), 128 + 64),
        (batch(TensorSpec("int64", (0, 9)), keys=0), 0),
    ],
)
def test_a_header_says_how_many_bytes_follow(message: Message, payload_bytes: int) -> None:
    """A receiver knows the size of the payload before any of it has come."""
    assert message.payload_bytes == payload_bytes


def test_messages_do_not_change() -> None:
    """They are values: what was logged is what was sent."""
    with pytest.raises(FrozenInstanceError):
        Hello().stream = "other"  # type: ignore[misc]


def test_messages_compare_by_what_they_say() -> None:
    """Two pings are alike, two pongs only if their counters are."""
    assert Ping() == Ping()
    assert Pong(progress=1, queue=2) == Pong(progress=1, queue=2) != Pong(progress=2, queue=2)


@pytest.mark.parametrize(
    ("text", "max_bytes", "short"),
    [
        ("abc", 3, "abc"),
        ("abcdefghij", 9, "abc...hij"),
        ("abcdefghij", 8, "ab...ij"),
        ("ééééééé", 10, "é...é"),  # three bytes on either side hold one é and half of another
        ("a\udcffb", 3, "a?b"),  # a file name that is not UTF-8
    ],
)
def test_shorten_keeps_the_beginning_and_the_end(text: str, max_bytes: int, short: str) -> None:
    """Shard names differ at their ends, reasons begin with what matters."""
    assert shorten(text, max_bytes) == short


@unhurried
@given(st.text(st.characters()), st.integers(8, 60))
def test_what_was_shortened_fits(text: str, max_bytes: int) -> None:
    """Any text, lone surrogates included, becomes UTF-8 within the limit, and shortening again changes nothing."""
    short = shorten(text, max_bytes)
    assert len(short.encode()) <= max_bytes
    assert shorten(short, max_bytes) == short
