import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus

import pytest

from feedmill_protocol.errors import UsageError
from feedmill_server import web as web_module
from feedmill_server.web import CONNECTIONS, Response, Web
from integration.processes import wait_until

LARGE = b"x" * 8_000_000
"""More than the kernel takes for a client that does not read."""


async def _answer(path: str) -> Response:
    if path == "/large":
        return Response(HTTPStatus.OK, LARGE)
    return Response(HTTPStatus.OK, path.encode(), headers={"X-Test": "yes"})


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web("127.0.0.1", 0, _answer)
    made.start()
    yield made
    made.close()
    assert not made._thread.is_alive()


@pytest.fixture
def port(web: Web) -> int:
    return int(web.url.rstrip("/").rpartition(":")[2])


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())


def raw(port: int, data: bytes) -> bytes:
    """Send bytes; return all that comes back until the other side hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while received := connection.recv(65536):
            answer += received
        return answer


def test_a_path_is_answered_without_what_follows_a_question_mark(port: int) -> None:
    """With its own headers and the usual ones."""
    status, body, headers = ask(port, "/a/b?c=d")
    assert (status, body) == (200, b"/a/b")
    assert headers["X-Test"] == "yes"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(port, "/large")[1] == LARGE


def test_head_gets_the_headers_alone(port: int) -> None:
    """Load balancers ask so."""
    status, body, headers = ask(port, "/a", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "2")


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET x HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01 TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 8192,
    ],
    ids=["method", "version", "path", "control", "tls", "long"],
)
def test_what_is_no_request_is_refused(port: int, data: bytes) -> None:
    """With a status, and without an end of the server."""
    assert raw(port, data).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(port)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:9880", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("evil.example:9880", 403)],
)
def test_a_browser_that_was_led_here_by_a_sites_own_name_gets_nothing(port: int, host: str, status: int) -> None:
    """Its scripts would be allowed to read the answer."""
    assert ask(port, Host=host)[0] == status


def test_who_does_not_ask_or_does_not_read_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over, however often a byte is sent meanwhile; others are answered in between."""
    monkeypatch.setattr(web_module, "_DEADLINE", 0.5)
    with ExitStack() as stack:
        slow, deaf = (stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(2))
        deaf.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        begun = time.monotonic()

        def drip() -> None:
            while time.monotonic() < begun + 5:
                slow.sendall(b"G")
                assert ask(port)[0] == 200

        with pytest.raises(ConnectionError):
            drip()
        assert time.monotonic() - begun < 2.5
        received = 0
        while data := deaf.recv(1 << 20):
            received += len(data)
        assert received < len(LARGE)


def test_the_oldest_connection_goes_when_there_are_too_many(web: Web, port: int) -> None:
    """So there is always room for one that asks; and never more than the limit."""
    with ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            for _ in range(CONNECTIONS + 10)
        ]
        assert ask(port)[0] == 200
        assert len(web._open) <= CONNECTIONS
        assert [connection.recv(1) for connection in idle[:10]] == [b""] * 10


def test_a_flood_is_taken_at_a_walk(port: int) -> None:
    """What is more than 200 requests a second waits in the kernel."""
    begun, asked = time.monotonic(), 60
    threads = [threading.Thread(target=lambda: [ask(port) for _ in range(asked // 6)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - begun >= asked * 0.005


def test_a_port_that_is_taken_or_an_address_that_is_elsewhere_is_an_error(port: int) -> None:
    """It names the address, and the option."""
    with pytest.raises(UsageError, match=f"^cannot listen on http://127.0.0.1:{port}: .*in use; .* with --http$"):
        Web("127.0.0.1", port, _answer)
    with pytest.raises(
        UsageError, match=r"^cannot listen on http://192\.0\.2\.1:9880: Cannot assign requested address;"
    ):
        Web("192.0.2.1", 9880, _answer)


def test_a_server_that_is_closed_answers_nobody_and_may_be_closed_again(web: Web, port: int) -> None:
    """Connections that stand are cut."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        wait_until(lambda: web._open, 5, "the connection was taken")
        web.close()
        assert connection.recv(1) == b""
    web.close()
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_one_that_never_started_can_be_closed() -> None:
    """Preparing a server may fail in between."""
    Web("127.0.0.1", 0, _answer).close()
