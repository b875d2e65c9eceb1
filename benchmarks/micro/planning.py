"""The plan: any batch of ImageNet's 1.28 million samples, and a billion samples in a million shards."""

import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import contest
from feedmill_protocol.plan import Plan

_BATCHES = 300


def main() -> None:
    """Run it."""
    contest.entry()
    contest.say(**_imagenet(), **_billion())


def _imagenet() -> dict[str, float]:
    counts = np.full(1281, 1000, np.uint32)
    random = np.random.default_rng(0)
    cold, warm = [], []
    for epoch in range(5):
        plan = Plan(counts, batch_size=64, seed=1)
        cold.append(_seconds(plan, epoch, 7))
        warm += [_seconds(plan, epoch, int(step)) for step in random.integers(len(plan), size=_BATCHES)]
    plan = Plan(counts, batch_size=64, seed=1)
    in_order = [_seconds(plan, 0, step) for step in range(_BATCHES)]
    return {
        "batch_ms": 1e3 * median(warm),
        "batch_cold_ms": 1e3 * max(cold),
        "batch_in_order_ms": 1e3 * sum(in_order) / len(in_order),
    }


def _billion() -> dict[str, float]:
    counts = np.full(1_000_000, 1000, np.uint32)
    before = _resident()
    started = time.perf_counter()
    plan = Plan(counts, batch_size=64, seed=1)
    plan.batch(0, 0)
    opened = time.perf_counter() - started
    return {
        "billion_open_s": opened,
        "billion_mb": (_resident() - before) / 1e6,
        "billion_batch_ms": 1e3 * _seconds(plan, 0, len(plan) // 2),
    }


def _seconds(plan: Plan, epoch: int, step: int) -> float:
    started = time.perf_counter()
    plan.batch(epoch, step)
    return time.perf_counter() - started


def _resident() -> int:
    """Return the most memory that this process has had, at any time."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    main()
