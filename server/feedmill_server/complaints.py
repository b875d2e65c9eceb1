"""Complaints: which of a client's bad messages are worth a line in the log.

A client that is of another protocol, or broken, sends bad messages as fast as it can. The first is logged at once, the
others are counted.
"""

from typing import Final

__all__ = ["Complaints"]

EVERY: Final = 10.0
"""Seconds between two warnings about the same client."""


class Complaints:
    """Who was complained about in the last `EVERY` seconds; others are forgotten."""

    def __init__(self) -> None:
        self._recent: dict[bytes, tuple[float, int]] = {}  # when, and how many bad messages since; the oldest first

    def due(self, client: bytes, now: float) -> int:
        """Take note of a bad message; return how many the client has sent that were not told of, 0 to say nothing."""
        since, untold = self._recent.get(client, (now - EVERY, 0))
        if now - since < EVERY:
            self._recent[client] = since, untold + 1
            return 0
        self._recent.pop(client, None)
        self._recent[client] = now, 0
        for oldest, (at, _) in list(self._recent.items()):
            if now - at < 2 * EVERY:  # a while longer, or its count would be lost
                break
            del self._recent[oldest]
        return untold + 1
