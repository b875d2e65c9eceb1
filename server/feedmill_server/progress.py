"""How far a long job is: bars at a terminal, a line now and then elsewhere."""

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

_log = logging.getLogger(__name__)


@contextmanager
def shown(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of what is being done, how many are done, and of how many. ``verb`` says what is done to it."""
    console = Console(stderr=True)
    columns = (TextColumn(verb + " {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def advance(what: str, done: int, total: int) -> None:
            nonlocal said
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)
            if done == total:
                progress.remove_task(bars.pop(what))
            elif not console.is_terminal and time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                _log.info("%s %s: %s of %s", verb, what, f"{done:,}", f"{total:,}")

        yield advance
