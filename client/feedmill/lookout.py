"""The lookout: asks servers how they are, over and over, and knows what each said last.

The rule of this file: a server that is dead, hangs, trickles or talks without end costs itself its line, and the others
nothing. So each answer has a deadline and a limit, and nobody waits for another's, unless a hundred hang at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from feedmill_protocol import braces
from feedmill_protocol.errors import FeedmillError, ProtocolError, ServerUnavailable, UsageError
from feedmill_protocol.printing import printable

from .addresses import LOOK_UP_EVERY, Url
from .statuses import BYTES, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .statuses import Status

__all__ = ["Lookout", "Sight", "parse_urls"]

SERVERS: Final = 1000
"""More URLs are a slip in a brace: nobody reads so many lines."""

_DEADLINE: Final = 4.0
"""Seconds for connecting, asking and being answered; a server takes milliseconds, and gives up after 5 s."""

_PATIENCE: Final = 0.5
"""Seconds that a screen waits for answers before it shows what there is."""

_AT_ONCE: Final = 100
"""Connections: far fewer than a process may have descriptors."""

_CHUNK: Final = 65536
"""Bytes that are read at a time."""


def parse_urls(patterns: Sequence[str]) -> tuple[Url, ...]:
    """Read ``http://HOST:PORT`` or ``HOST:PORT``, with braces. Raises UsageError."""
    urls = tuple(dict.fromkeys(_url(text) for pattern in patterns for text in braces.expand(pattern)))
    if len(urls) > SERVERS:
        raise UsageError(f"{len(urls):,} servers, of at most {SERVERS:,} that can be watched; check the braces")
    return urls


def _url(text: str) -> Url:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:  # a port that is none, or brackets that do not match
        parts, host, port = urlsplit(""), "", 0
    if parts.scheme != "http" or not host or not port or parts.username or parts.path.strip("/") or parts.query:
        raise UsageError(f"{text!r}: expected http://HOST:PORT, as 'feedmill serve --http' says it")
    return Url(f"http://{f'[{host}]' if ':' in host else host}:{port}", host, port)


def _one_family(endpoints: frozenset[str]) -> frozenset[str]:
    """Leave out IPv6 where there is IPv4: a server that has both, as localhost has, is one server."""
    return frozenset(endpoint for endpoint in endpoints if "[" not in endpoint) or endpoints


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a server: the ``status`` that it just gave, or the ``trouble`` with getting it.

    It was ``heard`` at a time (of time.monotonic()), None if never.
    """

    status: Status | None = None
    trouble: str = "asking"
    heard: float | None = None


class Lookout:
    """Asks the servers behind some URLs. A name with several addresses is several servers."""

    def __init__(self, urls: Sequence[Url]) -> None:
        self._urls = urls
        self._resolved = {url: url.resolve() for url in urls if url.fixed}
        self._sights: dict[str, Sight] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    @contextmanager
    def looking_up(self) -> Iterator[None]:
        """Look names up, again and again, in a thread of its own: a resolver takes as long as it likes."""
        names = [url for url in self._urls if not url.fixed]
        ended, found = threading.Event(), threading.Event()

        def look_up() -> None:
            while not ended.is_set():
                # A name that resolves to nothing any more keeps what it had.
                addresses = {url: _one_family(endpoints) for url in names if (endpoints := url.resolve())}
                self._resolved = self._resolved | addresses  # a new one: another thread may be reading the old
                found.set()
                ended.wait(LOOK_UP_EVERY)

        if names:
            threading.Thread(target=look_up, name="feedmill-names", daemon=True).start()
            found.wait(_DEADLINE)
        try:
            yield
        finally:
            ended.set()

    def sights(self) -> dict[str, Sight]:
        """Return what is known of each server, in the order of the URLs."""
        known = {}
        for url in self._urls:
            for endpoint in sorted(self._resolved.get(url, ())):
                known[endpoint] = self._sights.get(endpoint, Sight())
            if url not in self._resolved:
                known[url.text] = Sight(trouble="the name resolves to no address")
        return known

    async def look(self) -> None:
        """Ask all servers once, and wait for all of them."""
        self._ask()
        while self._asking:
            await asyncio.wait([*self._asking.values()])

    async def watch(self, every: float, tick: Callable[[], None]) -> None:
        """Ask all servers every so many seconds, without end, and call ``tick`` when they have had time to answer."""
        while True:
            begun = time.monotonic()
            self._ask()
            if self._asking:
                await asyncio.wait([*self._asking.values()], timeout=min(every, _PATIENCE))
            tick()
            await asyncio.sleep(begun + every - time.monotonic())

    def _ask(self) -> None:
        """Ask those that are not being asked already; forget those that no name has any more."""
        endpoints = frozenset[str]().union(*self._resolved.values())
        self._sights = {endpoint: sight for endpoint, sight in self._sights.items() if endpoint in endpoints}
        for endpoint in endpoints - self._asking.keys():
            task = asyncio.create_task(self._look(endpoint))
            self._asking[endpoint] = task
            task.add_done_callback(lambda _, endpoint=endpoint: self._asking.pop(endpoint))  # type: ignore[misc]

    async def _look(self, endpoint: str) -> None:
        try:
            async with self._places:
                status = parse(await _fetch(endpoint))
        except FeedmillError as error:
            before = self._sights.get(endpoint, Sight())
            self._sights[endpoint] = Sight(None, str(error), before.heard)
        else:
            self._sights[endpoint] = Sight(status, "", time.monotonic())


async def _fetch(endpoint: str) -> bytes:
    """Return the body of a server's status. Raises ServerUnavailable and ProtocolError."""
    address = urlsplit(endpoint)
    try:
        async with asyncio.timeout(_DEADLINE):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(f"GET /status.json HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
                answer = await _read(reader)
            finally:
                writer.transport.abort()  # it may have more to say
    except TimeoutError:
        raise ServerUnavailable(f"no answer within {_DEADLINE:g} s") from None
    except OSError as error:
        raise ServerUnavailable(os.strerror(error.errno) if error.errno else str(error)) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    code = head[len("HTTP/1.1 ") :][:3].decode(errors="replace")
    if code != "200":
        raise ProtocolError(f"it answers {printable(code)}, not 200; is this a feedmill server's --http?")
    return body


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return all that comes. Raises ProtocolError for what is no HTTP, at once, and for too much."""
    answer = b""
    while data := await reader.read(_CHUNK):
        answer += data
        if not answer.startswith(b"HTTP/1."[: len(answer)]):
            raise ProtocolError("it does not speak HTTP; give the port of --http, not that of batches")
        if len(answer) > BYTES:
            raise ProtocolError(f"it says more than {BYTES:,} bytes; is this a feedmill server's --http?")
    if not answer:
        raise ProtocolError("it hangs up; is this a feedmill server's --http?")
    return answer
