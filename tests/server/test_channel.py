import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from feedmill_server import channel as channel_module
from feedmill_server.channel import Channel, ChannelClosed, ChannelFull


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    both = ours, Channel(theirs)
    yield both
    for end in both:
        end.close()


def test_messages_come_as_they_were_sent(ends: tuple[Channel, Channel]) -> None:
    """Each as a list, in order, in both directions."""
    here, there = ends
    here.send("part", 3, [["x", "float32", [4]]], b"\0\1", -(2**63), None)
    here.send("drop")
    there.send("done", "ä")
    assert there.receive() == (["part", 3, [["x", "float32", [4]]], b"\0\1", -(2**63), None], [])
    assert there.receive() == (["drop"], [])
    assert here.receive(1) == (["done", "ä"], [])


def test_descriptors_come_as_duplicates(ends: tuple[Channel, Channel]) -> None:
    """They lead to the same file, and the sender keeps its own."""
    here, there = ends
    reader, writer = os.pipe()
    here.send("pipe", fds=[reader, writer])
    message, (other_reader, other_writer) = there.receive()
    try:
        assert message == ["pipe"]
        assert len({reader, writer, other_reader, other_writer}) == 4
        os.write(other_writer, b"through")
        assert os.read(reader, 99) == b"through"
    finally:
        for fd in (reader, writer, other_reader, other_writer):
            os.close(fd)


def test_nothing_to_receive_is_a_timeout(ends: tuple[Channel, Channel]) -> None:
    """At once or after a while; the channel goes on to work, and waits again when told to."""
    here, there = ends
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            here.receive(timeout)
    there.send("late")
    assert here.receive(None) == (["late"], [])


def test_the_end_of_one_side_is_noticed_by_the_other(ends: tuple[Channel, Channel]) -> None:
    """After what was still sent."""
    here, there = ends
    there.send("last words")
    there.close()
    assert here.receive() == (["last words"], [])
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            here.receive(0)
    with pytest.raises(ChannelClosed):
        here.send("anybody?")
    with pytest.raises(ChannelClosed):
        here.send("anybody?", fds=[0])


def test_a_closed_end_neither_sends_nor_receives(ends: tuple[Channel, Channel]) -> None:
    """Closing twice does no harm."""
    here, _ = ends
    here.close()
    here.close()
    with pytest.raises(ChannelClosed):
        here.send("x")
    with pytest.raises(ChannelClosed):
        here.receive(0)


def test_the_end_that_is_given_away_is_a_plain_socket() -> None:
    """Its descriptor can be handed to another process; ours can be polled."""
    ours, theirs = Channel.pair()
    with theirs:
        assert isinstance(theirs, socket.socket)
        assert os.fstat(ours.fileno()).st_mode == os.fstat(theirs.fileno()).st_mode
        assert not os.get_inheritable(ours.fileno())
        ours.close()


@pytest.mark.parametrize("fds", [[], [0]])
def test_whoever_must_not_wait_learns_that_nothing_fits(ends: tuple[Channel, Channel], fds: list[int]) -> None:
    """What was sent until then arrives, and then there is room again."""
    here, there = ends
    sent = 0
    with suppress(ChannelFull):
        while sent < 10_000:
            here.send("drop", sent, b"x" * 10_000, fds=fds, wait=False)
            sent += 1
    assert 0 < sent < 100
    for number in range(sent):
        message, received = there.receive(0)
        assert message[:2] == ["drop", number]
        for fd in received:
            os.close(fd)
    here.send("drop", wait=False)
    assert there.receive(0) == (["drop"], [])


def test_the_other_end_is_told_of_the_end(ends: tuple[Channel, Channel]) -> None:
    """It still gets what was sent before, and can send no more; what it has sent can still be received."""
    here, there = ends
    here.send("last words")
    there.send("done")
    here.end()
    here.end()
    assert there.receive(0) == (["last words"], [])
    with pytest.raises(ChannelClosed):
        there.send("done again")
    with pytest.raises(ChannelClosed):
        there.receive(0)
    assert here.receive(0) == (["done"], [])
    with pytest.raises(ChannelClosed):
        here.receive(0)


def test_a_message_is_whole_or_refused(ends: tuple[Channel, Channel]) -> None:
    """The largest fits without being read; a larger one would arrive cut off."""
    here, there = ends
    largest = channel_module._MESSAGE_BYTES
    filling = b"x" * (largest - 8)  # less the heads of the list, of "part" and of the bytes: 1 + 5 + 5 at most
    with pytest.raises(ValueError, match=rf"^a message of {largest + 3:,} bytes, of at most {largest:,}$"):
        here.send("part", filling)
    here.send("part", filling[3:])
    assert there.receive(1)[0] == ["part", filling[3:]]
