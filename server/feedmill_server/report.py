"""What the log says of the rate."""

import logging
from typing import Final

from .broker import Broker
from .slots import Slot

__all__ = ["Report"]

_EVERY: Final = 10.0
"""Seconds between lines in the log that say how fast it goes, while it goes."""

_log = logging.getLogger(__name__)


class Report:
    """Reads a broker's tally now and then, and says what has become of it since."""

    def __init__(self, broker: Broker[Slot], now: float) -> None:
        self._broker = broker
        self._since = now
        self._batches = self._samples = 0

    def tick(self, now: float) -> None:
        """Say how fast it goes, if that is due and anything was sent."""
        tally, elapsed = self._broker.tally, now - self._since
        if elapsed < _EVERY:
            return
        batches, samples = tally.batches - self._batches, tally.samples - self._samples
        if batches:
            _log.info(
                "%d batches in %.0f s: %.0f samples/s; %d clients, %d parts queued",
                batches,
                elapsed,
                samples / elapsed,
                self._broker.clients,
                self._broker.queued,
            )
        self._since, self._batches, self._samples = now, tally.batches, tally.samples

    def total(self) -> str:
        """Return what was sent in all."""
        return f"{self._broker.tally.batches} batches, {self._broker.tally.samples} samples sent"
