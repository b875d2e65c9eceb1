"""How much a stream has carried, and how fast."""

import math
import time
from collections.abc import Callable

__all__ = ["Rates"]


class Rates:
    """What has been sent or received so far: ``messages``, ``samples``, ``bytes``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.messages = self.samples = self.bytes = 0
        self._clock = clock
        self._begun = math.inf

    def add(self, samples: int, nbytes: int) -> None:
        """Count one message."""
        self._begun = min(self._begun, self._clock())
        self.messages += 1
        self.samples += samples
        self.bytes += nbytes

    def summary(self) -> str:
        """Say in words how much that is, and how much in a second: since the first message, without it."""
        share = (1 - 1 / max(self.messages, 1)) / max(self._clock() - self._begun, 1e-9)
        return (
            f"{self.messages:,} batches, {self.messages * share:,.1f}/s; "
            f"{self.samples * share:,.0f} samples/s; {self.bytes * share / 1e6:,.1f} MB/s"
        )
