"""A worker's watch: memory that it shares with the broker, for signs of life and last words.

The rule of this file: the worker writes, the broker reads, and neither waits for the other. So the broker knows of a
worker that is stuck in whatever it may be (a loop, a read that blocks, C code that holds the GIL) where it is stuck:
one signal has `faulthandler`, in C, write the Python stack, and ends the process.

Layout: the count of beats (8 bytes); the row (8) of the sample in hand; seconds spent in each phase (8 each); the
length of the key (4) and the key of the sample in hand; words.
"""

import faulthandler
import mmap
import os
import re
import signal
import time
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple, Self

from .index import KEY_BYTES
from .phases import Phase

__all__ = ["STUCK", "Watch", "where"]

STUCK: Final = signal.SIGUSR2
"""What a worker that is stuck is sent: it writes its stack, and ends. Libraries that need a signal take SIGUSR1."""

_BYTES: Final = 64 * 1024
"""Room for the innermost hundred calls. What nobody writes to takes no memory."""

_SIZE: Final = 16 + 8 * len(Phase)
_KEY: Final = _SIZE + 4
_WORDS: Final = _KEY + KEY_BYTES + 1

_FRAMES: Final = 4
"""Calls that a reason names: the innermost ones, where it hangs and why it came there."""

_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$', re.MULTILINE)
_OURS: Final = str(Path(__file__).parent)


class Watch:
    """The watch in a memory file. One for each worker: numbers and keys are written without a lock."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _BYTES)
        self._numbers = memoryview(self._map)[:16].cast("q")  # beats, row
        self._seconds = memoryview(self._map)[16:_SIZE].cast("d")
        self._size = memoryview(self._map)[_SIZE:_KEY].cast("I")
        self._since = 0.0  # when the present phase began, of the worker's own clock

    @classmethod
    def create(cls) -> tuple[Self, int]:
        """Return a new watch, and the descriptor of its file, to be given to the worker and closed."""
        fd = os.memfd_create("feedmill-watch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _BYTES)
            return cls(fd), fd
        except BaseException:
            os.close(fd)
            raise

    # The worker's side.

    def listen(self, fd: int) -> None:
        """Have this process write its stack and end when it is sent `STUCK`. The descriptor must stay open."""
        os.lseek(fd, _WORDS, os.SEEK_SET)
        signal.signal(STUCK, signal.SIG_DFL)  # what comes after the stack
        faulthandler.register(STUCK, file=fd, all_threads=False, chain=True)

    def begin(self, row: int, key: str) -> None:
        """Say which sample is in hand, by its row of the batch and, as soon as that is known, its key."""
        data = key.encode()
        self._map[_KEY : _KEY + len(data)] = data
        self._size[0] = len(data)
        if self._numbers[1] != row:
            self._since = time.perf_counter()
        self._numbers[1] = row

    def lap(self, phase: Phase) -> None:
        """Say that a phase of the sample in hand is over."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._since
        self._since = now

    def alive(self) -> None:
        """Say that the sample in hand takes long, and does not hang."""
        self._numbers[0] += 1

    def beat(self) -> None:
        """Say that a sample is done, and none in hand."""
        self._size[0] = 0
        self._numbers[1] = -1
        self._numbers[0] += 1

    def say(self, words: str) -> None:
        """Leave last words."""
        data = words.encode(errors="replace")[: _BYTES - _WORDS]
        self._map[_WORDS : _WORDS + len(data)] = data

    # The broker's side.

    @property
    def beats(self) -> int:
        """How many signs of life there were, the first at the worker's own start."""
        return self._numbers[0]

    @property
    def row(self) -> int:
        """The row of the sample in hand, -1 between two."""
        return self._numbers[1]

    @property
    def key(self) -> str:
        """The key of the sample in hand, "" between two and while a shard is being opened."""
        return self._map[_KEY : _KEY + min(self._size[0], KEY_BYTES)].decode(errors="replace")

    @property
    def seconds(self) -> tuple[float, ...]:
        """How long the worker has spent in each `Phase`, over all its samples."""
        return tuple(self._seconds)

    @property
    def words(self) -> str:
        """The stack or the words that were left, "" for none."""
        return self._map[_WORDS:].partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        """Let go of the memory."""
        self._numbers.release()
        self._seconds.release()
        self._size.release()
        self._map.close()


class _Call(NamedTuple):
    file: str
    line: str
    function: str


def where(stack: str) -> str:
    """Return the innermost calls of a stack that `faulthandler` wrote, in the order of the calls.

    From where the user's code begins, or within ours where that was not reached; "" if there are none.
    """
    calls = [_Call(*found) for found in _FRAME.findall(stack)]  # the innermost first
    inside = list(takewhile(lambda call: call.file != f"{_OURS}/worker.py", calls))
    theirs = list(takewhile(lambda call: not call.file.startswith(f"{_OURS}/"), inside)) or inside
    said = [f"{Path(call.file).name}:{call.line} in {call.function}" for call in reversed(theirs[:_FRAMES])]
    return " -> ".join(["..."] * (len(theirs) > _FRAMES) + said)
