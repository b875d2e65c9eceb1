"""Clients that speak no ZMTP, half of it, or too much of it: memory has a bound, and service to others goes on."""

import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import feedmill
from faults.raw import COMMAND, ENDLESS, LONG, LONG_MESSAGES, greeting, handshake, head, ready
from integration import processes
from integration.epochs import TIMEOUT
from integration.fleet import PIPELINES
from integration.processes import Served, wait_until
from shardmaker import write_tar

MIB = 2**20

BOUND = 768 * MIB
"""What docs/security.md says of a server's memory under attack, beyond what it has otherwise."""

CROWD = 2000
CONNECTIONS = 1024
"""Of them that a server lets stand; half as many from one address, and each takes two descriptors."""

SIEGE_SECONDS = 1.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Keep a server."""
    folder = tmp_path_factory.mktemp("hostile")
    shard = write_tar(folder / "n.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(30)])
    served = processes.start(folder, shard, "--pipeline", f"{PIPELINES}:DRAWS", "--workers", "1")
    processes.SHARED.add(served.process.pid)
    yield served
    processes.stop(served)


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    """Return a server that must serve when the test is over as it did before, and have kept to its bound meanwhile."""
    epoch(server)
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # VmHWM counts from now on
    before = memory(server, "VmRSS")
    yield server
    epoch(server)
    assert memory(server, "VmHWM") < before + BOUND


def epoch(server: Served) -> None:
    """Have an honest client see all samples."""
    with feedmill.connect(server.url, timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 30


def memory(server: Served, what: str) -> int:
    """Return a number of bytes of a broker's memory, as Linux calls it."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def descriptors(server: Served) -> int:
    """Return how many descriptors a broker has open."""
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


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


@contextmanager
def siege(server: Served, besiegers: int, what: bytes) -> Iterator[None]:
    """Have clients send the same as fast as they can meanwhile; those who are hung up on come again."""
    over = threading.Event()

    def besiege() -> None:
        while not over.is_set():
            with suppress(OSError), connect(server) as connection:
                connection.settimeout(1)
                handshake(connection, b"DEALER")
                while not over.is_set():
                    connection.sendall(what)

    threads = [threading.Thread(target=besiege) for _ in range(besiegers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(10)


def test_garbage_is_hung_up_on(served: Served) -> None:
    """Whatever the bytes; here 200 connections that bring a few hundred each."""
    chance = random.Random(0)
    for _ in range(200):
        with connect(served) as connection, suppress(OSError):
            connection.sendall(chance.randbytes(chance.randrange(1, 400)))


def test_a_frame_that_announces_too_much_is_hung_up_on(served: Served) -> None:
    """Before any of it is received, or has memory; be it of a message, or a command."""
    for flags in (0, COMMAND):
        with connect(served) as connection:
            connection.sendall(greeting() + ready(b"DEALER"))
            connection.sendall(head(flags | LONG, 2**40) + bytes(100))
            wait_until(lambda: is_closed(connection), 5, "the connection is closed")


def test_another_mechanism_is_hung_up_on(served: Served) -> None:
    """Nothing is negotiated: a server has keys or not."""
    for mechanism in (b"CURVE", b"PLAIN", b"GSSAPI", b"\xff" * 20):
        with connect(served) as connection:
            connection.sendall(greeting(mechanism))
            wait_until(lambda: is_closed(connection), 5, "the connection is closed")


def test_an_older_zmtp_is_hung_up_on(served: Served) -> None:
    """ZMTP 1.0 begins with the identity's frame, 2.0 with a signature and a revision. No client of ours speaks them."""
    for old in (b"\x01\x00\x05\x00GET", b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00"):
        with connect(served) as connection:
            connection.sendall(old)
            wait_until(lambda: is_closed(connection), 5, "the connection is closed")


def test_a_client_that_is_not_understood_again_and_again_is_hung_up_on(served: Served) -> None:
    """It is told each time; after eight in a row it is not listened to."""
    with connect(served) as connection:
        handshake(connection, b"DEALER")
        connection.sendall(b"\x00\x05hello" * 7)
        connection.settimeout(0.2)
        assert not is_closed(connection)
        connection.sendall(b"\x00\x05hello")
        wait_until(lambda: is_closed(connection), 5, "the connection is closed")
    wait_until(lambda: "8 messages in a row" in served.log, 5, "the log says so")


@pytest.mark.parametrize(("besiegers", "what"), [(1, "empty frames"), *((20, what) for what in ENDLESS)], ids=str)
def test_messages_without_an_end_are_cut_off(served: Served, besiegers: int, what: str) -> None:
    """Libzmq would gather their frames until memory is full."""
    with siege(served, besiegers, ENDLESS[what]):
        begun = time.monotonic()
        while time.monotonic() < begun + SIEGE_SECONDS:
            epoch(served)
    assert "a message without an end" in served.log


def test_messages_of_thousands_of_frames_are_cut_off(served: Served) -> None:
    """They take a server longer to read than anybody to send. Nobody new is let in while so much is unread."""
    with siege(served, 50, LONG_MESSAGES):
        time.sleep(SIEGE_SECONDS)
        epoch(served)
    assert "or 64 frames" in served.log


def test_a_crowd_that_says_nothing_or_half_a_greeting_is_in_nobodys_way(served: Served) -> None:
    """Those who have said nothing for longest go when there are too many; descriptors do not run out."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * CROWD, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = descriptors(served)
    with ExitStack() as crowd:
        for number in range(CROWD):
            connection = crowd.enter_context(connect(served))
            with suppress(OSError):  # there are others by now
                connection.sendall(greeting()[: number % 64])
            if number % 500 == 499:
                epoch(served)
        wait_until(lambda: descriptors(served) <= before + CONNECTIONS + 16, 5, "most are cut")
    assert f"more connections than {CONNECTIONS // 2} from one address" in served.log
    wait_until(lambda: descriptors(served) <= before + 16, 5, "all are gone")
