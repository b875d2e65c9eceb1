"""The workers, as the broker's process sees them: started, spoken to, watched, replaced.

They are forked by one fork server (`feedmill_server.forkserver`), a child of this process. Both it and they may die or
hang at any moment; what they had in hand is the broker's business, that there are enough of them is ours.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from feedmill_protocol.errors import PipelineError

from .channel import Channel, ChannelClosed, ChannelFull
from .descriptions import PipelineFacts, StoreFacts
from .phases import Phase
from .slots import Slot
from .watch import STUCK, Watch, where

__all__ = ["LOAD_TIMEOUT", "Lost", "Workers", "describe"]

LOAD_TIMEOUT: Final = 120.0
"""Seconds for importing torch and the pipelines: a cold network disk takes half a minute."""

_SHORT_LIFE: Final = 1.0
"""A worker that lived for fewer seconds is replaced only after as many, lest a broken machine spin."""

_PAUSES: Final = (0, 1, 2, 4, 8, 16, 30)
"""Seconds before another fork server is started: after the first death, the second in a row, …"""

_STEADY: Final = 60.0
"""A fork server that lived for so many seconds has worked: its death is the first in a row."""

_LOOK_EVERY: Final = 0.25
"""Seconds between looks at the workers' watches."""

_GRACE: Final = 1.0
"""Seconds for a worker to write its stack and end, and then for the kernel to kill it."""

_BIRTH: Final = 10.0
"""Seconds for a fork, which takes milliseconds: a fork server that takes longer hangs."""

_log = logging.getLogger(__name__)


class Lost(NamedTuple):
    """Why a worker ended, for people, and ``row`` and ``key`` of the sample in its hands: -1 and "" for none.

    ``kills`` is what that counts for: less if it may have been somebody else, or the kernel without memory.
    """

    reason: str
    row: int
    key: str
    kills: float = 1


@dataclass(slots=True, eq=False)
class _Worker:
    watch: Watch
    born: float
    slots: set[int] = field(default_factory=set)  # which it has mapped
    beats: int = 0
    stalled: float = 0.0  # seconds that it has had work and not finished a sample
    sent: int = 0  # the last signal to end it


class Workers:
    """``count`` workers.

    ``pipelines`` say where each stream's pipeline is (FILE.py:NAME or module:NAME) and whether it runs as written;
    ``jpeg`` names the decoder, "" for the fastest. A worker may take ``timeout`` seconds for a sample, and ``memory``
    bytes beyond what it is born with (None: all there is). ``handed`` is a descriptor of the only pipeline where that
    is an object (`feedmill_server.handover`); what ``pipelines`` has is then but a name for it.
    """

    def __init__(
        self,
        count: int,
        pipelines: Sequence[tuple[str, bool]],
        jpeg: str,
        *,
        timeout: float,
        memory: int | None,
        handed: int | None = None,
    ) -> None:
        self.count = count
        self.timeout = timeout
        self.channels: dict[int, Channel] = {}
        self._pipelines, self._jpeg, self._memory = list(pipelines), jpeg, memory
        self._handed = [] if handed is None else [handed]
        self._stores: Sequence[StoreFacts] = ()
        self._loaded: tuple[list[PipelineFacts], str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Channel | None = None
        self._workers: dict[int, _Worker] = {}
        self._due: list[float] = []  # when to fork a replacement
        self._number = 0
        self._looked = 0.0
        self._deaths = 0  # of fork servers, in a row
        self._started = 0.0  # when the fork server was, or is to be
        self._filled = False  # whether it has forked the workers
        self._spent = [0.0] * len(Phase)  # by workers that have ended

    @property
    def control(self) -> Channel:
        """The channel to the fork server."""
        if self._control is None:
            raise RuntimeError("there is no fork server")
        return self._control

    def is_control(self, fd: int) -> bool:
        """Tell whether this is the descriptor of `control`, if there is one at the moment."""
        return self._control is not None and self._control.fileno() == fd

    # The fork server.

    def start(self, now: float) -> None:
        """Start the fork server; it answers on `control` when it has imported everything."""
        self._started, self._filled = now, False
        self._control, end = Channel.pair()
        with end:
            command = [sys.executable, "-m", "feedmill_server.forkserver", str(end.fileno()), str(os.getpid())]
            # One thread each: workers are the parallelism, and a forking process must have no other thread.
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            self._process = subprocess.Popen(  # noqa: S603 # our own interpreter and module
                command,
                pass_fds=[end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=os.environ | threads,
                process_group=0,  # a terminal's Ctrl-C is for the broker, also while torch is being imported
            )
        with suppress(ChannelClosed):  # that it is gone is about to be noticed
            self._control.send("load", self._pipelines, self._jpeg, fds=self._handed)

    def open(self, stores: Sequence[StoreFacts]) -> None:
        """Tell the fork server which shards to work on, those of each stream."""
        self._stores = stores
        with os.fdopen(os.memfd_create("feedmill-stores"), "wb", buffering=0) as file:
            file.write(msgpack.packb(stores))
            self.control.send("open", self._memory, fds=[file.fileno()])

    def wait_loaded(self, timeout: float) -> tuple[list[PipelineFacts], str]:
        """Return what the fork server says of each pipeline, and of its libraries. Raises PipelineError."""
        self.check_loaded(timeout)
        if self._loaded is None:
            raise PipelineError(f"loading the pipelines took more than {timeout:g} s")
        return self._loaded

    def check_loaded(self, timeout: float = 0.0) -> None:
        """See whether the fork server has something to say yet. Raises PipelineError if pipelines cannot be loaded."""
        if self._loaded is not None:
            return
        try:
            (kind, *answer), _ = self.control.receive(timeout)
        except TimeoutError:
            return
        except ChannelClosed:
            raise PipelineError(f"the process that loads the pipelines {self._last_words()}") from None
        if kind == "unfit":
            raise PipelineError(answer[0])
        self._loaded = [PipelineFacts(*facts) for facts in answer[0]], answer[1]

    def _last_words(self) -> str:
        try:
            code = self._process.wait(_GRACE) if self._process else 0
        except subprocess.TimeoutExpired:
            return "hung up, and does not end"
        if code == -signal.SIGKILL:
            return "was killed, which the kernel does where memory is short; raise the limit, or load less"
        return f"{describe(code)}; its last words are above"

    def bury_fork_server(self, now: float) -> list[int]:
        """Take note that the fork server died; return the numbers of the workers that died with it.

        `restart` starts another: at once after the first death, after a while if that is not enough.
        """
        gone = list(self.channels)
        for number in gone:
            self._forget(number)
        self._due.clear()
        self.control.close()
        self._control = None
        if self._process is None:
            raise RuntimeError("a fork server that was not started has died")
        self._process.kill()
        self._deaths = 0 if now - self._started >= _STEADY else self._deaths
        pause = _PAUSES[min(self._deaths, len(_PAUSES) - 1)]
        self._deaths += 1
        self._started = now + pause
        how = describe(self._process.wait())
        then = f"starting another in {pause} s" if pause else "starting another"
        _log.error("the fork server %s, death %d in a row; %s", how, self._deaths, then)
        return gone

    def restart(self, now: float) -> bool:
        """Start another fork server if one is due; tell whether one was. One that never gets ready is killed."""
        if self._control is None and now >= self._started:
            try:
                self.start(now)
            except OSError as error:  # what there was too little of may have killed the last one
                if self._control is not None:
                    self._control.close()
                self._control = None
                self._started = now + _PAUSES[-1]
                _log.error("the fork server cannot be started (%s); trying again in %d s", error.strerror, _PAUSES[-1])
                return False
            return True
        if self._control and self._process and not self._filled and now >= self._started + LOAD_TIMEOUT:
            _log.error("the fork server was not ready within %g s; killing it", LOAD_TIMEOUT)
            self._process.kill()
            self._filled = True  # once; that it is gone is about to be noticed
        return False

    # The workers.

    def fill(self, now: float) -> list[int]:
        """Fork all workers at once; return their numbers."""
        self._filled = True
        self._due = [now] * self.count
        return self.replace(now)

    def refill(self, now: float, kind: str, *answer: Any) -> list[int]:
        """Fork all workers from another fork server, once it has answered that the pipelines are ``loaded``.

        Raises PipelineError if they are ``unfit``, or not what the first one loaded: it would make other pixels under
        the same fingerprint.
        """
        if kind == "unfit":
            raise PipelineError(answer[0])
        if self._loaded is None:
            raise RuntimeError("the first fork server has not loaded anything")
        (before, versions_before), (after, versions) = self._loaded, answer
        for (pipeline, _), old, new in zip(self._pipelines, before, after, strict=True):
            if old != PipelineFacts(*new):
                raise PipelineError(f"{pipeline} was changed while it was served; restart the server to serve it")
        if versions != versions_before:
            raise PipelineError(f"{versions_before} became {versions} meanwhile; restart the server to use that")
        with suppress(ChannelClosed):  # that it is gone is about to be noticed
            self.open(self._stores)
        return self.fill(now)

    def replace(self, now: float) -> list[int]:
        """Fork the replacements that are due; return their numbers."""
        due = sum(at <= now for at in self._due)
        self._due = [at for at in self._due if at > now]
        return [number for _ in range(due) if (number := self._fork(now))]

    def remove(self, number: int, how: str, now: float) -> Lost:
        """Forget a worker that ended in some way, plan its replacement, and say why it ended."""
        worker = self._workers[number]
        words, row, key = worker.watch.words, worker.watch.row, worker.watch.key
        if worker.sent:
            place = where(words)
            reason = f"took more than {self.timeout:g} s (--sample-timeout)" + f"; it hung in: {place}" * bool(place)
            _log.warning("worker %d %s; replacing it. Sample %s: %s\n%s", number, how, key, reason, words)
        elif words:
            reason = words
            _log.warning("worker %d %s; replacing it. Sample %s: %s", number, how, key, words)
        else:
            again = "again and again" if how == _KILLED else "twice"
            reason = f"the worker process {how} on this {'sample' if key else 'shard'}, {again}"
            _log.warning("worker %d %s; replacing it", number, how)
        self._due.append(now if now - worker.born >= _SHORT_LIFE else now + _SHORT_LIFE)
        self._forget(number)
        return Lost(reason, row, key, 0.5 if how == _KILLED and not (worker.sent or words) else 1)

    def look(self, is_busy: Callable[[int], object], now: float) -> list[int]:
        """End the workers that have been at one sample for too long; return those that not even SIGKILL has ended.

        These wait in the kernel for a disk, or the fork server does not pass signals on. It is killed, and they with it
        by the kernel, before they can write another row. Time in which this process itself stood still does not count:
        whatever stopped it may have stopped them.
        """
        if (elapsed := now - self._looked) < _LOOK_EVERY:
            return []
        elapsed, self._looked = min(elapsed, 2 * _LOOK_EVERY), now
        beyond = []
        for number, worker in self._workers.items():
            if worker.beats != (beats := worker.watch.beats) or not is_busy(number):
                worker.beats, worker.stalled = beats, 0.0
                continue
            worker.stalled += elapsed
            if not beats:
                if worker.stalled >= _BIRTH and self._process:
                    _log.error("the fork server has not forked worker %d in %g s; killing it", number, _BIRTH)
                    self._process.kill()
                continue
            over = worker.stalled - self.timeout
            if over >= 2 * _GRACE:
                beyond.append(number)
                if self._process:
                    self._process.kill()
            elif over >= _GRACE and worker.sent != signal.SIGKILL:
                self._signal(number, signal.SIGKILL)
            elif over >= 0 and not worker.sent:
                self._signal(number, STUCK)
        return beyond

    def end_stuck(self, number: int) -> None:
        """End a worker that hangs, and wait until it has, or leave it to the kernel."""
        self._signal(number, STUCK)
        with suppress(ChannelClosed, TimeoutError):
            while True:
                self.channels[number].receive(_GRACE)

    @property
    def restarts(self) -> int:
        """How many workers were forked in place of others."""
        return max(0, self._number - self.count)

    def seconds(self) -> list[float]:
        """Return how long all workers there ever were have spent in each `Phase`."""
        watches = [worker.watch.seconds for worker in self._workers.values()]
        return [sum(spent) for spent in zip(self._spent, *watches, strict=True)]

    def at(self, number: int) -> tuple[int, str, float]:
        """Return row and key of the sample that a worker has in hand (-1 and "" for none), and for how many seconds.

        Those are counted from when it was first seen at it, by `look`.
        """
        worker = self._workers[number]
        return worker.watch.row, worker.watch.key, worker.stalled

    def beats(self, number: int) -> int:
        """Return how many signs of life a worker has given."""
        return self._workers[number].watch.beats

    def words(self, number: int) -> str:
        """Return where a worker that was ended hung, or the last words of one that ended itself; or ""."""
        words = self._workers[number].watch.words
        return where(words) or words

    def give(self, number: int, slot: Slot, *part: Any) -> None:
        """Give a part to a worker, which gets to know the slot if it does not yet.

        A worker that does not read is cut off, which ends it: the broker never waits for one.
        """
        known = self._workers[number].slots
        fds = [] if slot.number in known else [slot.fd]
        known.add(slot.number)
        try:
            self.channels[number].send("part", slot.number, *part, fds=fds, wait=False)
        except ChannelFull:
            _log.warning("worker %d does not read what it is sent; ending it", number)
            self.channels[number].end()

    def drop(self, slot: int) -> bool:
        """Have a slot unmapped that no longer exists; return whether every worker that knew it has been told.

        One that is too busy to be told keeps the slot until it is asked again.
        """
        for number, worker in self._workers.items():
            if slot in worker.slots:
                with suppress(ChannelFull):
                    with suppress(ChannelClosed):  # it unmaps all it has
                        self.channels[number].send("drop", slot, wait=False)
                    worker.slots.discard(slot)
        return not any(slot in worker.slots for worker in self._workers.values())

    def close(self) -> None:
        """End the fork server and the workers."""
        for number in list(self.channels):
            self._forget(number)
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()  # the kernel kills the workers with it
            self._process.wait()
            self._process = None

    def _fork(self, now: float) -> int | None:
        try:
            watch, fd = Watch.create()
            with os.fdopen(fd) as file:
                channel, end = Channel.pair()
                with end, suppress(ChannelClosed):  # that the fork server is gone is about to be noticed
                    self.control.send("fork", self._number + 1, fds=[end.fileno(), file.fileno()])
        except OSError as error:  # out of descriptors or memory, which may pass
            _log.error("no worker can be started (%s); trying again in %g s", error.strerror, _SHORT_LIFE)
            self._due.append(now + _SHORT_LIFE)
            return None
        self._number += 1
        self.channels[self._number] = channel
        self._workers[self._number] = _Worker(watch, now)
        return self._number

    def _forget(self, number: int) -> None:
        self.channels.pop(number).close()
        watch = self._workers.pop(number).watch
        self._spent = [before + spent for before, spent in zip(self._spent, watch.seconds, strict=True)]
        watch.close()

    def _signal(self, number: int, signum: int) -> None:
        self._workers[number].sent = signum
        with suppress(ChannelClosed, ChannelFull):  # it is asked again, or dies with the fork server
            self.control.send("signal", number, signum, wait=False)


def describe(code: int) -> str:
    """Say how a process ended, by its exit code."""
    return f"ended with signal {-code}" if code < 0 else f"ended with exit code {code}"


_KILLED: Final = describe(-signal.SIGKILL)
