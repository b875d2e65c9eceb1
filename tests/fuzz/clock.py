"""A clock that the fuzzed conversations set by hand, in the place of the real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

__all__ = ["CLOCK", "clock"]


class _Clock:
    """What the modules that are fuzzed use of `time`."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


CLOCK: Final = _Clock()


@contextmanager
def clock() -> Iterator[None]:
    """Have connections and servers read `CLOCK`."""
    with mock.patch("feedmill.connection.time", CLOCK), mock.patch("feedmill_server.server.time", CLOCK):
        yield
