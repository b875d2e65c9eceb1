"""Whoever connects and speaks no ZMTP, half of it, or too much of it: no memory for him, and service to others goes on.

Bytes are written to plain sockets, as ZMTP 3.1 (https://rfc.zeromq.org/spec/37) has them.
"""

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import feedmill
from integration.epochs import TIMEOUT
from integration.fleet import PIPELINES
from integration.processes import Served, wait_until
from shardmaker import write_tar

MIB = 2**20
CROWD = 300

_LONG, _COMMAND = 2, 4  # flags of a frame


def greeting(mechanism: bytes) -> bytes:
    """Return how a connection begins."""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(flags: int, size: int) -> bytes:
    """Return the head of a frame that announces so many bytes."""
    return bytes([flags | _LONG]) + struct.pack(">Q", size)


_PROPERTY = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
READY = bytes([_COMMAND, 6 + len(_PROPERTY)]) + b"\x05READY" + _PROPERTY


@pytest.fixture
def served(tmp_path: Path, serve: Callable[..., Served]) -> Iterator[Served]:
    """Return a server that must serve when the test is over as it did before, and hold no memory for what came."""
    shard = write_tar(tmp_path / "n.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(30)])
    server = serve(shard, "--pipeline", f"{PIPELINES}:DRAWS", "--workers", "1")
    epoch(server)
    before = resident(server)
    yield server
    epoch(server)
    assert resident(server) < before + 64 * MIB


def epoch(server: Served) -> None:
    """Have an honest client see all samples."""
    with feedmill.connect(server.url, timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 30


def resident(server: Served) -> int:
    """Return how many bytes of memory a broker has."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def connect(server: Served) -> socket.socket:
    """Return a plain connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server has had enough."""
    try:
        return connection.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_garbage_is_hung_up_on(served: Served) -> None:
    """Whatever the bytes; here 200 connections that bring a few hundred each."""
    chance = random.Random(0)
    for _ in range(200):
        with connect(served) as connection, suppress(OSError):
            connection.sendall(chance.randbytes(chance.randrange(1, 400)))


def test_a_frame_that_announces_too_much_is_hung_up_on(served: Served) -> None:
    """Before any of it is received, or has memory."""
    with connect(served) as connection:
        connection.sendall(greeting(b"NULL") + READY)
        connection.sendall(frame(0, 2**40) + bytes(100))
        wait_until(lambda: is_closed(connection), 5, "the connection is closed")


def test_another_mechanism_is_hung_up_on(served: Served) -> None:
    """Nothing is negotiated: a server has keys or not."""
    for mechanism in (b"CURVE", b"PLAIN", b"GSSAPI", b"\xff" * 20):
        with connect(served) as connection:
            connection.sendall(greeting(mechanism))
            wait_until(lambda: is_closed(connection), 5, "the connection is closed")


def test_a_crowd_that_says_nothing_or_half_a_greeting_is_in_nobodys_way(served: Served) -> None:
    """Its connections cost a descriptor each until libzmq's deadline for handshakes."""
    with ExitStack() as crowd:
        for number in range(CROWD):
            connection = crowd.enter_context(connect(served))
            connection.sendall(greeting(b"NULL")[: number % 64])
        epoch(served)
