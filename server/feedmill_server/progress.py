"""How far indexing is: bars at a terminal while there is something to show, and a line now and then elsewhere."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["shown"]

_log = logging.getLogger("feedmill_server")


@contextmanager
def shown() -> Iterator[Callable[[str, int, int], None]]:
    """Show on stderr what is told of each stream: its name, shards that are done, and all of them."""
    console = Console(stderr=True)
    columns = (TextColumn("indexing {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    bars: dict[str, Any] = {}

    def draw(stream: str, done: int, total: int) -> None:
        if stream not in bars:
            progress.start()
            bars[stream] = progress.add_task(stream, total=total)
        progress.update(bars[stream], completed=done)
        if done == total:
            progress.remove_task(bars.pop(stream))
            if not bars:
                progress.stop()  # the terminal is not ours alone: a trainer may write there, too

    def tell(stream: str, done: int, total: int) -> None:
        if done % 1000 == 0:
            _log.info("indexing %s: %d of %d shards", stream, done, total)

    try:
        yield draw if console.is_terminal else tell
    finally:
        if bars:
            progress.stop()
