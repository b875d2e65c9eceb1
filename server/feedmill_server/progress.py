"""How far a long job is: bars at a terminal while there is something to show, and a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["shown"]

LINE_SECONDS: Final = 10.0
"""Between lines in a log."""

_log = logging.getLogger("feedmill_server")


@contextmanager
def shown(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of what is being done, how much of it is done, and of how much. ``verb`` says what is done."""
    console = Console(stderr=True)
    columns = (TextColumn(verb + " {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    bars: dict[str, TaskID] = {}
    said = time.monotonic()

    def draw(what: str, done: int, total: int) -> None:
        if what not in bars:
            progress.start()
            bars[what] = progress.add_task(what, total=total)
        progress.update(bars[what], completed=done)
        if done == total:
            progress.remove_task(bars.pop(what))
            if not bars:
                progress.stop()  # the terminal is not ours alone: a trainer may write there, too

    def tell(what: str, done: int, total: int) -> None:
        nonlocal said
        if done < total and time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            _log.info("%s %s: %s of %s", verb, what, f"{done:,}", f"{total:,}")

    try:
        yield draw if console.is_terminal else tell
    finally:
        if bars:
            progress.stop()
