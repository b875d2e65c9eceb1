"""Commands of ``feedmill`` that are run to their end in this process: torch takes seconds to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from feedmill.cli import main

__all__ = ["Ended", "Run", "runner"]


class Ended(NamedTuple):
    """A command that has ended: its exit code, and what it wrote."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


def runner(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[Any]) -> Run:
    """Return what runs a command in a folder, with a cache of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*args: object) -> Ended:
        code = main([*map(str, args)])
        return Ended(code, *capture.readouterr())

    return run
