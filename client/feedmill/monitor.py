"""``feedmill monitor``: how fast batches come just now, and from which servers.

The main thread takes batches, as a trainer would; another shows once in a while what the `Meter` reads, so that a
stream that has come to a halt is seen to.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from feedmill_protocol.arguments import DAY, seconds
from feedmill_protocol.errors import UsageError

from .meter import Arrival, Meter
from .sources import add_source_arguments, open_source

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from .meter import Rates, Reading
    from .sources import Source

__all__ = ["add_arguments", "run", "table"]

_SECONDS: Final = 5.0
"""Long enough for a p99 that means something, short enough to see a change."""

_EVERY: Final = 1.0

_JOIN: Final = 1.0
"""Seconds to wait for a thread that may be writing to a terminal that is stopped."""

_EPILOG: Final = (
    "A monitor of feeds is one more client: what it shows are batches that the servers make for it, beside those of "
    "any training, and it takes as many as it can get. --limit bounds that. The wait is what a trainer would feel: "
    "from wanting the next batch to having it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill monitor``."""
    parser.epilog = _EPILOG
    add_source_arguments(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="S",
        help="rates are those of the last S (default: %(default)g)",
    )
    parser.add_argument("--limit", type=float, default=math.inf, metavar="N", help="take N batches a second at most")
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--every", type=float, default=_EVERY, metavar="S", help="refresh so often (default: %(default)g)"
    )
    when.add_argument("--once", action="store_true", help="look for --seconds, print, and exit")
    parser.add_argument("--json", action="store_true", help="print a JSON object, or one on each line")


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C, or once."""
    seconds("--seconds", args.seconds, DAY)
    seconds("--every", args.every, DAY)
    if not args.limit >= 1 / DAY:
        raise UsageError(f"--limit {args.limit:g}: expected more than 0, and one batch a day ({1 / DAY:.2g}) at least")
    meter = Meter(args.seconds)
    with open_source(args, prefetch=None) as source:
        if args.once:
            now = _take(source, meter, args.limit, lambda begun, now: now - begun >= args.seconds)
            _printer(as_json=args.json, in_place=False, whole=True)(meter.read(now), source)
            return 0
        show = _printer(as_json=args.json, in_place=sys.stdout.isatty(), whole=sys.stdout.isatty())
        with _Ticker(args.every, lambda: show(meter.read(time.monotonic()), source)) as ticker:
            try:
                _take(source, meter, args.limit, lambda _begun, _now: ticker.failed is not None)
            except KeyboardInterrupt:  # the way to end it
                return 0
        if ticker.failed is not None:
            raise ticker.failed
    return 0


def _take(source: Source, meter: Meter, limit: float, done: Callable[[float, float], bool]) -> float:
    """Take batches until it is done, no more than ``limit`` a second; return when the last one came."""
    begun = now = -math.inf
    batches = source.batches()
    while begun == -math.inf or not done(begun, now):
        asked = time.monotonic()
        seen = next(batches)
        now = time.monotonic()
        begun = now if begun == -math.inf else begun
        meter.add(Arrival(now, seen.server, seen.samples, seen.nbytes, now - asked))
        time.sleep(max(0.0, asked + 1 / limit - now))
    return now


class _Ticker:
    """Calls ``tick`` every so many seconds, in a thread of its own, until the context is left.

    ``failed`` is the error that ended it earlier: a pipe whose reader has gone.
    """

    def __init__(self, every: float, tick: Callable[[], None]) -> None:
        self.failed: OSError | None = None
        self._every = every
        self._tick = tick
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedmill-monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_JOIN)

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._tick()
            except OSError as error:
                self.failed = error
                return


class _Show(Protocol):
    def __call__(self, reading: Reading, source: Source, /) -> None: ...


def _printer(*, as_json: bool, in_place: bool, whole: bool) -> _Show:
    """Return what prints a reading: as JSON, as a table (over the last one at a terminal), or as a line."""
    before = 0

    def show(reading: Reading, source: Source) -> None:
        nonlocal before
        if as_json:
            text = json.dumps(_as_json(reading, source))
        elif whole:
            lines = table(reading, source.servers(), source.counters())
            if in_place:
                lines = [line[: shutil.get_terminal_size().columns] for line in lines]
            text = "\n".join(lines)
        else:
            text = _line(reading.total)
        # Back to where the last table began, and nothing left of it.
        back = f"\x1b[{before}F\x1b[J" if in_place and before and not as_json else ""
        before = text.count("\n") + 1
        sys.stdout.write(f"{back}{text}\n")
        sys.stdout.flush()

    return show


def _as_json(reading: Reading, source: Source) -> dict[str, Any]:
    rates = asdict(reading)
    return {**rates.pop("total"), **rates, **source.counters()}


def table(reading: Reading, states: Mapping[str, str], counters: Mapping[str, int]) -> list[str]:
    """Return a reading as lines: a row for each server, those that have sent nothing too, and one for all."""
    silent = {server: None for server in states if server not in reading.servers}
    rows: dict[str, Rates | None] = {**reading.servers, **silent, "in all": reading.total}
    width = max(map(len, rows))
    lines = [f"{'':{width}}  batches/s  samples/s      MB/s  wait p50      p99"]
    for name, rates in rows.items():
        state = states.get(name, "")
        lines.append(f"{name:{width}}  {_row(rates) if rates else '':49}  {state}".rstrip())
    mended = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in counters.items() if count)
    lines.append(f"{reading.batches:,} batches, {reading.samples:,} samples since the start{mended}")
    return lines


def _row(rates: Rates) -> str:
    speeds = f"{rates.batches_per_second:9,.1f}  {rates.samples_per_second:9,.0f}  {rates.bytes_per_second / 1e6:8,.1f}"
    return f"{speeds}  {_milliseconds(rates.wait_p50)}  {_milliseconds(rates.wait_p99)}"


def _milliseconds(seconds: float | None) -> str:
    return f"{'-':>8}" if seconds is None else f"{seconds * 1e3:5,.1f} ms"


def _line(rates: Rates) -> str:
    speeds = f"{rates.samples_per_second:,.0f} samples/s, {rates.batches_per_second:,.1f} batches/s"
    waits = f"wait p50 {_milliseconds(rates.wait_p50).strip()}, p99 {_milliseconds(rates.wait_p99).strip()}"
    return f"{time.strftime('%H:%M:%S')} {speeds}, {rates.bytes_per_second / 1e6:,.1f} MB/s, {waits}"
