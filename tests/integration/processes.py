"""Servers as processes of their own, and what Linux knows of processes: for tests that start, watch and kill them."""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READY_SECONDS = 60.0
"""A start takes 3 s, most of it `import torch`; a machine that does other things takes several times as long."""

SHARED: set[int] = set()
"""Servers that live as long as the session."""


@dataclass(frozen=True)
class Served:
    """A running server: its ``url``, its ``process``, and the file ``stderr`` that it logs to."""

    url: str
    process: subprocess.Popen[str]
    stderr: Path

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.stderr.read_text()

    def fork_server(self) -> int:
        """Return the process id of its fork server."""
        (pid,) = children(self.process.pid)
        return pid

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        return children(self.fork_server())

    def signal(self, number: int) -> None:
        """Send a signal to the broker."""
        self.process.send_signal(number)


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a command that keeps its caches in a folder and has no settings but ``extra``."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FEEDMILL_")}
    return inherited | {"XDG_CACHE_HOME": str(folder), "PYTHONUNBUFFERED": "1"} | dict(extra or {})


def command(*args: str | Path) -> list[str]:
    """Return the command line of ``feedmill`` with these arguments."""
    return [sys.executable, "-m", "feedmill", *map(str, args)]


def start(folder: Path, *args: str | Path, env: Mapping[str, str] | None = None, within: Sequence[str] = ()) -> Served:
    """Start ``feedmill serve`` on a port of its own unless ``args`` say where, and wait until it is ready.

    ``within`` is a command that runs another, in its own process.
    """
    given = (*args,) if "--bind" in args or (env and "FEEDMILL_BIND" in env) else (*args, "--bind", "tcp://127.0.0.1:*")
    stderr = folder / f"server-{time.monotonic_ns()}.log"
    with stderr.open("w") as log:
        process = subprocess.Popen(
            [*within, *command("serve", *given)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(folder, env),
        )
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            line = read_line(stdout, READY_SECONDS)
        assert line.startswith("ready "), f"the server ended with {process.wait(READY_SECONDS)}: {stderr.read_text()}"
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Served(line.split()[1], process, stderr)


def stop(served: Served) -> None:
    """End a server, whatever state it is in, and make sure that nothing of it is left."""
    left = descendants(served.process.pid)
    if served.process.poll() is None:
        served.process.send_signal(signal.SIGCONT)
        served.process.kill()
        served.process.wait(10)
    wait_until(lambda: not any(map(alive, left)), 5, "the workers have ended with their broker")


def read_line(stream: IO[str], timeout: float) -> str:
    """Return the next line of an unbuffered pipe, or what there is of it when the pipe ends."""
    deadline = time.monotonic() + timeout
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"nothing was written for {timeout} s"
            if selector.select(remaining):
                if not (byte := os.read(stream.fileno(), 1)):
                    break
                line += byte
    return line.decode()


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Look at a condition until it holds, and fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not after {timeout} s: {what}"
        time.sleep(0.01)


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    known = _stat(pid)
    return known is not None and known[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Return the running children of a process, the oldest first."""
    pids = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [p for p in pids if (known := _stat(p)) and known[1] == pid and known[0] not in "ZX"]


def descendants(pid: int) -> list[int]:
    """Return the running children of a process, and theirs."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found
