"""The door, with room for eight: who comes in, and who has to go."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq

from faults.raw import handshake, message
from feedmill_server.door import Door
from integration.processes import wait_until

ROOM = 8
"""Connections; half as many from one address."""


class House:
    """A door, and clients that speak plain ZMTP. Time is what a test says."""

    def __init__(self, stack: ExitStack) -> None:
        self.now = 1000.0
        self._stack = stack
        router = stack.enter_context(zmq.Context()).socket(zmq.ROUTER)
        stack.callback(router.close, linger=0)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.door = Door(router, files - 2 * ROOM)
        stack.callback(self.door.close)
        self._port = int(self.door.open("tcp://127.0.0.1:*", None).rpartition(":")[2])

    def come(self, address: str = "127.0.0.1") -> socket.socket:
        """Return a connection from one of this machine's addresses."""
        client = socket.create_connection(("127.0.0.1", self._port), timeout=5, source_address=(address, 0))
        self._stack.callback(client.close)
        assert client.recv(10)[0] == 0xFF, "libzmq greets who has been accepted"
        self.door.look(self.now)
        return client

    def shake_hands(self, client: socket.socket) -> None:
        """Make a connection one of ZMTP."""
        thread = threading.Thread(target=handshake, args=(client, b"DEALER"))
        thread.start()
        while thread.is_alive():
            self.door.look(self.now)
            thread.join(0.01)

    def hear(self, client: socket.socket) -> int:
        """Have a client that has shaken hands say something; return libzmq's descriptor of it."""
        client.sendall(message([b"hello"]))
        deadline = time.monotonic() + 5
        while (mail := self.door.receive()) is None:
            assert time.monotonic() < deadline
        return mail.fd


def is_cut(client: socket.socket) -> bool:
    """Tell whether a connection has been ended."""
    client.settimeout(0.2)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as stack:
        yield House(stack)


def test_no_address_takes_all_the_room(house: House) -> None:
    """The oldest of its own connections that has said nothing goes for its newest."""
    first, second, *others = [house.come("127.0.0.1") for _ in range(ROOM // 2 + 1)]
    elsewhere = [house.come("127.0.0.2") for _ in range(ROOM // 2)]
    assert is_cut(first)
    assert not any(map(is_cut, [second, *others, *elsewhere]))


def test_who_has_said_something_stays(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """As long as it goes on to; then whoever comes later has its place."""
    speaker = house.come()
    house.shake_hands(speaker)
    fd = house.hear(speaker)
    house.door.understood(fd, house.now)
    strangers = [house.come() for _ in range(ROOM // 2 + 2)]
    assert not is_cut(speaker)
    assert [is_cut(stranger) for stranger in strangers] == [True] * 3 + [False] * (ROOM // 2 - 1)
    assert "more connections than 4 from one address" in caplog.text
    assert "127.0.0.1" in caplog.text


def test_where_all_have_said_something_nobody_new_comes_in(house: House) -> None:
    """Until one of them has been silent for ten seconds."""
    speakers = [house.come(f"127.0.0.{2 + number % 2}") for number in range(ROOM)]
    for speaker in speakers:
        house.shake_hands(speaker)
        house.door.understood(house.hear(speaker), house.now)
    assert is_cut(house.come("127.0.0.4"))
    house.now += 11
    for speaker in speakers[1:]:
        house.door.understood(house.hear(speaker), house.now)
    assert not is_cut(house.come("127.0.0.4"))
    assert [is_cut(speaker) for speaker in speakers] == [True] + [False] * (ROOM - 1)


def test_a_message_that_is_too_long_is_not_handed_on(house: House) -> None:
    """Whoever sent it is cut; what others send is heard next."""
    long, short = house.come(), house.come()
    house.shake_hands(long)
    house.shake_hands(short)
    long.sendall(message([b""] * 10_000) + message([b"hello"]))
    wait_until(lambda: house.door.receive() or is_cut(long), 5, "it is cut")
    assert house.hear(short)


def test_whoever_comes_waits_while_much_is_left_of_those_who_have_gone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that come, leave something, and go, one after the other, hold no more memory than those that stay."""
    monkeypatch.setattr("feedmill_server.door._LEFT", 100_000)
    leaver = house.come()
    house.shake_hands(leaver)
    leaver.sendall(message([bytes(60_000)]) * 2)
    leaver.close()

    def is_gone() -> bool:
        house.door.look(house.now)
        return house.door._inflow.left > 100_000

    wait_until(is_gone, 5, "it is seen to have gone")
    newcomer = house.come()
    waiting = threading.Thread(target=handshake, args=(newcomer, b"DEALER"))
    waiting.start()
    for _ in range(20):
        house.door.look(house.now)
        waiting.join(0.01)
    assert waiting.is_alive(), "it was let in"
    assert [mail.frames[0].bytes for mail in iter(house.door.receive, None)] == [bytes(60_000)] * 2
    while waiting.is_alive():  # for five seconds at most
        house.door.look(house.now)
        waiting.join(0.01)
    assert house.hear(newcomer)
