"""Chaos: servers are killed, stopped, ended and started again, all the time, under trainers that go on.

Run as ``python -m faults.chaos --kills 1000 --batches 100000`` in ``tests``. Real processes: servers of tiny samples,
and trainers, ranks of one world. Everything that comes is compared with what `faults.oracle` computes. Another broker
is always left alone, so the trainers must go on; workers and fork servers are struck anywhere.
"""

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Final

import numpy as np

from faults import pipelines
from faults.mill import Mill, strike
from faults.oracle import expected, write_shards
from faults.records import Record
from faults.trainer import Trainer, trainer
from feedmill_protocol.plan import Plan

__all__ = ["Chaos", "Figures"]

WORKERS: Final = 2

QUIET: Final = 1.5
"""Seconds without a fault after a broker was killed, so that a wait can be told to be of that kill."""

CALM: Final = 1.0
"""Seconds for which all workers of a server must have been there before they are struck. A sample whose second worker
dies while at it is called bad, and on a busy machine the first sample of a worker may take a while."""

HANG: Final = 20.0
"""Seconds without a batch, though a server is whole, that are called a hang."""

PAUSE: Final = 0.01

_log = logging.getLogger("chaos")


@dataclass
class Figures:
    """What a run has shown. Times are in milliseconds: median, 99th percentile and the most."""

    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    hangs: int = 0
    ended: list[str] = field(default_factory=list)
    """Trainers that ended with an error: the last line of it."""
    broker_kills_measured: int = 0
    next_batch_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """From a broker's kill to the next batch that a trainer gets."""
    longest_wait_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The longest that a trainer waits for one batch in the time after a broker's kill."""

    @property
    def sound(self) -> bool:
        """Whether nothing is missing, double, wrong or stuck."""
        return not (self.lost or self.twice or self.wrong or self.hangs or self.ended)


@dataclass(eq=False)
class _Target:
    """A server under fire: what is being done to it just now."""

    mill: Mill
    stopped: list[int] = field(default_factory=list)
    until: float = 0.0
    """When what is stopped goes on."""
    coming: "Future[None] | None" = None
    whole_since: float = inf

    @property
    def up(self) -> bool:
        """Whether the broker runs."""
        return self.coming is None and self.mill.broker not in self.stopped

    @property
    def whole(self) -> bool:
        """Whether all of it runs."""
        return self.up and not self.stopped and len(self.mill.workers()) == WORKERS


@dataclass(eq=False)
class _Kill:
    """A broker's end: when, and when the next fault came."""

    at: float
    until: float | None = None


class Chaos:
    """``servers`` servers, ``ranks`` trainers with a step of ``step`` seconds, a fault every ``every`` on average."""

    def __init__(
        self, folder: Path, *, servers: int, ranks: int, every: float, step: float, seed: int, samples: int = 1000
    ) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._every = every
        self._step = step
        self._ranks = ranks
        self._shards = write_shards(folder, 10, samples // 10)
        self._counts = np.full(10, samples // 10, np.uint32)
        self._servers = servers
        self._targets: list[_Target] = []
        self._trainers: list[Trainer] = []
        self._struck: Counter[str] = Counter()
        self._kills: list[_Kill] = []
        self._hangs = 0
        self._faults: dict[str, tuple[int, Callable[[_Target], bool]]] = {
            "kill a worker": (36, lambda t: _kill(self._one(t.mill.workers()))),
            "kill all workers": (7, lambda t: _kill(t.mill.workers())),
            "stop a worker": (10, lambda t: self._stop(t, self._one(t.mill.workers()), 1.5)),
            "kill the fork server": (5, lambda t: _kill(t.mill.fork_servers())),
            "stop the fork server": (7, lambda t: self._stop(t, t.mill.fork_servers(), 1.5)),
            "stop the broker": (20, lambda t: self._stop(t, [t.mill.broker], 4.0)),
            "kill the broker": (12, self._kill_broker),
            "end the broker": (3, self._end_broker),
        }

    def run(self, kills: int, batches: int, seconds: float = inf) -> Figures:
        """Strike so often, and go on until so many batches have come, or so much time has passed."""
        begun = time.monotonic()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._servers))
            self._pool = pool
            self._targets = [_Target(mill) for mill in pool.map(lambda _: self._open(stack), range(self._servers))]
            stack.callback(self._mend)
            urls = [target.mill.url for target in self._targets]
            for rank in range(self._ranks):
                options = ("--rank", str(rank), "--ranks", str(self._ranks), "--step", str(self._step))
                running = trainer(self._folder, f"rank-{rank}", urls, "train", *options, "--prefetch", "2")
                self._trainers.append(stack.enter_context(running))
            self._wait(60, lambda: all(t.batches for t in self._trainers))
            self._rage(kills, batches, begun + seconds)
            self._mend()
            ended = [_last_words(t) for t in self._trainers if t.process.poll() is not None or t.end()]
        figures = Figures(time.monotonic() - begun, dict(self._struck), hangs=self._hangs, ended=ended)
        self._judge(figures)
        return figures

    def _open(self, stack: ExitStack) -> Mill:
        args = ("--pipeline", f"{pipelines.__file__}:TINY", "--workers", str(WORKERS), "--memory", "64MiB")
        mill = Mill(self._folder, *self._shards, *args, shared=True)
        stack.callback(mill.stop)
        return mill

    # Striking.

    def _rage(self, kills: int, batches: int, end: float) -> None:
        due = time.monotonic()
        seen = [(0, due)] * self._ranks
        while all(t.process.poll() is None for t in self._trainers) and (now := time.monotonic()) < end:
            if sum(self._struck.values()) >= kills and sum(t.batches for t in self._trainers) >= batches:
                break
            for target in self._targets:
                if target.stopped and now >= target.until:
                    self._go_on(target)
                if target.coming and target.coming.done():
                    target.coming.result()
                    target.coming = None
                target.whole_since = min(target.whole_since, now) if target.whole else inf
            if now >= due and sum(self._struck.values()) < kills and (name := self._strike()):
                quiet = QUIET if name == "kill the broker" else self._random.expovariate(1 / self._every)
                due = now + quiet
                _log.debug("%s", name)
            seen = [self._watch(t, *before, now) for t, before in zip(self._trainers, seen, strict=True)]
            time.sleep(PAUSE)

    def _strike(self) -> str:
        """Do harm that is possible just now; return its name, or "" if there is none."""
        (name,) = self._random.choices(list(self._faults), [weight for weight, _ in self._faults.values()])
        target = self._random.choice(self._targets)
        if not target.up or target.stopped:
            return ""
        others = [other for other in self._targets if other is not target]
        spared = any(o.whole for o in others) if name == "kill the broker" else any(o.up for o in others)
        now = time.monotonic()
        if not spared if "broker" in name else now < target.whole_since + CALM:
            return ""
        if not self._faults[name][1](target):
            return ""
        if self._kills and self._kills[-1].until is None and self._kills[-1].at < now:
            self._kills[-1].until = now
        self._struck[name] += 1
        return name

    def _one(self, pids: list[int]) -> list[int]:
        return [self._random.choice(pids)] if pids else []

    def _stop(self, target: _Target, pids: list[int], most: float) -> bool:
        target.stopped = pids
        target.until = time.monotonic() + self._random.uniform(0.05, most)
        strike(pids, signal.SIGSTOP)
        return bool(pids)

    def _go_on(self, target: _Target) -> None:
        strike(target.stopped, signal.SIGCONT)
        target.stopped = []

    def _kill_broker(self, target: _Target) -> bool:
        self._kills.append(_Kill(time.monotonic()))
        return self._end_broker(target, signal.SIGKILL)

    def _end_broker(self, target: _Target, number: signal.Signals = signal.SIGTERM) -> bool:
        strike([target.mill.broker], number)
        target.coming = self._pool.submit(target.mill.again)
        return True

    def _mend(self) -> None:
        """Let everything run again."""
        for target in self._targets:
            self._go_on(target)
            if target.coming:
                target.coming.result()
                target.coming = None

    def _watch(self, running: Trainer, batches: int, since: float, now: float) -> tuple[int, float]:
        """Look whether a trainer got on; return how far it is, and when that was first seen."""
        if (found := running.batches) > batches:
            return found, now
        if all(target.whole_since == inf for target in self._targets):
            return batches, now  # nobody could make one
        if now - since < HANG:
            return batches, since
        self._hangs += 1
        _log.error("no batch for %s for %g s: %s", running.path.stem, HANG, [asdict(s) for s in self._states()])
        return batches, now

    def _states(self) -> "list[_State]":
        return [_State(t.mill.url, t.up, t.stopped, t.mill.workers()) for t in self._targets]

    def _wait(self, timeout: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or any(t.process.poll() is not None for t in self._trainers):
                raise TimeoutError(f"the trainers do not begin: {[_last_words(t) for t in self._trainers]}")
            time.sleep(PAUSE)

    # Judging.

    def _judge(self, figures: Figures) -> None:
        records = [t.records() for t in self._trainers]
        for rank, came in enumerate(records):
            plan = Plan(self._counts, batch_size=pipelines.TINY.batch_size, rank=rank, world_size=self._ranks)
            _compare(figures, plan, came)
        waits = [wait for kill in self._kills for came in records if (wait := _waits(came, kill))]
        figures.broker_kills_measured = len(self._kills)
        if waits:
            figures.next_batch_ms = _percentiles([soonest for soonest, _ in waits])
            figures.longest_wait_ms = _percentiles([longest for _, longest in waits])


@dataclass(frozen=True)
class _State:
    url: str
    up: bool
    stopped: list[int]
    workers: list[int]


def _kill(pids: list[int]) -> bool:
    strike(pids, signal.SIGSTOP)  # all at once: none may go on with what another has left
    strike(pids, signal.SIGKILL)
    return bool(pids)


def _compare(figures: Figures, plan: Plan, came: Sequence[Record]) -> None:
    """Compare what came with what should have: batch after batch, epoch after epoch."""
    figures.batches += len(came)
    found = Counter((record.epoch, record.batch) for record in came)
    figures.twice += sum(times - 1 for times in found.values())
    order = []
    for number in range(len(found)):
        epoch, step = divmod(number, len(plan))
        wanted = expected(plan, pipelines.tiny, epoch, step)
        order.append((wanted.epoch, wanted.batch, wanted.digest))
    figures.lost += sum((epoch, batch) not in found for epoch, batch, _ in order)
    figures.wrong += sum(
        (record.epoch, record.batch, record.digest) != wanted for record, wanted in zip(came, order, strict=False)
    )


def _waits(came: Sequence[Record], kill: _Kill) -> tuple[float, float] | None:
    """Return how soon after a broker's kill a batch came, and the longest wait that began before the next fault."""
    until = kill.at + QUIET if kill.until is None else kill.until
    after = [record for record in came if record.came > kill.at and record.asked < until]
    if not after:
        return None
    return after[0].came - kill.at, max(record.came - max(record.asked, kill.at) for record in after)


def _percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    median, high, most = np.percentile(seconds, [50, 99, 100]) * 1000
    return round(float(median), 2), round(float(high), 2), round(float(most), 2)


def _last_words(running: Trainer) -> str:
    return (running.errors.read_text().splitlines() or ["no error is known"])[-1]


def _table(figures: Figures) -> str:
    rows = [
        ("seconds", f"{figures.seconds:.0f}"),
        ("faults", f"{sum(figures.faults.values()):,}"),
        *((f"  {name}", f"{number:,}") for name, number in sorted(figures.faults.items())),
        ("batches", f"{figures.batches:,}"),
        ("lost", str(figures.lost)),
        ("twice", str(figures.twice)),
        ("wrong bits", str(figures.wrong)),
        ("hangs", str(figures.hangs)),
        ("trainers that failed", str(len(figures.ended))),
        ("broker killed → next batch, ms", "p50 {}, p99 {}, max {}".format(*figures.next_batch_ms)),
        ("broker killed: longest wait, ms", "p50 {}, p99 {}, max {}".format(*figures.longest_wait_ms)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def main() -> int:
    """Run chaos from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="faults of all kinds")
    parser.add_argument("--batches", type=int, default=100_000, help="batches at least, of all trainers")
    parser.add_argument("--seconds", type=float, default=inf, help="at most")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--every", type=float, default=0.9, help="seconds between two faults, on average")
    parser.add_argument("--step", type=float, default=0.01, help="seconds of a training step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures to")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory(prefix="feedmill-chaos-") as folder:
        chaos = Chaos(
            Path(folder), servers=args.servers, ranks=args.ranks, every=args.every, step=args.step, seed=args.seed
        )
        figures = chaos.run(args.kills, args.batches, args.seconds)
    arguments = {name: str(value) for name, value in vars(args).items()}
    found = json.dumps({"cores": os.cpu_count(), "arguments": arguments, **asdict(figures)}, indent=1)
    if args.json:
        args.json.write_text(found)
    print(_table(figures))  # noqa: T201 # a command
    print(found)  # noqa: T201
    return 0 if figures.sound else 1


if __name__ == "__main__":
    sys.exit(main())
