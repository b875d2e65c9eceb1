from typing import Any, NoReturn

import pytest

import feedmill
from feedmill import feed
from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError

URL = "tcp://127.0.0.1:7880"


@pytest.fixture(autouse=True)
def _no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections fail: what is wrong is said before anybody is asked."""

    def connection(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(feed, "Connection", connection)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"order": "random"}, "^order='random': expected 'plan' or 'arrival'$"),
        ({"order": None}, "^order=None: expected 'plan' or 'arrival'$"),
        ({"on_error": "ignore"}, "^on_error='ignore': expected 'raise' or 'skip'$"),
        ({"rank": 0}, "^rank=0, world_size=None: give both or neither$"),
        ({"world_size": 2}, "^rank=None, world_size=2: give both or neither$"),
        ({"timeout": 0}, "^timeout=0: expected a positive number of seconds$"),
        ({"timeout": -1.5}, "^timeout=-1.5: expected"),
        ({"timeout": float("nan")}, "^timeout=nan: expected"),
        ({"prefetch": 0}, "^prefetch=0: expected an integer in 1..256$"),
        ({"prefetch": limits.OUTSTANDING + 1}, "^prefetch=257: expected"),
        ({"prefetch": 2.0}, "^prefetch=2.0: expected"),
        ({"prefetch": True}, "^prefetch=True: expected"),
        ({"device": "banana"}, "^device='banana': "),
        ({"url": "127.0.0.1:7880"}, "^'127.0.0.1:7880': expected tcp://HOST:PORT or ipc://PATH, for example"),
        ({"url": []}, "^no server was named"),
        ({"url": "tcp://{a:1"}, "braces that do not match"),
    ],
)
def test_arguments_that_cannot_work_are_errors_of_usage(arguments: dict[str, Any], says: str) -> None:
    """Each names the argument, its value, and what is expected."""
    with pytest.raises(UsageError, match=says):
        feedmill.connect(**{"url": URL} | arguments)


def test_good_arguments_open_a_connection() -> None:
    """The other end of the tests above: nothing but the stub stops these."""
    with pytest.raises(AssertionError, match="a connection was opened"):
        feedmill.connect(
            ["tcp://cpu-{0..3}:7880", URL],
            "train",
            rank=1,
            world_size=2,
            order="arrival",
            on_error="skip",
            prefetch=limits.OUTSTANDING,
            timeout=0.5,
        )
