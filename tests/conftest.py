"""Servers for tests, and the rule that nothing of a test may outlive it: no process, thread, socket, pipe or slot."""

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration import processes
from integration.processes import Served

# A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SETTLE_SECONDS = 3.0
"""For what is on its way out: threads that were told to end, sockets that libzmq closes in its own time."""

KINDS = frozenset({"socket", "pipe", "anon_inode", "/memfd"})
"""Descriptors that are counted. Files are not: Python and torch keep some."""


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves something behind; servers that the session shares may stay."""
    children, descriptors = _children(), _descriptors()
    yield
    leaks: list[str] = []

    def settled() -> bool:
        leaks[:] = [f"process {pid}" for pid in _children() - children]
        leaks.extend(f"thread {t.name}" for t in threading.enumerate() if t.name.startswith("feedmill"))
        leaks.extend(f"{kind} descriptor" for kind in (_descriptors() - descriptors).elements())
        return not leaks

    if not settled():
        gc.collect()  # what only a cycle holds is no leak
        try:
            processes.wait_until(settled, SETTLE_SECONDS, "nothing is left")
        except AssertionError:
            pytest.fail(f"the test leaves behind: {', '.join(leaks)}")


def _children() -> set[int]:
    return set(processes.children(os.getpid())) - processes.SHARED


def _descriptors() -> Counter[str]:
    """Count the open descriptors of each of `KINDS`."""
    kinds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            kind = entry.readlink().as_posix().partition(":")[0]
        except FileNotFoundError:  # the descriptor of this very listing
            continue
        kinds[kind] += kind in KINDS
    return kinds


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start ``feedmill serve`` with any arguments; it has ended when the test has."""
    with ExitStack() as stack:

        def start(*args: str | Path, **env: str) -> Served:
            served = processes.start(tmp_path, *args, env=env)
            stack.callback(processes.stop, served)
            return served

        yield start
