"""Interleaved rounds: every contender once, then all again; and the file that keeps what they said.

The file is written after every run. Started again with the same file and settings, a benchmark goes on where it was
stopped: what has been measured is not measured again.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from .registry import Contender
from .service import ROOT

__all__ = ["Results", "Settings", "missing", "run"]

_PAUSE: Final = 1.0
"""Seconds between runs, for the kernel to clear up behind the last one."""

_WORDS: Final = 1500
"""Characters kept of a failed contender's last words."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs of one file have in common."""

    shards: tuple[str, ...]
    images: int
    workers: int
    batch: int


@dataclass(slots=True)
class Results:
    """What was measured. A run is a dict of contender, round, and either figures or error."""

    settings: Settings
    machine: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        given = found["settings"]
        return cls(Settings(**given | {"shards": tuple(given["shards"])}), found["machine"], found["runs"])

    @classmethod
    def open(cls, path: Path, settings: Settings) -> Self:
        """Go on with a file, or begin a new one. Raises ValueError for a file of other settings."""
        if not path.exists():
            return cls(settings, machine())
        results = cls.load(path)
        if results.settings != settings:
            raise ValueError(f"{path} was measured with {results.settings}, not {settings}; use another --out")
        return results

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def has(self, contender: str, number: int) -> bool:
        """Tell whether a contender has been measured in a round."""
        return any(r["contender"] == contender and r["round"] == number and "figures" in r for r in self.runs)

    def values(self, contender: str, figure: str) -> list[float]:
        """Return a figure of a contender, from every round that has it."""
        return [
            run["figures"][figure]
            for run in self.runs
            if run["contender"] == contender and figure in run.get("figures", ())
        ]


def machine() -> dict[str, Any]:
    """Describe this machine, as far as figures depend on it."""
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def missing(contender: Contender, python: str) -> list[str]:
    """Return the packages that a contender needs and an interpreter does not have."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError: print(name)\n"
    )
    try:
        said = subprocess.run(
            [python, "-c", code, *contender.needs], capture_output=True, text=True, check=True, env=_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return [python]
    return said.stdout.split()


def run(
    results: Results,
    contenders: Sequence[Contender],
    rounds: int,
    pythons: Mapping[str, str],
    cache: Path,
    after: Callable[[dict[str, Any]], None],
) -> None:
    """Run what has not been run yet; call ``after`` with each run."""
    for number in range(rounds):
        for contender in contenders:
            if results.has(contender.name, number):
                continue
            began = time.monotonic()
            said = _run(contender, results.settings, pythons.get(contender.family, sys.executable), cache)
            run = {"contender": contender.name, "round": number, "load": os.getloadavg()[0]}
            results.runs.append(run | {"total_s": round(time.monotonic() - began, 1)} | said)
            after(results.runs[-1])
            time.sleep(_PAUSE)


def _run(contender: Contender, settings: Settings, python: str, cache: Path) -> dict[str, Any]:
    command = [python, "-m", f"benchmarks.{contender.module}", *settings.shards]
    command += ["--images", str(settings.images), "--workers", str(settings.workers), "--batch", str(settings.batch)]
    command += ["--dtype", contender.dtype, "--variant", contender.variant, "--cache", str(cache)]
    # Files, not pipes: a process that it leaves behind must not hold us up.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env=_environment(),
            start_new_session=True,
        )
        try:
            process.wait(contender.seconds)
            ended = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {contender.seconds:g} s"
        finally:
            with suppress(ProcessLookupError):  # whatever is left of its session
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        for line in out:
            if line.startswith('{"figures"'):
                return dict(json.loads(line))
        return {"error": f"{ended}: {err.read()[-_WORDS:].strip()}"}


def _environment() -> dict[str, str]:
    """One thread for the libraries that would start one for each core: workers are the parallelism, for everybody."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads
