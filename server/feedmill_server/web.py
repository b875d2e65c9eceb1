"""A web server for a few pages that are always at hand: one thread, GET and HEAD, one request a connection.

The rule of this file: whatever comes to the port, the thread that serves batches does not notice. So connections are
few and short, the oldest goes when there are too many, and they are taken no faster than `_PACE`, so that a flood waits
in the kernel instead of fighting for the interpreter's lock.
"""

import asyncio
import logging
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

from feedmill_protocol.errors import UsageError

__all__ = ["CONNECTIONS", "Response", "Web"]

CONNECTIONS: Final = 32
"""Open at a time. Each is gone in milliseconds, unless somebody means harm."""

_DEADLINE: Final = 5.0
"""Seconds for asking, being answered, and taking the answer."""

_PACE: Final = 0.005
"""Seconds between two connections that are taken: a few browsers and a Prometheus need one a second each."""

_HEAD_BYTES: Final = 8192

_REQUEST: Final = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.[01]\r\n")
_HOST: Final = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)(?::\d+)?[ \t]*\r\n", re.IGNORECASE)

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site may show our pictures
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: ``body`` of a content type, and headers beside the usual ones."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)


class Web:
    """Has ``answer(path)`` answer requests. It listens once it is made, and answers once it is `start`ed.

    Raises UsageError if it cannot listen at ``host`` and ``port``, 0 for any.
    """

    def __init__(self, host: str, port: int, answer: Callable[[str], Awaitable[Response]]) -> None:
        self._answer = answer
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(family, kind)
        except OSError as error:
            raise _deaf(host, port, error) from None
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(CONNECTIONS)
        except OSError as error:
            self._listener.close()
            raise _deaf(host, port, error) from None
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()[:2]
        self._is_local = ip_address(host).is_loopback
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._open: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="feedmill-http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening and answering, at once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        for task in (accepting, *self._open):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(accepting, *self._open, return_exceptions=True))

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, which may pass; or a connection that is gone already
                _log.debug("no connection over HTTP: %s", error)
                await asyncio.sleep(1)
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._converse(connection))
            self._open[task] = None
            task.add_done_callback(self._open.pop)
            if len(self._open) > CONNECTIONS:
                oldest = next(iter(self._open))
                oldest.cancel()
                await asyncio.wait([oldest])
            await asyncio.sleep(_PACE)

    async def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, TimeoutError):
            async with asyncio.timeout(_DEADLINE):
                head = b""
                while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
                    if not (data := await self._loop.sock_recv(connection, _HEAD_BYTES)):
                        return
                    head += data
                await self._loop.sock_sendall(connection, await self._respond(head))
                connection.shutdown(socket.SHUT_WR)

    async def _respond(self, head: bytes) -> bytes:
        request = _REQUEST.match(head)
        if b"\r\n\r\n" not in head or request is None:
            response = Response(HTTPStatus.BAD_REQUEST, b"this is GET and HEAD over HTTP/1.1 only\n")
        elif self._is_local and not _names_us(head):
            response = Response(HTTPStatus.FORBIDDEN, b"ask for localhost, or by an address\n")
        else:
            response = await self._answer(request[2].decode().partition("?")[0])
        headers = {
            **_HEADERS,
            **response.headers,
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
        }
        status = response.status
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        body = b"" if request and request[1] == b"HEAD" else response.body
        return "\r\n".join([*lines, "", ""]).encode() + body


def _names_us(head: bytes) -> bool:
    """Tell whether a browser means this machine. A site may have its own name lead here, to read what is for us."""
    if not (host := _HOST.search(head)):
        return True  # no browser
    name = host[1].decode(errors="replace").strip("[]")
    try:
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _deaf(host: str, port: int, error: OSError) -> UsageError:
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return UsageError(f"cannot listen on http://{host}:{port}: {reason}; choose another with --http")
