"""What a worker does to a sample, one after the other, and who is told how long each took."""

from collections.abc import Callable
from enum import IntEnum
from typing import TypeAlias

__all__ = ["Lap", "Phase", "untimed"]


class Phase(IntEnum):
    """Reading includes opening the shard, and inflating it if need be; transforming ends with the row written."""

    READ = 0
    DECODE = 1
    TRANSFORM = 2


Lap: TypeAlias = Callable[[Phase], object]
"""Is called when a phase is over: it took the time since the last call, or since the sample was begun."""


def untimed(_: Phase) -> None:
    """Take no time."""
