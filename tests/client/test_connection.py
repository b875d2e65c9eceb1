"""A connection whose thread does not get to run for a while, and what it then finds.

The test is the server, and says one thing after the other.
"""

import threading
from collections.abc import Iterator

import pytest
import torch
import zmq

from feedmill import addresses
from feedmill.connection import Connection
from feedmill_protocol import codec, spans
from feedmill_protocol.messages import Drain, Get, Hello, Message
from feedmill_protocol.plan import Plan
from integration.fakes import COUNTS, WELCOME

PATIENCE_MS = 10_000
"""For a message that must come; most of it is for a busy machine."""


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def say(router: zmq.Socket[bytes], client: bytes, message: Message, payload: bytes = b"") -> None:
    frames = [*codec.seal(message, codec.checksum(payload)), payload]
    router.send_multipart([client, *frames[: 3 if payload else 2]])


def hear(router: zmq.Socket[bytes], kind: type[Message]) -> bytes:
    """Wait for a message of a kind, whatever comes before it; return whom it came from."""
    while router.poll(PATIENCE_MS):
        client, header, *_ = router.recv_multipart()
        if isinstance(codec.decode(header), kind):
            return client
    pytest.fail(f"no {kind.__name__} came")


def test_a_server_that_left_and_is_back_before_anybody_looks_is_asked_again(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    """What came over a lost connection and was not read is gone with it: a DRAIN is not taken for the next one's.

    libzmq sees to it, because of IMMEDIATE. The simulator's trainers rely on it.
    """
    router, again = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    url = router.get_string(zmq.LAST_ENDPOINT)
    connection = Connection(
        addresses.parse(url), "", timeout=60.0, allocate=lambda n: torch.empty(n, dtype=torch.uint8)
    )
    stalled, awake = threading.Event(), threading.Event()

    def stall(_now: float) -> None:
        stalled.set()
        awake.wait(30)

    try:
        client = hear(router, Hello)
        say(router, client, WELCOME, COUNTS.astype("<u4").tobytes())
        connection.wait_contract()
        connection._command(stall)
        assert stalled.wait(10)
        say(router, client, Drain())
        router.close(linger=1000)
        monitor = again.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        bind(again, url)
        assert monitor.poll(PATIENCE_MS)
        again.disable_monitor()
        monitor.close()
        awake.set()
        client = hear(again, Hello)
        say(again, client, WELCOME, COUNTS.astype("<u4").tobytes())
        samples = Plan(COUNTS, batch_size=8).batch(0, 0)
        get = Get(stream="train", fingerprint="f", seed=0, epoch=0, batch=0, spans=len(samples))
        connection.want(get, spans.pack(samples), spans.count(samples))
        assert hear(again, Get) == client
    finally:
        awake.set()
        connection.close()
        again.close(linger=0)


def bind(router: zmq.Socket[bytes], url: str) -> None:
    """Bind to a port that was in use a moment ago."""
    for _ in range(100):
        try:
            router.bind(url)
        except zmq.ZMQError:
            threading.Event().wait(0.05)
        else:
            return
    pytest.fail(f"{url} stays in use")
