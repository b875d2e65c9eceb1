"""Tensorcom's URLs: which kind of socket, whether it binds or connects, and where.

``zpub://cpu-0:7880`` publishes there, ``zsub://cpu-0:7880`` subscribes; ``zpush`` and ``zpull`` deal out what is sent.
Of each pair one binds, and the other connects; in ``zrpub zrsub zrpush zrpull`` it is the other way around. ``+ipc``
after that means a socket in the file system: ``zpush+ipc:///run/batches``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from feedmill_protocol import braces
from feedmill_protocol.errors import UsageError

__all__ = ["SCHEMES", "Kind", "Zurl", "is_zurl", "parse"]

Kind: TypeAlias = Literal["push", "pull", "pub", "sub"]

SCHEMES: Final[dict[str, tuple[Kind, bool]]] = {
    "zpush": ("push", False),
    "zpull": ("pull", True),
    "zpub": ("pub", True),
    "zsub": ("sub", False),
    "zrpush": ("push", True),
    "zrpull": ("pull", False),
    "zrpub": ("pub", False),
    "zrsub": ("sub", True),
}
"""Kind of socket, and whether it binds. Those that carry on a word with "r" have the ends reversed."""


@dataclass(frozen=True, slots=True)
class Zurl:
    """One URL: its ``text``, and the ``endpoint`` that libzmq binds or connects to."""

    text: str
    kind: Kind
    bind: bool
    endpoint: str

    @property
    def sends(self) -> bool:
        """Whether this end sends."""
        return self.kind in {"push", "pub"}


def is_zurl(text: str) -> bool:
    """Tell whether a URL is one of tensorcom's, by its scheme."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.partition("+")[0] in SCHEMES


def parse(urls: str | Sequence[str], *, expand: bool = True) -> tuple[Zurl, ...]:
    """Read a URL or several of one kind, with braces unless ``expand`` is False. Raises UsageError."""
    given = [urls] if isinstance(urls, str) else urls
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise UsageError(f"url={urls!r}: expected a string like 'zsub://cpu-0:788{{0..3}}', or a list of them")
    texts = [text for pattern in given for text in (braces.expand(pattern) if expand else [pattern])]
    parsed = tuple(map(_parse, dict.fromkeys(texts)))
    if not parsed:
        raise UsageError("no URL was given; give one like 'zsub://cpu-0:7880'")
    for other in parsed[1:]:
        if other.kind != parsed[0].kind:
            raise UsageError(
                f"{parsed[0].text!r} and {other.text!r} are sockets of two kinds, {parsed[0].kind} and {other.kind}; "
                "open a connection for each"
            )
    return parsed


def _parse(text: str) -> Zurl:
    scheme, _, rest = text.partition("://")
    name, _, transport = scheme.partition("+")
    kind, bind = SCHEMES.get(name, (None, False))
    if kind is None or transport not in {"", "tcp", "ipc"}:
        raise UsageError(f"{text!r}: expected one of {', '.join(SCHEMES)}, or one of these with +ipc, and ://")
    if transport == "ipc":
        if not rest:
            raise UsageError(f"{text!r}: expected a path after ://")
        return Zurl(text, kind, bind, f"ipc://{rest}")
    host, _, port = rest.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    if not host or not (0 < number < 65536 or (bind and port == "*")):
        raise UsageError(f"{text!r}: expected {scheme}://HOST:PORT, for example {scheme}://127.0.0.1:7880")
    return Zurl(text, kind, bind, f"tcp://{rest}")
