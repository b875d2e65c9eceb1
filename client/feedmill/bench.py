"""``feedmill bench``: how fast batches arrive, and what that costs the trainer's process.

The measurement asks for one batch after the other and does nothing with it, so it shows the most that these servers,
this network and this machine can give. `measure` takes its clocks as arguments and prints nothing.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from feedmill_protocol.errors import UsageError

from . import connect
from .sources import endless

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

__all__ = ["Report", "add_arguments", "describe", "measure", "run"]

_SECONDS: Final = 10.0
"""Long enough for a p99 of batches that take some 10 ms each."""

_TIMEOUT: Final = 60.0
"""Seconds without progress: as in training."""

_WARMUP: Final = 16
"""Batches not counted: those asked for while connecting, and those that start threads and fill caches."""


class _Batch(Protocol):
    @property
    def epoch(self) -> int: ...


class _Stats(Protocol):
    @property
    def samples(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def waited(self) -> float: ...


class _Feed(Protocol):
    """As much of a `Feed` as is measured."""

    def batches(self) -> Iterable[_Batch]: ...
    def stats(self) -> _Stats: ...


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured. Times are in seconds.

    ``waited`` is the part of ``elapsed`` in which the feed waited for data; the loop around it took the rest. A latency
    is the time from asking for the next batch to having it. ``cpu`` is that of all threads of this process. ``bytes``
    are those of the batches as they came over the wire, ``epochs`` those that they belong to.
    """

    batches: int
    samples: int
    bytes: int
    epochs: int
    elapsed: float
    waited: float
    cpu: float
    latency_p50: float
    latency_p99: float

    @property
    def samples_per_second(self) -> float:
        """Samples that a trainer gets in a second."""
        return self.samples / self.elapsed

    @property
    def bytes_per_second(self) -> float:
        """Payload that the network carries in a second."""
        return self.bytes / self.elapsed

    @property
    def cpu_per_batch(self) -> float:
        """CPU seconds that this process spends on a batch."""
        return self.cpu / self.batches


def measure(
    feed: _Feed,
    *,
    batches: int | None = None,
    seconds: float | None = None,
    warmup: int = _WARMUP,
    clock: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> Report:
    """Iterate over `feed`, through as many epochs as it takes, and report how that went.

    The first `warmup` batches do not count. Ends after `batches`, or with the first batch after `seconds`, whichever
    comes first. Raises `UsageError` where neither is given or an epoch holds no batch; errors of the feed pass through.
    """
    if batches is None and seconds is None:
        raise UsageError("a measurement without an end: give batches= or seconds=")
    if (batches is not None and batches < 1) or (seconds is not None and seconds <= 0) or warmup < 0:
        raise UsageError(f"batches={batches}, seconds={seconds} and warmup={warmup} leave nothing to measure")
    stream = endless(feed)
    for _ in range(warmup):
        next(stream)
    before, cpu_before, started = feed.stats(), cpu(), clock()
    now = started
    epochs: set[int] = set()
    latencies: list[float] = []
    while (batches is None or len(latencies) < batches) and (seconds is None or now - started < seconds):
        asked = clock()
        batch = next(stream)
        now = clock()
        latencies.append(now - asked)
        epochs.add(batch.epoch)
    cpu_spent, after = cpu() - cpu_before, feed.stats()
    p50, p99 = (float(value) for value in np.percentile(latencies, (50, 99)))
    return Report(
        batches=len(latencies),
        samples=after.samples - before.samples,
        bytes=after.bytes - before.bytes,
        epochs=len(epochs),
        elapsed=max(now - started, 1e-9),  # a clock may be too coarse for one batch
        waited=after.waited - before.waited,
        cpu=cpu_spent,
        latency_p50=p50,
        latency_p99=p99,
    )


def describe(report: Report) -> str:
    """Write a report for people, over several lines."""
    elapsed = report.elapsed
    waited = min(report.waited / elapsed, 1.0)
    epochs = "1 epoch" if report.epochs == 1 else f"{report.epochs} epochs"
    whole = f"{report.samples:,} in {report.batches:,} batches of {epochs}, {elapsed:.1f} s"
    return (
        f"samples     {report.samples_per_second:,.0f}/s  ({whole})\n"
        f"data        {report.bytes_per_second / 1e6:,.1f} MB/s\n"
        f"a batch     p50 {report.latency_p50 * 1e3:,.2f} ms, p99 {report.latency_p99 * 1e3:,.2f} ms\n"
        f"client CPU  {report.cpu_per_batch * 1e3:,.2f} ms a batch, {100 * report.cpu / elapsed:.0f} % of a core\n"
        f"time        {100 * waited:.1f} % waiting for data, {100 * (1 - waited):.1f} % in the loop around it"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill bench``."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="a server, as in tcp://cpu-0:7880")
    parser.add_argument("--stream", help="which stream (default: the only one)")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--batches", type=int, metavar="N", help="measure so many batches")
    end.add_argument("--seconds", type=float, metavar="S", help=f"measure so long (default: {_SECONDS:g})")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples in a batch (default: the stream's)")
    parser.add_argument("--prefetch", type=int, metavar="N", help="batches asked for ahead (default: as in training)")
    parser.add_argument("--order", choices=("plan", "arrival"), default="plan", help="default: %(default)s")
    parser.add_argument("--keys", metavar="DIR", help="folder with our keys, for servers that have keys")
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT, metavar="S", help="give up after so long (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    seconds = _SECONDS if args.batches is None and args.seconds is None else args.seconds
    options = {"batch_size": args.batch_size, "prefetch": args.prefetch, "order": args.order, "keys": args.keys}
    with connect(args.urls, args.stream, timeout=args.timeout, **options) as feed:
        report = measure(feed, batches=args.batches, seconds=seconds)
    sys.stdout.write((_as_json(report) if args.json else describe(report)) + "\n")
    return 0


def _as_json(report: Report) -> str:
    rates = {
        "samples_per_second": report.samples_per_second,
        "bytes_per_second": report.bytes_per_second,
        "cpu_per_batch": report.cpu_per_batch,
    }
    return json.dumps({**asdict(report), **rates})
