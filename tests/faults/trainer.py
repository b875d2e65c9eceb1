"""Trainers as processes of their own (`faults.training`), and what they have written down."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from faults.oracle import Transform, expected
from faults.records import RECORD_BYTES, Record, read
from feedmill_protocol.plan import Plan
from integration.processes import environment

__all__ = ["Trainer", "assert_exact", "trainer"]


class Trainer:
    """A running trainer: its process, and the file of its records."""

    def __init__(self, folder: Path, name: str, urls: Sequence[str], stream: str, *options: str) -> None:
        self.path = folder / f"{name}.records"
        self.errors = folder / f"{name}.log"
        self.path.touch()
        env = environment(folder, {"PYTHONPATH": ":".join([*filter(None, sys.path)])})
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "faults.training", str(self.path), stream, *urls, *options],
                stdin=subprocess.PIPE,
                stderr=errors,
                env=env,
            )

    @property
    def batches(self) -> int:
        """How many batches have come so far."""
        return self.path.stat().st_size // RECORD_BYTES

    def records(self) -> list[Record]:
        """Return what has come so far."""
        return read(self.path)

    def end(self, timeout: float = 60.0) -> int:
        """Tell it that it is enough; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.process.wait(10)


def assert_exact(records: Sequence[Record], plan: Plan, transform: Transform) -> None:
    """Assert that what came are the batches of a plan, in order, from the first one on."""
    assert records, "there is something to compare"
    for number, record in enumerate(records):
        wanted = expected(plan, transform, *divmod(number, len(plan)))
        assert (record.epoch, record.batch, record.digest) == (wanted.epoch, wanted.batch, wanted.digest)


@contextmanager
def trainer(folder: Path, name: str, urls: Sequence[str], stream: str, *options: str) -> Iterator[Trainer]:
    """Run a trainer, and make sure that nothing of it is left."""
    running = Trainer(folder, name, urls, stream, *options)
    try:
        yield running
    finally:
        running.kill()
        if running.process.stdin is not None:
            running.process.stdin.close()
