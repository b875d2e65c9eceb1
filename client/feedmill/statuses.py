"""What servers say of themselves at ``/status.json``, and what that is in all.

The rule of this file: it comes from a network. It is read up to a limit, every value is checked before it is believed,
and every text is printable. A field that is not known is left alone, so that a newer server can be looked at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from feedmill_protocol import limits
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.printing import printable

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["BYTES", "STAGES", "BadSample", "Client", "Stage", "Status", "Total", "parse", "total"]

BYTES: Final = 1024 * 1024
"""A server's status takes 5 KB, and with a hundred workers and the longest keys and reasons a tenth of this."""

STAGES: Final = ("read", "decode", "transform")
"""What workers do."""

_LISTED: Final = 100
"""Bad samples and clients: as many as a server lists."""

_TEXT: Final = 2000
"""Characters of a text: a reason, the longest, has half of it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage takes: a ``share`` of the workers' time, 0 to 1, and ``ms`` a sample, None if there was none."""

    share: float
    ms: float | None


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample, or a shard if ``key`` is "", that was left out so many times, and ended an iteration so many."""

    shard: str
    key: str
    reason: str
    skipped: int
    failed: int


@dataclass(frozen=True, slots=True)
class Client:
    """A connection of a trainer's: its address, "" if it has none, requests unanswered, and bytes on their way."""

    address: str
    requests: int
    unsent: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a server says. Rates, ``stages`` (of `STAGES`) and ``send_ms`` (a batch) are of the last 20 s.

    ``workforce`` is how many ``workers`` there should be; ``queued`` parts of batches wait for one. ``bad`` has the
    newest first.
    """

    server: str
    version: str
    state: str
    verdict: str
    uptime: float
    samples_per_second: float
    batches_per_second: float
    bytes_per_second: float
    made_per_second: float
    stages: dict[str, Stage]
    send_ms: float | None
    workforce: int
    workers: int
    workers_busy: int
    queued: int
    batches: int
    samples: int
    bytes: int
    cache_hits: int
    skipped: int
    failed: int
    restarts: int
    clients: int
    connections: tuple[Client, ...]
    bad: tuple[BadSample, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """What several servers do, ``answering`` of ``servers``. Shares are of the time of all workers."""

    servers: int
    answering: int
    samples_per_second: float
    batches_per_second: float
    bytes_per_second: float
    stages: dict[str, Stage]
    send_ms: float | None
    workforce: int
    workers: int
    workers_busy: int
    queued: int
    cache_hits: int
    skipped: int
    failed: int


def parse(body: bytes) -> Status:
    """Read a status. Raises ProtocolError for what is none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or brackets by the thousand
        raise ProtocolError("what it says is no JSON; is this a feedmill server's --http?") from None
    said = _Said(said)
    stages = {one.text("stage"): Stage(one.number("share", 1), one.maybe("ms")) for one in said.objects("stages")}
    if missing := set(STAGES) - stages.keys():
        raise ProtocolError(f"its status has no stage {min(missing)!r}; install one release here and there")
    return Status(
        server=said.text("server"),
        version=said.text("version"),
        state=said.text("state"),
        verdict=said.text("verdict"),
        uptime=said.number("uptime"),
        samples_per_second=said.number("samples_per_second"),
        batches_per_second=said.number("batches_per_second"),
        bytes_per_second=said.number("bytes_per_second"),
        made_per_second=said.number("made_per_second"),
        stages={name: stages[name] for name in STAGES},
        send_ms=said.maybe("send_ms"),
        workforce=said.integer("workforce"),
        workers=said.integer("workers_in_all"),
        workers_busy=said.integer("workers_busy"),
        queued=said.integer("queued"),
        batches=said.integer("batches"),
        samples=said.integer("samples"),
        bytes=said.integer("bytes"),
        cache_hits=said.integer("cache_hits"),
        skipped=said.integer("skipped"),
        failed=said.integer("failed"),
        restarts=said.integer("restarts"),
        clients=said.integer("clients_in_all"),
        connections=tuple(_client(one) for one in said.objects("clients")),
        bad=tuple(_bad_sample(one) for one in said.objects("bad")),
    )


def _client(said: _Said) -> Client:
    return Client(said.text("address"), said.integer("requests"), said.integer("unsent"))


def _bad_sample(said: _Said) -> BadSample:
    return BadSample(
        said.text("shard"), said.text("key"), said.text("reason"), said.integer("skipped"), said.integer("failed")
    )


def total(statuses: Collection[Status | None]) -> Total:
    """Return what servers do in all; None is one that does not answer."""
    seen = [status for status in statuses if status is not None]
    workers = sum(status.workers for status in seen)
    made = sum(status.made_per_second for status in seen)
    batches = sum(status.batches_per_second for status in seen)
    working = {name: sum(status.stages[name].share * status.workers for status in seen) for name in STAGES}
    sending = sum((status.send_ms or 0.0) * status.batches_per_second for status in seen)
    return Total(
        servers=len(statuses),
        answering=len(seen),
        samples_per_second=sum(status.samples_per_second for status in seen),
        batches_per_second=batches,
        bytes_per_second=sum(status.bytes_per_second for status in seen),
        stages={
            name: Stage(busy / workers if workers else 0.0, 1000 * busy / made if made else None)
            for name, busy in working.items()  # busy: worker seconds in a second
        },
        send_ms=sending / batches if batches else None,
        workforce=sum(status.workforce for status in seen),
        workers=workers,
        workers_busy=sum(status.workers_busy for status in seen),
        queued=sum(status.queued for status in seen),
        cache_hits=sum(status.cache_hits for status in seen),
        skipped=sum(status.skipped for status in seen),
        failed=sum(status.failed for status in seen),
    )


class _Said:
    """An object of JSON, whose values are checked as they are taken. All raise ProtocolError."""

    def __init__(self, said: Any) -> None:
        if not isinstance(said, dict):
            raise ProtocolError("its status is no object; is this a feedmill server's --http?")
        self._said = said

    def text(self, name: str) -> str:
        value = self._said.get(name)
        if not isinstance(value, str):
            raise self._unexpected(name, "a string")
        return printable(value[:_TEXT].replace("\N{NO-BREAK SPACE}", " "))  # which a terminal would not show as one

    def number(self, name: str, most: int = limits.INT63) -> float:
        value = self._said.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise self._unexpected(name, f"a number in 0..{most}")
        return value

    def integer(self, name: str) -> int:
        value = self.number(name)
        if not isinstance(value, int):
            raise self._unexpected(name, "an integer")
        return value

    def maybe(self, name: str) -> float | None:
        return None if self._said.get(name, "") is None else self.number(name)

    def objects(self, name: str) -> list[_Said]:
        value = self._said.get(name)
        if not isinstance(value, list):
            raise self._unexpected(name, "a list")
        return [_Said(one) for one in value[:_LISTED]]

    def _unexpected(self, name: str, expected: str) -> ProtocolError:
        value = self._said.get(name)
        shown = type(value).__name__ if isinstance(value, (list, dict)) else printable(f"{value!r:.40}")
        return ProtocolError(f"its status has {name}={shown}, expected {expected}; install one release here and there")
