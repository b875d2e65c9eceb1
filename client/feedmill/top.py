"""``feedmill top``: what a server's page shows, of several servers, in a terminal."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live

from feedmill_protocol.arguments import DAY, seconds

from .board import board
from .lookout import Lookout, parse_urls
from .statuses import total

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rich.console import Group

    from .lookout import Sight

__all__ = ["add_arguments", "run"]

_EVERY: Final = 1.0

_WIDE: Final = 160
"""Characters of a line where there is no terminal to say."""

_EPILOG: Final = (
    "Servers must have been started with --http; they are asked what their pages ask. Rates and shares are those of "
    "the last 20 seconds, counts are from the start of each server. Ctrl-C ends it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill top``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "urls",
        nargs="+",
        metavar="URL",
        help="where servers have their pages, as in http://cpu-{0..3}:9880; a host name with several addresses is as "
        "many servers; http:// may be left out",
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--every", "--interval", type=float, default=_EVERY, metavar="S", help="refresh so often (default: %(default)g)"
    )
    when.add_argument(
        "--once", action="store_true", help="print how it is now, and exit: with 2 if a server does not answer"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, or one on each line")


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C, or once."""
    seconds("--every", args.every, DAY)
    lookout = Lookout(parse_urls(args.urls))
    with lookout.looking_up():
        if args.once:
            asyncio.run(lookout.look())
            sights = lookout.sights()
            _write(_as_json(sights) if args.json else _plain(sights))
            return 0 if all(sight.status for sight in sights.values()) else 2
        try:
            asyncio.run(_watch(lookout, args.every, as_json=args.json))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:  # the way to end it
            pass
    return 0


async def _watch(lookout: Lookout, every: float, *, as_json: bool) -> None:
    """Show how it is until cancelled: at a terminal on a screen of its own, which SIGTERM ends well, too."""
    console = Console()
    if as_json or not sys.stdout.isatty() or console.is_dumb_terminal:
        said = _as_json if as_json else _line
        await lookout.watch(every, lambda: _write(said(lookout.sights())))

    def draw(height: int | None = None) -> Group:
        return board(lookout.sights(), time.monotonic(), width=console.width, height=height)

    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            watching = asyncio.create_task(
                lookout.watch(every, lambda: live.update(draw(console.height), refresh=True))
            )
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, watching.cancel)
            await watching
    finally:
        console.print(draw())  # the last figures stay


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _as_json(sights: Mapping[str, Sight]) -> str:
    servers = {url: asdict(sight.status) if sight.status else {"error": sight.trouble} for url, sight in sights.items()}
    return json.dumps(asdict(total([sight.status for sight in sights.values()])) | {"by_server": servers})


def _plain(sights: Mapping[str, Sight]) -> str:
    """Return the board as text, without colours."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as capture:
        console.print(board(sights, time.monotonic(), width=console.width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _line(sights: Mapping[str, Sight]) -> str:
    seen = total([sight.status for sight in sights.values()])
    return (
        f"{time.strftime('%H:%M:%S')} {seen.answering} of {seen.servers} servers, "
        f"{seen.samples_per_second:,.0f} samples/s, {seen.bytes_per_second / 1e6:,.1f} MB/s, "
        f"{seen.workers_busy:,} of {seen.workforce:,} workers busy, {seen.queued:,} parts queued, "
        f"{seen.skipped:,} samples skipped"
    )
