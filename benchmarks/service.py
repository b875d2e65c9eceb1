"""A feedmill server as a child process, for contenders."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["FILL", "IMAGENET", "Running", "serving"]

FILL: Final = 120
"""Batches until a server's default memory has been written to once: from then on it is as it will be for hours."""

IMAGENET: Final = ("--preset", "imagenet-train")

_STOP_SECONDS: Final = 10.0


class Running(NamedTuple):
    """A server that is ready at ``url``; its processes descend from ``pid``."""

    url: str
    pid: int


@contextmanager
def serving(
    shards: Sequence[str], *options: str, workers: int, pipeline: Sequence[str] = IMAGENET
) -> Iterator[Running]:
    """Serve ImageNet's training pipeline, or the one that options name, while the block runs.

    Raises RuntimeError with the log if the server does not come up.

    Indexes are kept beside the shards, or in the user's cache, as for anybody.
    """
    command = [sys.executable, "-m", "feedmill", "serve", *shards, *pipeline]
    command += ["--bind", "tcp://127.0.0.1:*", "--workers", str(workers), *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment())
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("ready "):
                log.seek(0)
                raise RuntimeError(f"the server did not start:\n{log.read().decode(errors='replace')}")
            yield Running(line.split()[1], process.pid)
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)


def _environment() -> dict[str, str]:
    """Without settings of a user's own servers."""
    return {key: value for key, value in os.environ.items() if not key.startswith("FEEDMILL_")}


ROOT: Final = Path(__file__).parent.parent
"""The checkout: where contenders are started from."""
