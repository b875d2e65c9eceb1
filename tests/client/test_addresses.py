import socket
from typing import Any

import pytest

from feedmill.addresses import Url, parse
from feedmill_protocol.errors import UsageError


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replace the resolver by a dict from names to addresses."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: int, *, type: int) -> list[Any]:  # noqa: A002
        assert type == socket.SOCK_STREAM
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_a_url_has_a_host_and_a_port() -> None:
    """Names, addresses of both families, and files."""
    assert parse("tcp://cpu-0:7880") == (Url("tcp://cpu-0:7880", "cpu-0", 7880),)
    assert parse("tcp://10.0.0.1:1") == (Url("tcp://10.0.0.1:1", "10.0.0.1", 1),)
    assert parse("tcp://[fe80::1]:65535") == (Url("tcp://[fe80::1]:65535", "fe80::1", 65535),)
    assert parse("ipc:///run/feedmill.sock") == (Url("ipc:///run/feedmill.sock"),)


def test_braces_stand_for_several_urls() -> None:
    """In hosts and in ports."""
    texts = [url.text for url in parse("tcp://cpu-{08..10}:{1,2}")]
    assert texts == [f"tcp://cpu-{host}:{port}" for host in ("08", "09", "10") for port in (1, 2)]


def test_urls_may_be_given_as_a_list() -> None:
    """In its order, each once."""
    texts = [url.text for url in parse(["tcp://b:1", "tcp://{a,b}:1", "ipc://x"])]
    assert texts == ["tcp://b:1", "tcp://a:1", "ipc://x"]


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:7880", "tcp://[::1]:7880", "ipc:///run/feedmill.sock"])
def test_an_address_needs_no_name_service(names: dict[str, list[str]], text: str) -> None:
    """It is its own endpoint."""
    (url,) = parse(text)
    assert url.fixed
    assert url.resolve() == {text}


def test_a_name_is_as_many_endpoints_as_it_has_addresses(names: dict[str, list[str]]) -> None:
    """Looked up anew each time; an address that comes twice counts once."""
    (url,) = parse("tcp://feedmill:7880")
    assert not url.fixed
    names["feedmill"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "fd00::3"]
    assert url.resolve() == {"tcp://10.0.0.1:7880", "tcp://10.0.0.2:7880", "tcp://[fd00::3]:7880"}
    names["feedmill"] = ["10.0.0.9"]
    assert url.resolve() == {"tcp://10.0.0.9:7880"}


def test_a_name_that_does_not_resolve_has_no_endpoints(names: dict[str, list[str]]) -> None:
    """As of now: it may later."""
    (url,) = parse("tcp://feedmill:7880")
    assert url.resolve() == frozenset()


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_what_can_be_no_name_does_not_resolve(host: str) -> None:
    """Python's resolver refuses it before it asks anybody."""
    (url,) = parse(f"tcp://{host}:1")
    assert url.resolve() == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu-0",
        "cpu-0:7880",
        "tcp://cpu-0",
        "tcp://:7880",
        "tcp://cpu-0:",
        "tcp://cpu-0:x",
        "tcp://cpu-0:-1",
        "tcp://cpu-0:0",
        "tcp://cpu-0:65536",
        "tcp://",
        "ipc://",
        "udp://cpu-0:7880",
        "http://cpu-0:7880",
    ],
)
def test_what_is_no_url_is_an_error_of_usage(text: str) -> None:
    """It shows what was given and how a URL is written."""
    with pytest.raises(UsageError) as caught:
        parse(["tcp://good:1", text])
    assert str(caught.value) == (f"{text!r}: expected tcp://HOST:PORT or ipc://PATH, for example tcp://127.0.0.1:7880")


def test_no_url_at_all_is_an_error_of_usage() -> None:
    """An empty list names nobody."""
    with pytest.raises(UsageError, match=r"^no server was named; give a URL like 'tcp://cpu-\{0..3\}:7880'$"):
        parse([])


def test_wrong_braces_are_an_error_of_usage() -> None:
    """They are not taken for part of a name."""
    with pytest.raises(UsageError, match="braces that do not match"):
        parse("tcp://cpu-{0-3}:7880")
