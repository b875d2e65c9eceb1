"""What a tree of processes costs: CPU time and memory of this process and all its descendants, from /proc.

Python's standard library alone, since it also runs in other interpreters than ours.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["adopt_orphans", "cpu_seconds", "descendants", "pss_bytes"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER: Final = 36  # <sys/prctl.h>


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none leaves the tree."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int | None = None) -> list[int]:
    """Return a process (by default this one) and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [os.getpid() if root is None else root]
    for process in found:  # it grows while we walk
        found.extend(children.get(process, ()))
    return found


def cpu_seconds(processes: Iterable[int]) -> float:
    """Return the CPU time of processes, in user and kernel mode, with that of children they have waited for."""
    return sum(int(ticks) for process in processes for ticks in _stat(process)[11:15]) / _TICKS


def pss_bytes(processes: Iterable[int]) -> int:
    """Return the memory of processes, where what n of them share counts for 1/n each (PSS)."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may hold anything; none for one that has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
