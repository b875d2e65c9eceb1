"""Arguments of the caller's: what is checked in the same way wherever it is given."""

import math
from operator import index
from typing import Any, Final

from .errors import UsageError

__all__ = ["DAY", "integer", "seconds"]

DAY: Final = 86_400
"""Seconds: the longest that an option may say. Nobody means longer, and the system's clocks take no infinity."""


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return an argument as an int, whatever integer it is (NumPy's too). Raises UsageError unless in low..high.

    Booleans, floats and strings are no integers.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UsageError(f"{name}={value!r}: expected an integer in {low}..{high}")
    return number


def seconds(name: str, value: Any, most: float = math.inf) -> float:
    """Return an argument that is a time. Raises UsageError unless it is a positive, finite number up to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most or math.isinf(value):
        limit = "" if math.isinf(most) else f", {most:,g} at most"
        raise UsageError(f"{name}={value!r}: expected a positive number of seconds{limit}")
    return value
