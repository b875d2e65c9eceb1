"""A server that is struck, and started again where it was."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from integration import processes

__all__ = ["Mill", "strike"]


class Mill:
    """``feedmill serve`` with ``args``. It keeps its port through all its lives; ``shared`` ones outlive a test."""

    def __init__(self, folder: Path, *args: str | Path, shared: bool = False) -> None:
        self._folder = folder
        self._args = args
        self._shared = shared
        self.served = self._start()
        self.url = self.served.url

    def again(self) -> None:
        """Start it again, once it has ended, and wait until it is ready."""
        self.served.process.wait(10)
        self.served = self._start("--bind", self.url)

    def stop(self) -> None:
        """End it for good, also what is only just being started or stopped."""
        strike(processes.descendants(self.broker), signal.SIGKILL)
        processes.stop(self.served)
        processes.SHARED.discard(self.served.process.pid)

    def kill(self) -> None:
        """End the broker as the kernel would, and wait until it has."""
        self.served.process.kill()
        self.served.process.wait(10)

    @property
    def broker(self) -> int:
        """The process that clients speak to."""
        return self.served.process.pid

    def fork_servers(self) -> list[int]:
        """Return the fork server, if there is one just now."""
        return _children(self.broker)

    def workers(self) -> list[int]:
        """Return the workers that there are just now."""
        return [pid for parent in self.fork_servers() for pid in _children(parent)]

    def mend(self, workers: int) -> None:
        """Wait until it has so many workers."""
        processes.wait_until(lambda: len(self.workers()) == workers, 30, "the workers are there again")

    def _start(self, *args: str) -> processes.Served:
        served = processes.start(self._folder, *self._args, *args)
        if self._shared:
            processes.SHARED.add(served.process.pid)
        return served


def _children(pid: int) -> list[int]:
    """Return what the kernel says of a process's children: without looking at all others, since chaos asks often."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def strike(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes, of which some may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
