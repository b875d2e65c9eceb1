"""The board: several servers on one screen, drawn with rich.

What matters most stands first, since a terminal may be too narrow for all columns, and too low for all lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .statuses import STAGES, total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .lookout import Sight
    from .statuses import BadSample, Client, Stage, Status, Total

__all__ = ["board"]

_LOOKS: Final = {"read": ("▓", "blue"), "decode": ("█", "yellow"), "transform": ("▒", "green"), "idle": ("·", "dim")}
"""Of each part of a bar: a character, for terminals without colours too, and a style."""

_STATES: Final = {"serving": "green", "no answer": "bold red"}

_LISTED: Final = 8
"""Bad samples, and addresses of clients."""

_REASON: Final = 200
"""Characters of a reason: three lines of a usual terminal."""

_BAR: Final = (8, 24)
"""Characters of a server's bar, at least and at most."""

_GAP: Final = 2

_BELOW: Final = 8
"""Lines of the titles, the totals, the legend, and the first remarks."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: cells of all servers in all, and of each one. Those of a low ``rank`` go first where it is narrow."""

    title: str
    rank: int
    cells: Sequence[str]

    @property
    def width(self) -> int:
        return max(len(self.title), *(Text(cell).cell_len for cell in self.cells))


def board(sights: Mapping[str, Sight], now: float, *, width: int, height: int | None = None) -> Group:
    """Draw what is known of servers at a time, in so many characters, and lines if there is a limit."""
    summary = total([sight.status for sight in sights.values()])
    statuses = [sight.status for sight in sights.values() if sight.status is not None]
    shown = sights if height is None else _foremost(sights, max(3, height - _BELOW))
    lines: list[Table | Text] = [_table(shown, summary, width)]
    if len(shown) < len(sights):
        lines.append(Text(f"and {len(sights) - len(shown):,} more servers", "dim"))
    lines += _legend(summary)
    lines += _remarks(shown, now)
    lines += _bad_samples([status.bad for status in statuses])
    lines += _clients([status.connections for status in statuses])
    return Group(*lines)


def _foremost(sights: Mapping[str, Sight], room: int) -> Mapping[str, Sight]:
    """Return as many servers as there is room for: those that do not serve before the others."""
    foremost = sorted(sights, key=lambda url: _state(sights[url]) == "serving")[:room]
    return {url: sight for url, sight in sights.items() if url in foremost}


def _state(sight: Sight) -> str:
    return sight.status.state if sight.status else "asking" if sight.trouble == "asking" else "no answer"


def _table(sights: Mapping[str, Sight], summary: Total, width: int) -> Table:
    statuses = [sight.status for sight in sights.values()]
    columns = _fitting(_columns(sights, summary), width)
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    for column in columns:
        is_name = column.title in {"server", "state"}
        table.add_column(justify="left" if is_name else "right", no_wrap=True, overflow="ellipsis")
    bar = width - sum(column.width + _GAP for column in columns)
    has_bar = bar >= _BAR[0]
    if has_bar:
        table.add_column(no_wrap=True)
    titles = [Text(column.title, "dim") for column in columns]
    table.add_row(*titles, *[Text("workers' time", "dim")] * has_bar)
    working: list[Status | Total | None] = [summary, *statuses]
    for row, status in enumerate(working):
        cells = [Text(column.cells[row], _style(column, row)) for column in columns]
        drawn = _bar(status.stages, min(bar, _BAR[1])) if status and status.workers and has_bar else Text("")
        table.add_row(*cells, *[drawn] * has_bar)
    return table


def _style(column: _Column, row: int) -> str:
    if row == 0:
        return "bold"
    return _STATES.get(column.cells[row], "yellow") if column.title == "state" else ""


def _columns(sights: Mapping[str, Sight], summary: Total) -> list[_Column]:
    given = [sight.status for sight in sights.values()]

    def figures(whole: str, each: str) -> list[str]:
        return [whole, *("" if status is None else each.format(status) for status in given)]

    answering = f"{summary.answering} of {summary.servers}"
    crew = f"{summary.workers_busy:,}/{summary.workforce:,}"
    return [
        _Column("server", 9, ["in all", *sights]),
        _Column("state", 8, [answering, *map(_state, sights.values())]),
        _Column("samples/s", 7, figures(f"{summary.samples_per_second:,.0f}", "{0.samples_per_second:,.0f}")),
        _Column("MB/s", 5, [f"{summary.bytes_per_second / 1e6:,.1f}", *map(_megabytes, given)]),
        _Column("busy", 6, figures(crew, "{0.workers_busy:,}/{0.workforce:,}")),
        _Column("queue", 4, figures(f"{summary.queued:,}", "{0.queued:,}")),
        _Column("clients", 3, figures("", "{0.clients:,}")),  # a trainer is a client of each server
        _Column("skipped", 2, figures(f"{summary.skipped:,}", "{0.skipped:,}")),
        _Column("cached", 1, figures(f"{summary.cache_hits:,}", "{0.cache_hits:,}")),
    ]


def _megabytes(status: Status | None) -> str:
    return "" if status is None else f"{status.bytes_per_second / 1e6:,.1f}"


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """Leave out columns until the others fit; the name of a server may be cut."""
    columns = columns.copy()
    while len(columns) > 3 and sum(column.width + _GAP for column in columns) > width:
        columns.remove(min(columns, key=lambda column: column.rank))
    return columns


def _parts(stages: Mapping[str, Stage]) -> dict[str, float]:
    """Return the shares of the workers' time, with what is left."""
    shares = {name: stages[name].share for name in STAGES}
    return shares | {"idle": max(0.0, 1.0 - sum(shares.values()))}


def _bar(stages: Mapping[str, Stage], width: int) -> Text:
    bar, end = Text(), 0.0
    for name, share in _parts(stages).items():
        end += share
        character, style = _LOOKS[name]
        bar.append(character * max(0, min(width, round(width * end)) - len(bar)), style)
    return bar


def _legend(summary: Total) -> list[Text]:
    if not summary.workers:
        return []
    line = Text()
    for name, share in _parts(summary.stages).items():
        character, style = _LOOKS[name]
        ms = summary.stages[name].ms if name in summary.stages else None
        line.append(character, style).append(f" {name} {share:.0%}{_milliseconds(ms)}   ")
    if summary.send_ms is not None:
        line.append(f"send{_milliseconds(summary.send_ms)} a batch")
    return [Text(""), line]


def _milliseconds(ms: float | None) -> str:
    return "" if ms is None else f" {ms:,.{2 if ms < 10 else 1 if ms < 100 else 0}f} ms"


def _remarks(sights: Mapping[str, Sight], now: float) -> list[Text]:
    """Return what holds each server up."""
    lines = [Text("")]
    for url, sight in sights.items():
        if sight.status is not None:
            remark, style = sight.status.verdict, ""
        elif sight.heard is not None:
            remark, style = f"{sight.trouble}; last heard {now - sight.heard:,.0f} s ago", "red"
        else:
            remark, style = sight.trouble, "red"
        name = f"{sight.status.server}  " if sight.status else ""
        lines.append(Text.assemble((f"{url}  ", "dim"), (name, "bold"), (remark, style)))
    return lines


def _bad_samples(lists: Sequence[Sequence[BadSample]]) -> list[Text]:
    """Return the newest of each server's in turn; those that several have met, once."""
    counts: dict[tuple[str, str], tuple[str, int, int]] = {}
    for bad in filter(None, chain.from_iterable(zip_longest(*lists))):
        reason, skipped, failed = counts.get((bad.shard, bad.key), (bad.reason, 0, 0))
        counts[bad.shard, bad.key] = reason, skipped + bad.skipped, failed + bad.failed
    lines = []
    for (shard, key), (reason, skipped, failed) in counts.items():
        brief = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
        times = f"skipped {skipped:,} times, failed {failed:,}"
        lines.append(Text.assemble((f"{shard} {key}".rstrip(), "bold"), f"  {brief}  ", (times, "dim")))
    return _listed("Bad samples, the newest first", lines)


def _clients(lists: Sequence[Sequence[Client]]) -> list[Text]:
    """Return a line for each address, since a trainer is a client of each server."""
    by_address: dict[str, list[Client]] = {}
    for client in chain.from_iterable(lists):
        by_address.setdefault(client.address or "this machine", []).append(client)
    lines = [
        Text(
            f"{address}  connections: {len(some):,}, requests unanswered: {sum(c.requests for c in some):,}, "
            f"MB on their way: {sum(c.unsent for c in some) / 1e6:,.1f}"
        )
        for address, some in by_address.items()
    ]
    return _listed("Clients", lines)


def _listed(title: str, lines: list[Text]) -> list[Text]:
    if not lines:
        return []
    more = [Text(f"and {len(lines) - _LISTED:,} more", "dim")] if len(lines) > _LISTED else []
    return [Text(""), Text(title, "dim"), *lines[:_LISTED], *more]
