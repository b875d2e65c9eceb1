"""A hostile server beside an honest one: a trainer says what is wrong, keeps its memory bounded, and goes on."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import feedmill
from faults.raw import ENDLESS, LONG, handshake, head, message
from feedmill_protocol.messages import Drain, Get, Hello, Message, Pong
from feedmill_protocol.tensors import TensorSpec
from integration.epochs import TIMEOUT
from integration.fakes import COUNTS, WELCOME, Answer, FakeServer, Frames, batch, block, frames, honest, sealed
from integration.processes import wait_until

MIB = 2**20

BOUND = 256 * MIB
"""What docs/security.md says of a trainer's memory under attack, for batches as small as these."""

NOTICED = 20.0
"""Seconds until a trainer must have left a server; most of it is for a busy machine."""

Attack = Callable[[socket.socket, threading.Event], None]


@contextmanager
def hostile(attack: Attack) -> Iterator[str]:
    """Listen, and attack whoever comes as soon as the handshake is done; yield the URL."""
    over = threading.Event()
    attacks = []

    def receive(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(1)
            handshake(connection, b"ROUTER")
            attack(connection, over)

    def listen() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                attacks.append(threading.Thread(target=receive, args=(listener.accept()[0],)))
                attacks[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        listening = threading.Thread(target=listen)
        listening.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            for thread in (listening, *attacks):
                thread.join(10)


def without_end(what: bytes) -> Attack:
    """Return an attack that sends the same again and again."""

    def attack(connection: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            connection.sendall(what)

    return attack


def memory(what: str) -> int:
    """Return a number of bytes of this process's memory, as Linux calls it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def epoch(feed: feedmill.Feed) -> list[int]:
    """Return which batches come."""
    return [b.index for b in feed.batches()]


def goes_on(hostile_url: str, caplog: pytest.LogCaptureFixture) -> str:
    """Train with a hostile server and an honest one until the hostile one is left; return what is said of it."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from now on
    before = memory("VmRSS")
    with FakeServer(honest) as fake, feedmill.connect([fake.url, hostile_url], timeout=TIMEOUT) as feed:
        deadline = time.monotonic() + NOTICED
        while "left alone" not in caplog.text and time.monotonic() < deadline:
            assert epoch(feed) == list(range(5))
        assert epoch(feed) == list(range(5))
        said = feed.servers()[hostile_url]
    assert memory("VmHWM") < before + BOUND
    assert any(r.levelno == logging.ERROR and hostile_url in r.getMessage() for r in caplog.records)
    return said


@pytest.mark.parametrize("what", ENDLESS)
def test_a_message_without_an_end_is_cut_off(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """It may be as large as the largest batch, and what comes in two beats."""
    with hostile(without_end(ENDLESS[what])) as url:
        assert "a message without an end, or larger than any batch" in goes_on(url, caplog)


def test_a_message_of_too_many_frames_is_not_read_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """What is not read is dropped with the connection."""
    with hostile(without_end(message([b""] * 20_000))) as url:
        said = goes_on(url, caplog)
    assert "more than 8,192 frames" in said or "without an end" in said


def test_garbage_and_oversize_frames_are_hung_up_on() -> None:
    """Libzmq does that; the trainer goes on with others."""

    def oversize(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head(LONG, 2**40) + bytes(100))
        while not over.is_set() and connection.recv(4096):
            pass

    with (
        hostile(oversize) as one,
        hostile(without_end(b"\xff\x01garbage")) as two,
        FakeServer(honest) as fake,
        feedmill.connect([one, two, fake.url], timeout=TIMEOUT) as feed,
    ):
        assert epoch(feed) == list(range(5))
        wait_until(lambda: feed.servers()[one] == feed.servers()[two] == "no connection", 10, "both are hung up on")


def _lie(answer: Callable[[Get, bytes], Frames]) -> Answer:
    """Return a server that answers everything as it should, but GET."""
    return lambda message, its: [answer(message, its)] if isinstance(message, Get) else honest(message, its)


def _flood(flood: Message, payload: bytes = b"") -> Answer:
    """Return a server that says one thing 2,000 times when it is greeted."""
    return lambda message, its: [
        *honest(message, its),
        *[frames(flood, payload)] * (2000 if isinstance(message, Hello) else 0),
    ]


def _too_few(get: Get, payload: bytes) -> Frames:
    answer = batch(get, payload, tensors=(TensorSpec("int64", (7,)),), keys=13)
    return frames(answer, block(answer))


UNASKED = "more than 1,024 messages that nobody asked for"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_lie(lambda _get, _payload: [b"\xc1"]), "8 messages in a row came damaged"),
        (_lie(_too_few), "where (TensorSpec("),
        (_lie(lambda _get, _payload: sealed({"v": 9, "type": "BATCH"})), "speaks version 9"),
        (_flood(Pong(progress=0, queue=0)), UNASKED),
        (_flood(Drain()), UNASKED),
        (_flood(WELCOME, COUNTS.astype("<u4").tobytes()), UNASKED),
        (_flood(Hello()), "HELLO is no message from a server"),
    ],
    ids=["garbage", "wrong batches", "another version", "PONGs", "DRAINs", "WELCOMEs", "HELLOs"],
)
def test_a_server_that_breaks_the_protocol_is_left_for_others(
    answer: Answer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Alone, it would have ended the feed with this error."""
    with FakeServer(answer) as liar:
        assert said in goes_on(liar.url, caplog)


def test_a_batch_that_trickles_in_is_asked_of_another() -> None:
    """A server that sends a byte now and then is as good as silent."""

    def trickle(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(message(frames(WELCOME, COUNTS.astype("<u4").tobytes())))
        connection.sendall(head(LONG, 100_000))
        while not over.wait(0.1):
            connection.sendall(b"x")

    with hostile(trickle) as url, FakeServer(honest) as fake:
        begun = time.monotonic()
        with feedmill.connect([url, fake.url], timeout=TIMEOUT) as feed:
            assert epoch(feed) == list(range(5))
        assert time.monotonic() - begun < NOTICED
