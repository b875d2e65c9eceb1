"""How stages are timed."""

import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["microseconds"]


def microseconds(stage: Callable[..., object], arguments: Iterable[tuple[Any, ...]], repeats: int = 3) -> float:
    """Return the CPU time of one call, in the best of some passes over the arguments: what it costs undisturbed."""
    calls = list(arguments)
    for call in calls[:50]:
        stage(*call)
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        for call in calls:
            stage(*call)
        best = min(best, time.process_time() - started)
    return 1e6 * best / len(calls)
