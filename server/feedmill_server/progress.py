"""How far indexing is: a bar at a terminal, and a line now and then elsewhere."""

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
    bars: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def advance(stream: str, done: int, total: int) -> None:
            if stream not in bars:
                bars[stream] = progress.add_task(stream, total=total)
            progress.update(bars[stream], completed=done)
            if done == total:
                progress.remove_task(bars.pop(stream))
            elif not console.is_terminal and done % 1000 == 0:
                _log.info("indexing %s: %d of %d shards", stream, done, total)

        yield advance
