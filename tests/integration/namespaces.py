"""Two network namespaces that a cable joins, and how fast the cable is. Nothing outside of them is touched.

They have the kernel's own TCP; only the cable is made up. Making them takes root's rights, and iproute2.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self, TypeVar

import pytest

__all__ = ["FAR", "Cable"]

FAR: Final = "10.0.0.2"
"""The address of the far end."""

_NEAR: Final = "10.0.0.1"

_CLONE_NEWNET: Final = 0x40000000

_T = TypeVar("_T")


class Cable:
    """Joins a near and a far namespace. A context manager; skips the test where it may not be made."""

    def __init__(self) -> None:
        self._ends = {end: f"feedmill-{os.getpid()}-{end}" for end in ("near", "far")}
        self._made = ExitStack()

    def __enter__(self) -> Self:
        near, far = self._ends.values()
        with ExitStack() as stack:
            for namespace in (near, far):
                _skip_unless(_run("ip", "netns", "add", namespace))
                stack.callback(_run, "ip", "netns", "delete", namespace)
            link = ("ip", "-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
            _skip_unless(_run(*link))
            for namespace, address in ((near, _NEAR), (far, FAR)):
                _skip_unless(_run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", "cable"))
                _skip_unless(_run("ip", "-n", namespace, "link", "set", "cable", "up"))
            self._made = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def far(self) -> tuple[str, ...]:
        """The command that runs another at the far end."""
        return ("ip", "netns", "exec", self._ends["far"])

    def limit(self, rate: str) -> None:
        """Let no more come from the far end: ``rate`` in words of tc's. A bucket of 64 KiB, half a second of queue."""
        bucket = ("tbf", "rate", rate, "burst", "64kb", "latency", "500ms")
        _skip_unless(_run("tc", "-n", self._ends["far"], "qdisc", "replace", "dev", "cable", "root", *bucket))

    def near(self, act: Callable[[], _T]) -> _T:
        """Do something at the near end: in a thread there, since a process may have threads in many namespaces."""
        done: list[_T] = []

        def go() -> None:
            with Path("/run/netns", self._ends["near"]).open() as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
            done.append(act())

        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
        assert done, "what was to be done at the near end has failed"
        return done[0]


def _run(*command: str) -> str:
    """Run a command; return what it complained of, "" if it went well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"there is no {command[0]}"
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} ended with {done.returncode}"


def _skip_unless(complaint: str) -> None:
    if complaint:
        pytest.skip(f"no network namespaces with a limited cable here: {complaint}")
