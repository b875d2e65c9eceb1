"""The paths that a server answers over HTTP: the page, what the page asks for, metrics and health."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from .contact import Strip, draw
from .metrics import CONTENT_TYPE, Metrics
from .observer import Observer
from .status import status
from .web import Response

__all__ = ["Page"]

_ALIVE: Final = 5.0
"""Seconds since the last look after which a server is not well: it looks twice a second, whatever it does."""

_DEVELOP: Final = 1.0
"""Seconds that a picture is waited for: the server looks twice in it."""


class Page:
    """Answers for a server by name, from what an observer has seen."""

    def __init__(self, server: str, observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._observer = observer
        self._clock = clock
        self._metrics = Metrics(server, lambda: observer.snapshot)
        self._html = files(__package__).joinpath("page.html").read_bytes()
        self._policy = _policy(self._html.decode())
        self._drawn: tuple[Strip, bytes] | None = None

    async def answer(self, path: str) -> Response:  # noqa: PLR0911 # one return for each path
        """Return what is at a path."""
        match path:
            case "/":
                headers = {"Content-Security-Policy": self._policy}
                return Response(HTTPStatus.OK, self._html, "text/html; charset=utf-8", headers)
            case "/status.json":
                seen = json.dumps(status(self._observer.snapshot, self._server), separators=(",", ":"))
                return Response(HTTPStatus.OK, seen.encode(), "application/json")
            case "/newest.jpg":
                return await self._picture()
            case "/metrics":
                return Response(HTTPStatus.OK, self._metrics.render(), CONTENT_TYPE)
            case "/healthz":
                return _health(self._ailment())
            case "/readyz":
                return _health(self._ailment() or self._hindrance())
        return Response(HTTPStatus.NOT_FOUND, b"there is /, /status.json, /newest.jpg, /metrics, /healthz, /readyz\n")

    async def _picture(self) -> Response:
        before, deadline = self._observer.strip, self._clock() + _DEVELOP
        self._observer.want_strip()
        # The server's thread does not wait for us, nor does it know of asyncio.
        while self._observer.strip is before and self._clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_DEVELOP / 20)
        if (strip := self._observer.strip) is None:
            return Response(HTTPStatus.NOT_FOUND, b"no batch with pictures has been made, or it is gone already\n")
        if self._drawn is None or self._drawn[0] is not strip:
            self._drawn = strip, draw(strip)
        return Response(HTTPStatus.OK, self._drawn[1], "image/jpeg")

    def _ailment(self) -> str:
        """Say what is wrong with the server's thread. One that starts is at things that may take as long as they do."""
        seen = self._observer.snapshot
        silent = self._clock() - seen.at
        if seen.state != "starting" and silent > _ALIVE:
            return f"the server's thread has not come round for {silent:.0f} s"
        return ""

    def _hindrance(self) -> str:
        """Say why no requests should come here now."""
        seen = self._observer.snapshot
        if seen.is_ready:
            return ""
        return "there are no workers" if seen.state == "serving" else seen.state


def _health(complaint: str) -> Response:
    if complaint:
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, f"{complaint}\n".encode())
    return Response(HTTPStatus.OK, b"ok\n")


def _policy(html: str) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, by their digests, and its own server."""
    script, style = (
        base64.b64encode(hashlib.sha256(re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0].encode()).digest())
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script.decode()}'; style-src 'sha256-{style.decode()}'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
