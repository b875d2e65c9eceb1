"""Tensorcom's URLs, as tensorcom reads them."""

import pytest
import tensorcom.zcom
import zmq

from feedmill.zurl import SCHEMES, is_zurl, parse
from feedmill_protocol.errors import UsageError

KINDS = {"push": zmq.PUSH, "pull": zmq.PULL, "pub": zmq.PUB, "sub": zmq.SUB}


def test_schemes_mean_what_they_mean_in_tensorcom() -> None:
    """Kind of socket, and whether it binds."""
    assert {name: (KINDS[kind], bind) for name, (kind, bind) in SCHEMES.items()} == tensorcom.zcom.schemes


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("zsub://cpu-0:7880", "tcp://cpu-0:7880"),
        ("zsub+tcp://[::1]:1", "tcp://[::1]:1"),
        ("zpub://*:*", "tcp://*:*"),
        ("zpush+ipc://path", "ipc://path"),
        ("zpush+ipc:///run/a/b", "ipc:///run/a/b"),
    ],
)
def test_endpoints_are_libzmqs(text: str, endpoint: str) -> None:
    """Over TCP unless the scheme says otherwise."""
    (url,) = parse(text)
    assert (url.text, url.endpoint) == (text, endpoint)
    assert is_zurl(text)


def test_braces_and_lists_are_several() -> None:
    """Repeated ones count once; braces may be left alone."""
    urls = parse(["zsub://a:788{0..1}", "zsub://b:1", "zsub://b:1"])
    assert [url.endpoint for url in urls] == ["tcp://a:7880", "tcp://a:7881", "tcp://b:1"]
    assert parse("zsub+ipc:///a{b}", expand=False)[0].endpoint == "ipc:///a{b}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no URL was given"),
        (7880, "expected a string like"),
        ([b"zsub://a:1"], "expected a string like"),
        ("tcp://a:1", "expected one of zpush, zpull"),
        ("zsub", "expected zsub://HOST:PORT"),
        ("zsub://a", "expected zsub://HOST:PORT"),
        ("zsub://:1", "expected zsub://HOST:PORT"),
        ("zsub://a:0", "expected zsub://HOST:PORT"),
        ("zsub://a:65536", "expected zsub://HOST:PORT"),
        ("zsub://a:\u0664", "expected zsub://HOST:PORT"),
        ("zsub://a:*", "expected zsub://HOST:PORT"),
        ("zsub+ipc://", "expected a path"),
        ("zsub+inproc://a", "with \\+ipc"),
        (["zsub://a:1", "zpull://a:1"], "'zsub://a:1' and 'zpull://a:1' are sockets of two kinds, sub and pull"),
    ],
)
def test_what_is_no_such_url_is_refused(given: object, says: str) -> None:
    """The message names it, and what would do."""
    with pytest.raises(UsageError, match=says):
        parse(given)  # type: ignore[arg-type]


def test_a_feeds_urls_are_not_tensorcoms() -> None:
    """For commands that take both."""
    assert not is_zurl("tcp://a:1")
    assert not is_zurl("zsub")
