"""The workers, as the broker's process sees them: started, spoken to, replaced.

They are forked by one fork server (`feedmill_server.forkserver`), a child of this process. Both it and they may die at
any moment; what they had in hand is the broker's business, that there are enough of them is ours.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgpack

from feedmill_protocol.errors import PipelineError

from .channel import Channel, ChannelClosed, ChannelFull
from .slots import Slot

__all__ = ["Workers"]

_SHORT_LIFE: Final = 1.0
"""A worker that lived for fewer seconds is replaced only after as many, lest a broken machine spin."""

_log = logging.getLogger(__name__)


class Workers:
    """``count`` workers.

    ``pipelines`` say where each stream's pipeline is (FILE.py:NAME or module:NAME) and whether it runs as written;
    ``jpeg`` names the decoder, "" for the fastest.
    """

    def __init__(self, count: int, pipelines: Sequence[tuple[str, bool]], jpeg: str) -> None:
        self.count = count
        self.channels: dict[int, Channel] = {}
        self._pipelines, self._jpeg = list(pipelines), jpeg
        self._stores: Sequence[dict[str, Any]] = ()
        self._loaded: tuple[list[dict[str, Any]], str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Channel | None = None
        self._known_slots: dict[int, set[int]] = {}  # which slots a worker has mapped
        self._born: dict[int, float] = {}
        self._due: list[float] = []  # when to fork a replacement
        self._number = 0

    @property
    def control(self) -> Channel:
        """The channel to the fork server."""
        if self._control is None:
            raise RuntimeError("the fork server has not been started")
        return self._control

    def start(self) -> None:
        """Start the fork server; it answers on `control` when it has imported everything."""
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
        self._control.send("load", self._pipelines, self._jpeg)

    def open(self, stores: Sequence[dict[str, Any]]) -> None:
        """Tell the fork server which shards to work on: arguments of `forkserver._open`."""
        self._stores = stores
        with os.fdopen(os.memfd_create("feedmill-stores"), "wb", buffering=0) as file:
            file.write(msgpack.packb(stores))
            self.control.send("open", fds=[file.fileno()])

    def wait_loaded(self, timeout: float) -> tuple[list[dict[str, Any]], str]:
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
            raise PipelineError("the process that loads the pipelines ended; its last words are above") from None
        if kind == "unfit":
            raise PipelineError(answer[0])
        self._loaded = answer[0], answer[1]

    def fill(self, now: float) -> list[int]:
        """Fork all workers at once; return their numbers."""
        return [self._fork(now) for _ in range(self.count)]

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
            if old != new:
                raise PipelineError(f"{pipeline} was changed while it was served; restart the server to serve it")
        if versions != versions_before:
            raise PipelineError(f"{versions_before} became {versions} meanwhile; restart the server to use that")
        self.open(self._stores)
        return self.fill(now)

    def replace(self, now: float) -> list[int]:
        """Fork the replacements that are due; return their numbers."""
        due = sum(at <= now for at in self._due)
        self._due = [at for at in self._due if at > now]
        return [self._fork(now) for _ in range(due)]

    def remove(self, number: int, now: float) -> None:
        """Forget a worker that is gone, and plan its replacement."""
        self.channels.pop(number).close()
        del self._known_slots[number]
        lived = now - self._born.pop(number)
        self._due.append(now if lived >= _SHORT_LIFE else now + _SHORT_LIFE)

    def restart(self) -> list[int]:
        """Start another fork server after one that died; return the numbers of the workers that died with it."""
        gone = list(self.channels)
        for channel in self.channels.values():
            channel.close()
        for state in (self.channels, self._known_slots, self._born, self._due):
            state.clear()
        self.control.close()
        if self._process is not None:
            self._process.kill()
            _log.error("the fork server ended with %s; starting another", self._process.wait())
        self.start()
        return gone

    def give(self, number: int, slot: Slot, *part: Any) -> None:
        """Give a part to a worker, which gets to know the slot if it does not yet.

        A worker that does not read is cut off, which ends it: the broker never waits for one.
        """
        known = self._known_slots[number]
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
        for number, known in self._known_slots.items():
            if slot in known:
                with suppress(ChannelFull):
                    with suppress(ChannelClosed):  # it unmaps all it has
                        self.channels[number].send("drop", slot, wait=False)
                    known.discard(slot)
        return not any(slot in known for known in self._known_slots.values())

    def close(self) -> None:
        """End the fork server and the workers."""
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()  # the kernel kills the workers with it
            self._process.wait()
            self._process = None

    def _fork(self, now: float) -> int:
        self._number += 1
        channel, end = Channel.pair()
        with end, suppress(ChannelClosed):  # that the fork server is gone is about to be noticed
            self.control.send("fork", self._number, fds=[end.fileno()])
        self.channels[self._number] = channel
        self._known_slots[self._number] = set()
        self._born[self._number] = now
        return self._number
