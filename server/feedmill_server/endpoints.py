"""Where a server listens: what ``bind`` and ``http`` may say.

The rule of this file: nobody beyond this machine is let in unless the user has said so.
"""

import re
from ipaddress import ip_address
from typing import Final

from feedmill_protocol.errors import UsageError

__all__ = ["check_bind", "http_address"]

_PORT: Final = re.compile(r"[0-9]{1,9}")


def check_bind(bind: str, *, insecure: bool) -> None:
    """Check a URL for ZeroMQ. Raises UsageError; unless it is ``insecure``, also for one beyond this machine."""
    scheme, separator, rest = bind.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme == "ipc" and rest:
        return
    if scheme != "tcp" or not separator or not colon or not host or not (port == "*" or _PORT.fullmatch(port)):
        raise UsageError(f"bind={bind!r}: expected tcp://ADDRESS:PORT or ipc://PATH, for example tcp://0.0.0.0:7880")
    _check_port("bind", bind, port)
    if not insecure and not _is_local(host):
        raise UsageError(
            f"bind={bind!r}: anybody who reaches this address could use the server; "
            "listen on 127.0.0.1, give --keys ('feedmill keygen' makes some), "
            "or say --insecure on a network that you trust"
        )


def http_address(http: str, *, insecure: bool) -> tuple[str, int]:
    """Return host and port of ADDRESS:PORT, or of PORT on this machine; port 0 for ``*``.

    Raises UsageError; unless it is ``insecure``, also for one beyond this machine. Keys are no excuse: browsers have
    none.
    """
    host, colon, port = http.rpartition(":")
    if not (port == "*" or _PORT.fullmatch(port)) or (colon and not host):
        raise UsageError(f"http={http!r}: expected PORT or ADDRESS:PORT, for example 9880 or 127.0.0.1:9880")
    _check_port("http", http, port)
    host = host or "127.0.0.1"
    if not insecure and not _is_local(host):
        raise UsageError(
            f"http={http!r}: anybody who reaches this address could look at the server and its pictures; "
            "listen on 127.0.0.1 (and look from elsewhere with 'ssh -L'), or say --insecure on a network that you trust"
        )
    return host.strip("[]"), 0 if port == "*" else int(port)


def _check_port(key: str, value: str, port: str) -> None:
    if port != "*" and not 0 < int(port) < 65536:
        raise UsageError(f"{key}={value!r}: expected a port in 1..65535, or *")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
