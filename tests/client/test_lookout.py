"""The lookout, before servers that are well and others that are not."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from feedmill import lookout
from feedmill.addresses import Url
from feedmill.lookout import Lookout, parse_urls
from feedmill_protocol.errors import UsageError
from feedmill_server.status import status
from integration.processes import wait_until
from server.snapshots import BUSY

STATUS = json.dumps(status(BUSY, "node")).encode()
OK = b"HTTP/1.1 200 OK\r\n\r\n"

DEADLINE = 1.0


def answer(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


def hang(connection: socket.socket) -> None:
    connection.recv(1)  # until the other side has had enough


def trickle(connection: socket.socket) -> None:
    for byte in OK + STATUS:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def flood(connection: socket.socket) -> None:
    connection.sendall(OK)
    for _ in range(10_000):  # 10 GB, if one lets it
        connection.sendall(b'"' * 1_000_000)


SERVERS = {
    "well": (answer(OK + STATUS), ""),
    "hangs": (hang, "no answer within 1 s"),
    "trickles": (trickle, "no answer within 1 s"),
    "floods": (flood, "it says more than 1,048,576 bytes"),
    "batches": (answer(b"\xff\0\0\0\0\0\0\0\x01\x7f"), "it does not speak HTTP; give the port of --http"),
    "other": (answer(b"HTTP/1.1 404 Not Found\r\n\r\nno"), "it answers 404, not 200"),
    "odd": (answer(b"HTTP/1.1 \x1b[2J\r\n\r\nno"), r"it answers \x1b[2, not 200"),
    "short": (answer(OK + STATUS[:-10]), "what it says is no JSON"),
    "silent": (answer(b""), "it hangs up"),
}


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Return what starts a server that does one thing to each connection, and returns its address."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, act: Callable[[socket.socket], None]) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(10)
                    connection.recv(1 << 16)  # the request, or closing would be a reset
                    act(connection)

    def begin(act: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, act)))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield begin
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_server_that_misbehaves_harms_nobody(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told for what it is, all within one deadline; the one that is well is seen."""
    monkeypatch.setattr(lookout, "_DEADLINE", DEADLINE)
    watch = Lookout(parse_urls([start(act) for act, _ in SERVERS.values()] + ["127.0.0.1:1"]))
    begun = time.monotonic()
    asyncio.run(watch.look())
    assert time.monotonic() - begun < 5 * DEADLINE
    *sights, dead = watch.sights().values()
    for sight, (name, (_, trouble)) in zip(sights, SERVERS.items(), strict=True):
        assert (sight.status is None) == (sight.heard is None) == bool(trouble), name
        assert sight.trouble.startswith(trouble), name
    assert dead.trouble == "Connection refused"


def test_a_server_that_hangs_does_not_delay_the_screen(start: Callable[..., str]) -> None:
    """Others are seen with the next tick, and a server that comes back is."""
    well, hung = start(answer(OK + STATUS)), start(hang)
    watch = Lookout(parse_urls([well, hung]))
    states: list[list[bool]] = []

    async def look() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await watch.watch(0.2, lambda: states.append([bool(s.status) for s in watch.sights().values()]))

    asyncio.run(look())
    assert len(states) > 2
    assert states[-1] == [True, False]


def test_a_name_is_all_its_addresses_whenever_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up again and again, keeps what it had if nothing is found, and prefers IPv4."""
    answers = [[], ["http://10.0.0.1:1"], [], ["http://10.0.0.2:1", "http://[fe80::1]:1", "http://10.0.0.1:1"]]
    seen: list[list[str]] = []
    watch = Lookout(parse_urls(["cpu:1"]))

    def resolve(_url: Url) -> frozenset[str]:
        seen.append([*watch.sights()])
        return frozenset(answers.pop(0) if answers else [])

    monkeypatch.setattr(Url, "resolve", resolve)
    monkeypatch.setattr(lookout, "LOOK_UP_EVERY", 0.01)
    assert [sight.trouble for sight in watch.sights().values()] == ["the name resolves to no address"]
    with watch.looking_up():
        wait_until(lambda: len(seen) > 5, 5, "the name is looked up again and again")
    one, both = ["http://10.0.0.1:1"], ["http://10.0.0.1:1", "http://10.0.0.2:1"]
    assert seen[:6] == [["http://cpu:1"], ["http://cpu:1"], one, one, both, both]


def test_an_address_that_no_name_has_any_more_is_forgotten() -> None:
    """Or a lookout before servers that come and go, with new addresses each time, would remember them all."""
    (url,) = parse_urls(["127.0.0.1:1"])
    watch = Lookout([url])
    for endpoint in ("http://127.0.0.1:1", "http://127.0.0.2:1"):
        watch._resolved = {url: frozenset({endpoint})}
        asyncio.run(watch.look())
        assert [*watch._sights] == [endpoint]


@pytest.mark.parametrize(
    ("patterns", "urls"),
    [
        (["http://cpu-{0..1}:9880"], ["http://cpu-0:9880", "http://cpu-1:9880"]),
        (["127.0.0.1:1", "http://127.0.0.1:1/", "[::1]:2"], ["http://127.0.0.1:1", "http://[::1]:2"]),
    ],
)
def test_urls_are_read_as_elsewhere(patterns: list[str], urls: list[str]) -> None:
    """With braces, each once; the scheme may be left out."""
    assert [url.text for url in parse_urls(patterns)] == urls


@pytest.mark.parametrize(
    "text",
    ["cpu", "cpu:0", "cpu:65536", "cpu:x", ":1", "tcp://cpu:1", "https://cpu:1", "a@b:1", "cpu:1/metrics", "[::1:1"],
)
def test_what_is_no_url_of_a_page_is_refused(text: str) -> None:
    """It is named, with what is expected."""
    with pytest.raises(UsageError, match="expected http://HOST:PORT") as caught:
        parse_urls([text])
    assert repr(text) in str(caught.value)


def test_too_many_servers_are_a_slip() -> None:
    """Rather than a million connections."""
    with pytest.raises(UsageError, match=r"^2,000 servers, of at most 1,000"):
        parse_urls(["cpu-{1..2000}:1"])
