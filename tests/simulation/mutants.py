"""Ledgers, brokers and a trainer with one bug each, for the simulator to find: it is tested by what it catches.

``python -m simulation --mutant NAME`` plays worlds with one of them.
"""

from collections import deque
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Final
from unittest.mock import patch

from feedmill_protocol import limits
from feedmill_protocol.errors import ServerUnavailable
from feedmill_protocol.ledger import Key, Ledger, _Request, _Server
from feedmill_protocol.messages import Batch, Cancel, Drain, Fail, Get, Message, Pong
from feedmill_server.broker import Broker, Build

from .content import Slot
from .trainer import Letter, Trainer
from .world import Subject

__all__ = ["MUTANTS", "ReadsWhatIsLost"]


class GivesOutDuplicates(Ledger):
    """Takes every reply for the first."""

    def wants(self, server: str, message: Message) -> bool:
        return super().wants(server, message) or isinstance(message, Batch)

    def received(self, server: str, message: Message, now: float, *, intact: bool = True) -> bool:
        return super().received(server, message, now, intact=intact) or (intact and isinstance(message, Batch))

    def _arrived(self, server: str, known: _Server, batch: Batch, *, intact: bool) -> bool:
        wanted = super().wants(server, batch)
        return wanted and super()._arrived(server, known, batch, intact=intact)


class ForgetsToAskAgain(Ledger):
    """Loses what was asked over a connection that is lost."""

    def _release(self, server: str) -> None:
        waiting = self._waiting.copy()
        super()._release(server)
        self._waiting = waiting


class TrustsLateServers(Ledger):
    """Never asks another server for what one owes that is silent or stuck."""

    def _judge(self, known: _Server, now: float) -> None:
        waiting = self._waiting.copy()
        super()._judge(known, now)
        self._waiting = waiting


class TrustsSilentServers(Ledger):
    """Takes a connection that stands for a server that answers."""

    def _judge(self, known: _Server, now: float) -> None:
        heard, known.heard = known.heard, inf
        super()._judge(known, now)
        known.heard = heard


class TrustsStuckServers(Ledger):
    """Takes a server that answers for one that gets something done."""

    def _judge(self, known: _Server, now: float) -> None:
        known.idle_since = inf
        super()._judge(known, now)


class TakesBackOnDoubt(Ledger):
    """Takes back what a doubtful server was asked, as if its connection were lost, and then asks it again."""

    def tick(self, now: float) -> None:
        super().tick(now)
        for server, known in self._servers.items():
            if known.state.value == "silent":
                self._release(server)
        self._assign()


class TakesTheLastReply(Ledger):
    """Drops a reply to what was asked again since, though it is the first."""

    def _ask(self, server: str, key: Key, request: _Request) -> None:
        request.tried.clear()
        super()._ask(server, key, request)


class ExceedsItsCredit(Ledger):
    """Asks for one more than it may."""

    def _least_busy(self, request: _Request) -> str | None:
        with patch.object(limits, "OUTSTANDING", limits.OUTSTANDING + 1):
            return super()._least_busy(request)


class LosesCredit(Ledger):
    """Does not count down when something is no longer wanted."""

    def _cancel(self, key: Key) -> None:
        asked = {server: set(known.asked) for server, known in self._servers.items()}
        super()._cancel(key)
        for server, known in self._servers.items():
            known.asked |= asked[server] & {key}

    def _release(self, server: str) -> None:
        self._servers[server].asked &= self._requests.keys()
        super()._release(server)

    def _judge(self, known: _Server, now: float) -> None:
        super()._judge(known, now)
        self._waiting &= self._requests.keys()


class ForgetsItsDeadline(Ledger):
    """Waits for ever."""

    def tick(self, now: float) -> None:
        with suppress(ServerUnavailable):
            super().tick(now)


class SleepsThroughItsDeadline(Ledger):
    """Asks to be woken for pings alone."""

    def wake_at(self) -> float:
        return min(self._beat_at, self._retry_at)


class SeesNoProgressInPongs(Ledger):
    """Gives up while a server works on one large batch."""

    def _answered(self, known: _Server, pong: Pong, now: float) -> None:
        before = self._progress_at
        super()._answered(known, pong, now)
        self._progress_at = before


class SeesProgressInEveryPong(Ledger):
    """Waits for ever where servers answer and get nothing done."""

    def _answered(self, known: _Server, pong: Pong, now: float) -> None:
        super()._answered(known, pong, now)
        self._progress_at = now


class LosesWhatFailed(Ledger):
    """Does not ask again for what a server could not make."""

    def _failed(self, server: str, known: _Server, fail: Fail) -> None:
        super()._failed(server, known, fail)
        self._waiting.discard((fail.epoch, fail.batch))


class AsksDrainingServers(Ledger):
    """Does not listen to DRAIN."""

    def received(self, server: str, message: Message, now: float, *, intact: bool = True) -> bool:
        return not isinstance(message, Drain) and super().received(server, message, now, intact=intact)


class ForgetsToCancel(Ledger):
    """Lets servers work on what has come from others."""

    def _cancel(self, key: Key) -> None:
        said = len(self.outbox)
        super()._cancel(key)
        kept = [o for number, o in enumerate(self.outbox) if number < said or not isinstance(o.message, Cancel)]
        self.outbox.clear()
        self.outbox.extend(kept)


class CountsAttemptsAnew(Ledger):
    """Gives the attempts of every request the numbers from 1 on."""

    def _ask(self, server: str, key: Key, request: _Request) -> None:
        self._attempts = len(request.tried)
        super()._ask(server, key, request)


class RemembersEverything(Ledger):
    """Keeps every request that was ever made."""

    def want(self, get: Get, spans: bytes, samples: int, now: float) -> None:
        vars(self).setdefault("_history", []).append(replace(get, attempt=1))
        super().want(get, spans, samples, now)


class TakesWhatIsDamaged(Ledger):
    """Does not care for checksums."""

    def received(self, server: str, message: Message, now: float, *, intact: bool = True) -> bool:
        return super().received(server, message, now)


class LosesWhatIsDamaged(Ledger):
    """Does not ask again for what came damaged."""

    def _arrived(self, server: str, known: _Server, batch: Batch, *, intact: bool) -> bool:
        taken = super()._arrived(server, known, batch, intact=intact)
        self._waiting.discard((batch.epoch, batch.batch))
        return taken


class TrustsWhatIsGarbled(Ledger):
    """Goes on waiting for what was asked of a server, though the answer may have been what nobody could read."""

    def garbled(self, server: str, now: float) -> None:
        self._count_damage(server, self._servers[server])


class AnswersOnlyTheFirst(Broker[Slot]):
    """Forgets all but one of those who asked for the same batch."""

    def _answer(self, build: Build[Slot]) -> None:
        for asker in list(build.waiters)[1:]:
            del build.waiters[asker]
            del self._clients[asker[0]].open[asker[1:]]
        super()._answer(build)


class LosesMemory(Broker[Slot]):
    """Does not give back the memory of what nobody wants any more."""

    def _abandon(self, build: Build[Slot]) -> None:
        build.slot, slot = None, build.slot
        super()._abandon(build)
        build.slot = slot


class ReusesWhatIsBeingSent(Broker[Slot]):
    """Takes memory for free as soon as the batch in it has been answered."""

    def _answer(self, build: Build[Slot]) -> None:
        super()._answer(build)
        if build.slot is not None:
            build.slot.pins = 0
            self._drop(build)


class ReadsWhatIsLost(Trainer):
    """Reads what a lost connection brought, and only after the next one stands, so that it seems to come over that."""

    def _lose_unread(self, address: str) -> None:
        pass

    def _read(self) -> None:
        news = [item for item in self._inbox if not isinstance(item[1], Letter)]
        letters = [item for item in self._inbox if isinstance(item[1], Letter)]
        self._inbox = deque(news + letters)
        super()._read()


_LEDGERS: Final[tuple[type[Ledger], ...]] = (
    GivesOutDuplicates,
    ForgetsToAskAgain,
    TrustsLateServers,
    TrustsSilentServers,
    TrustsStuckServers,
    TakesBackOnDoubt,
    TakesTheLastReply,
    ExceedsItsCredit,
    LosesCredit,
    ForgetsItsDeadline,
    SleepsThroughItsDeadline,
    SeesNoProgressInPongs,
    SeesProgressInEveryPong,
    LosesWhatFailed,
    AsksDrainingServers,
    ForgetsToCancel,
    CountsAttemptsAnew,
    RemembersEverything,
    TakesWhatIsDamaged,
    LosesWhatIsDamaged,
    TrustsWhatIsGarbled,
)
_BROKERS: Final[tuple[type[Broker[Slot]], ...]] = (AnswersOnlyTheFirst, LosesMemory, ReusesWhatIsBeingSent)

MUTANTS: Final[dict[str, Subject]] = {
    **{ledger.__name__: Subject(ledger.__name__, ledger=ledger) for ledger in _LEDGERS},
    **{broker.__name__: Subject(broker.__name__, broker=broker) for broker in _BROKERS},
}
