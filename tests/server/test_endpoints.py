import pytest

from feedmill_protocol.errors import UsageError
from feedmill_server.endpoints import http_address


@pytest.mark.parametrize(
    ("http", "address"),
    [
        ("9880", ("127.0.0.1", 9880)),
        ("*", ("127.0.0.1", 0)),
        ("localhost:80", ("localhost", 80)),
        ("127.0.0.2:65535", ("127.0.0.2", 65535)),
        ("[::1]:9880", ("::1", 9880)),
    ],
)
def test_a_port_alone_means_this_machine(http: str, address: tuple[str, int]) -> None:
    """An address goes before it; * is any port."""
    assert http_address(http, insecure=False) == address


@pytest.mark.parametrize("http", ["0.0.0.0:9880", "10.0.0.1:9880", "[::]:9880", "somewhere:9880", "*:9880"])
def test_nobody_beyond_this_machine_looks_on_unless_that_is_said(http: str) -> None:
    """Nor does one who has keys for batches: a browser has none."""
    with pytest.raises(UsageError, match=r"^http='.*': anybody who reaches this address could look .* say --insecure"):
        http_address(http, insecure=False)
    assert http_address(http, insecure=True)[1] == 9880


@pytest.mark.parametrize(
    "http", ["x", ":9880", "127.0.0.1:", "127.0.0.1", "http://127.0.0.1:9880/", "0", "65536", "-1"]
)
def test_what_is_no_address_is_refused_by_name(http: str) -> None:
    """The error says what would be one."""
    with pytest.raises(UsageError, match=r"^http='.*': expected (PORT or ADDRESS:PORT|a port in 1\.\.65535)"):
        http_address(http, insecure=True)
