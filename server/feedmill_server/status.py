"""What the page shows: a snapshot as JSON, and in one sentence.

The rule of this file: figures are of the last seconds, not since the start, since they are looked at to see what is
wrong now.
"""

from importlib.metadata import version
from itertools import pairwise
from typing import Any, Final

from .snapshot import STAGES, Point, Snapshot

__all__ = ["status", "verdict"]

_LATELY: Final = 20.0
"""Seconds that rates and shares are taken over: several batches even of a slow server."""

_SHOWN: Final = 100
"""Workers and clients that are listed; more are no help to anybody's eye. All are counted."""

_BUSY: Final = 0.85
"""From which share of their time on workers are the limit: handing out and reporting takes some of it."""


def status(seen: Snapshot, server: str) -> dict[str, Any]:
    """Return what the page needs to know, for JSON."""
    tally = seen.tally
    lately, last = _lately(seen), seen.last
    elapsed = max(last.at - lately.at, 1e-9)
    made, batches = last.made - lately.made, last.batches - lately.batches
    spent = dict(zip(STAGES, (b - a for a, b in zip(lately.seconds, last.seconds, strict=True)), strict=True))
    return {
        "server": server,
        "version": version("feedmill"),
        "state": seen.state,
        "verdict": verdict(seen),
        "uptime": round(last.at - seen.begun),
        "samples_per_second": round((last.samples - lately.samples) / elapsed, 1),
        "batches_per_second": round(batches / elapsed, 2),
        "made_per_second": round(made / elapsed, 1),
        "bytes_per_second": round((last.payload - lately.payload) / elapsed),
        "history": [  # seconds ago, samples a second
            [round(last.at - b.at, 1), round((b.samples - a.samples) / (b.at - a.at), 1)]
            for a, b in pairwise(seen.history)
        ],
        "stages": [
            {"stage": stage, "share": round(_share(seen, spent[stage], elapsed), 4), "ms": _each(spent[stage], made)}
            for stage in STAGES[:-1]
        ],
        "send_ms": _each(spent[STAGES[-1]], batches),
        "workforce": seen.workforce,
        "restarts": seen.restarts,
        "workers": [worker._asdict() for worker in seen.workers[:_SHOWN]],
        "workers_in_all": len(seen.workers),
        "workers_busy": sum(worker.is_busy for worker in seen.workers),
        "clients": [client._asdict() for client in seen.clients[:_SHOWN]],
        "clients_in_all": len(seen.clients),
        "queued": seen.queued,
        "memory": seen.memory,
        "memory_limit": seen.memory_limit,
        "batches": tally.batches,
        "samples": tally.samples,
        "bytes": tally.payload,
        "cache_hits": tally.cache_hits,
        "failed": tally.failed,
        "skipped": sum(tally.skipped.values()),
        "bad": [bad._asdict() for bad in reversed(tally.recent.values())],
        "pictures": seen.pictures,
    }


def verdict(seen: Snapshot) -> str:  # noqa: PLR0911 # one return for each thing that may be said
    """Say in one sentence what holds this server up, if anything does."""
    if seen.state == "starting":
        return "Starting: it reads the shards' headers and loads pipelines."
    if seen.state == "draining":
        return "Draining: it finishes what was asked for, and ends."
    if not seen.workers:
        return "There are no workers at the moment; the log says why."
    if not seen.clients:
        return "No trainer is connected."
    lately = _lately(seen)
    elapsed = max(seen.last.at - lately.at, 1e-9)
    unsent = sum(client.unsent for client in seen.clients)
    busy = _share(seen, sum(seen.last.seconds[:-1]) - sum(lately.seconds[:-1]), elapsed)
    if seen.queued and 2 * unsent > seen.memory_limit and busy < _BUSY:
        return (
            f"Batches leave too slowly: {unsent / 1e6:,.0f} MB are on their way, and workers wait for that memory. "
            "Look at the network, and at trainers that do not read."
        )
    if busy >= _BUSY:
        return f"The workers are the limit: busy {_percent(busy)} of the time. If trainers wait, start more servers."
    if seen.last.batches == lately.batches and not seen.queued and busy < 1 - _BUSY:
        return "Trainers are connected, and ask for nothing."
    return f"Trainers set the pace: workers are busy {_percent(busy)} of the time."


def _lately(seen: Snapshot) -> Point:
    """Return the point from which on figures are shown."""
    return next((point for point in seen.history if seen.last.at - point.at <= _LATELY), seen.last)


def _share(seen: Snapshot, seconds: float, elapsed: float) -> float:
    """Return which share of the workers' time these seconds are."""
    return min(1.0, seconds / (elapsed * max(1, len(seen.workers))))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _each(seconds: float, count: int) -> float | None:
    """Return milliseconds for each, None if there was none."""
    return round(1000 * seconds / count, 3) if count else None
