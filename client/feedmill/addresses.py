"""Addresses: from what the user wrote to the endpoints that there are.

``tcp://cpu-{0..3}:7880`` is four URLs; a URL whose host name has several addresses (a compose service, a headless
Kubernetes service) is as many servers.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from feedmill_protocol import braces
from feedmill_protocol.errors import UsageError

__all__ = ["LOOK_UP_EVERY", "Url", "parse"]

LOOK_UP_EVERY: Final = 5.0
"""Seconds between look-ups of host names: how soon a server that was added to a service is found."""


@dataclass(frozen=True, slots=True)
class Url:
    """One URL, ``SCHEME://HOST:PORT``. ``host`` is empty for ``ipc://``."""

    text: str
    host: str = ""
    port: int = 0

    @property
    def fixed(self) -> bool:
        """Whether this URL is an endpoint already, with no name to look up."""
        try:
            return not self.host or bool(ip_address(self.host))
        except ValueError:
            return False

    def resolve(self) -> frozenset[str]:
        """Look up the endpoints that this URL stands for now. May take as long as the resolver likes."""
        if self.fixed:
            return frozenset({self.text})
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # no such name, no name server as of now, or nothing that could be a name
            return frozenset()
        scheme = self.text.partition("://")[0]
        addresses = {str(address[0]) for *_, address in found}
        return frozenset(f"{scheme}://{f'[{a}]' if ':' in a else a}:{self.port}" for a in addresses)


def parse(urls: str | Sequence[str]) -> tuple[Url, ...]:
    """Read a URL or several, with braces. Raises UsageError."""
    given = [urls] if isinstance(urls, str) else urls
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise UsageError(f"url={urls!r}: expected a string like 'tcp://cpu-{{0..3}}:7880', or a list of them")
    parsed = tuple(_parse(text) for pattern in given for text in braces.expand(pattern))
    if not parsed:
        raise UsageError("no server was named; give a URL like 'tcp://cpu-{0..3}:7880'")
    return tuple(dict.fromkeys(parsed))


def _parse(text: str) -> Url:
    scheme, _, rest = text.partition("://")
    if scheme == "ipc" and rest:
        return Url(text)
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if scheme != "tcp" or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r}: expected tcp://HOST:PORT or ipc://PATH, for example tcp://127.0.0.1:7880")
    return Url(text, host, int(port))
