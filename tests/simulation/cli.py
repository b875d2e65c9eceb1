"""``python -m simulation --seeds A..B``: play many worlds, or look at one.

Worlds are spread over processes. What fails is printed with its seed, and what happened is counted in the end.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from os import sched_getaffinity
from typing import Final

from .mutants import MUTANTS
from .scenario import draw
from .world import THE_REAL_THING, Failure, play

__all__ = ["main"]

CHUNK: Final = 50
"""Worlds that are handed to a process at once: about a second's work."""

ENOUGH: Final = 10
"""Failures after which no more are looked for."""


@dataclass(slots=True)
class Tally:
    """What became of some worlds."""

    worlds: int = 0
    seconds: float = 0.0
    reached: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count in what became of others."""
        self.worlds += other.worlds
        self.seconds += other.seconds
        self.reached += other.reached
        self.failures += other.failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description="Play worlds that go wrong on purpose.")
    parser.add_argument("--seeds", type=_seeds, default=range(1000), metavar="A..B", help="which worlds, both included")
    parser.add_argument("--mutant", choices=MUTANTS, help="put a known bug in, to see it found")
    parser.add_argument("--jobs", type=int, default=len(sched_getaffinity(0)), help="processes (one for each core)")
    parser.add_argument("--trace", action="store_true", help="print all that happens; for one seed")
    options = parser.parse_args(arguments)
    if options.trace:
        return _trace(options.seeds[0], options.mutant)
    begun = time.monotonic()
    tally = Tally()
    for part in _tallies(options.seeds, options.mutant, options.jobs):
        tally.add(part)
        for failure in part.failures:
            print(f"\n{failure}", flush=True)
        if len(tally.failures) >= ENOUGH:
            break
    took = time.monotonic() - begun
    print(f"{tally.worlds:,} worlds, {tally.seconds:,.0f} s of theirs in {took:.0f} s: {len(tally.failures)} failed")
    print(", ".join(f"{count:,} {what}" for what, count in tally.reached.most_common()))
    return int(bool(tally.failures))


def _seeds(text: str) -> range:
    if (found := re.fullmatch(r"(\d+)\.\.(\d+)", text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two seeds, such as 0..999")
    return range(int(found[1]), int(found[2]) + 1)


def _trace(seed: int, mutant: str | None) -> int:
    print(replace(draw(seed), faults=()))  # those are told when they come
    try:
        play(seed, MUTANTS[mutant] if mutant else THE_REAL_THING, print)
    except Failure as failure:
        print(failure)
        return 1
    return 0


def _tallies(seeds: range, mutant: str | None, jobs: int) -> Iterator[Tally]:
    """Play all worlds, and yield what became of them in the order in which that is known."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        yield from (_play(chunk, mutant) for chunk in chunks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures: list[Future[Tally]] = [pool.submit(_play, chunk, mutant) for chunk in chunks]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _play(seeds: range, mutant: str | None) -> Tally:
    tally = Tally()
    for seed in seeds:
        tally.worlds += 1
        try:
            outcome = play(seed, MUTANTS[mutant] if mutant else THE_REAL_THING)
        except Failure as failure:
            tally.failures.append(str(failure))
        else:
            tally.seconds += outcome.seconds
            tally.reached += outcome.reached
    return tally
