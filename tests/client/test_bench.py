import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from feedmill import bench
from feedmill.bench import Report, describe, measure
from feedmill_protocol.errors import ServerUnavailable, UsageError


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Batch:
    epoch: int


@dataclass(frozen=True)
class Stats:
    samples: int
    bytes: int
    waited: float


@dataclass
class Feed:
    """Batches of two samples and 1,000 bytes, each waited for as long as `waits` says; 0.25 s pass besides."""

    clock: Clock
    waits: list[float] = field(default_factory=list)
    epoch_batches: int = 4
    epoch: int = 0
    given: int = 0
    waited: float = 0.0

    def batches(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for _ in range(self.epoch_batches):
            wait = self.waits[self.given] if self.given < len(self.waits) else 0.75
            self.given += 1
            self.waited += wait
            self.clock.now += wait + 0.25
            yield Batch(epoch)

    def stats(self) -> Stats:
        return Stats(samples=2 * self.given, bytes=1000 * self.given, waited=self.waited)


def report_of(**changes: float) -> Report:
    values = {"batches": 10, "samples": 640, "bytes": 5_000_000, "epochs": 2, "elapsed": 2.0, "waited": 1.5}
    values |= {"cpu": 0.5, "latency_p50": 0.012, "latency_p99": 0.0345}
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_batches_samples_bytes_and_time_are_counted() -> None:
    """Five batches of a second each are ten samples and 5,000 bytes in five seconds."""
    clock = Clock()
    report = measure(Feed(clock), batches=5, warmup=0, clock=clock, cpu=Clock())
    assert (report.batches, report.samples, report.bytes, report.elapsed) == (5, 10, 5000, 5.0)
    assert report.samples_per_second == 2
    assert report.bytes_per_second == 1000


def test_the_warm_up_does_not_count() -> None:
    """What the first batches cost shows in no figure."""
    clock = Clock()
    report = measure(Feed(clock, waits=[50.0, 60.0]), batches=3, warmup=2, clock=clock, cpu=Clock())
    assert (report.batches, report.bytes, report.elapsed, report.waited) == (3, 3000, 3.0, 2.25)
    assert report.latency_p99 == 1.0


def test_a_measurement_in_seconds_ends_with_the_first_batch_after_them() -> None:
    """Three batches of a second fit into two and a half seconds and a bit."""
    clock = Clock()
    report = measure(Feed(clock), seconds=2.5, warmup=0, clock=clock, cpu=Clock())
    assert (report.batches, report.elapsed) == (3, 3.0)


def test_epochs_follow_one_another() -> None:
    """Nine batches of epochs of four touch three of them; the warm-up's epoch counts only where it goes on."""
    clock = Clock()
    assert measure(Feed(clock), batches=9, warmup=0, clock=clock, cpu=Clock()).epochs == 3
    assert measure(Feed(clock), batches=4, warmup=4, clock=clock, cpu=Clock()).epochs == 1


def test_time_is_divided_into_waiting_and_the_rest() -> None:
    """What the feed waited for data is told from what passed besides."""
    clock = Clock()
    report = measure(Feed(clock), batches=4, warmup=0, clock=clock, cpu=Clock())
    assert (report.waited, report.elapsed) == (3.0, 4.0)


def test_latencies_are_those_of_single_batches() -> None:
    """One slow batch of hundred moves the p99 and not the p50."""
    clock = Clock()
    report = measure(Feed(clock, waits=[0.75] * 99 + [100.0]), batches=100, warmup=0, clock=clock, cpu=Clock())
    assert report.latency_p50 == 1.0
    assert 1.0 < report.latency_p99 < 100.25


def test_cpu_time_is_that_of_the_measured_batches() -> None:
    """The CPU clock is read after the warm-up and at the end."""
    clock, cpu = Clock(), iter([7.0, 9.0])
    report = measure(Feed(clock), batches=8, clock=clock, cpu=lambda: next(cpu))
    assert report.cpu == 2.0
    assert report.cpu_per_batch == 0.25


def test_an_epoch_without_batches_is_an_error_and_no_endless_loop() -> None:
    """A stream smaller than its batch size under last='drop' has none."""
    clock = Clock()
    with pytest.raises(UsageError, match="an epoch of this stream holds no batch"):
        measure(Feed(clock, epoch_batches=0), batches=1, clock=clock, cpu=Clock())


@pytest.mark.parametrize("limits", [{}, {"batches": 0}, {"seconds": 0.0}, {"seconds": 1.0, "warmup": -1}])
def test_a_measurement_of_nothing_is_refused(limits: dict[str, int]) -> None:
    """Limits that are missing or below one batch are misuse."""
    with pytest.raises(UsageError, match=r"without an end|nothing to measure"):
        measure(Feed(Clock()), **limits)  # type: ignore[arg-type]


def test_an_error_of_the_feed_passes_through() -> None:
    """A server that goes away ends the measurement with the feed's own error."""

    class Broken(Feed):
        def batches(self) -> Iterator[Batch]:
            yield Batch(0)
            raise ServerUnavailable(5.0, {})

    with pytest.raises(ServerUnavailable):
        measure(Broken(Clock()), batches=3, warmup=0)


def test_a_report_reads_well() -> None:
    """Every figure has its unit, and the shares of the time add up."""
    assert describe(report_of()).splitlines() == [
        "samples     320/s  (640 in 10 batches of 2 epochs, 2.0 s)",
        "data        2.5 MB/s",
        "a batch     p50 12.00 ms, p99 34.50 ms",
        "client CPU  50.00 ms a batch, 25 % of a core",
        "time        75.0 % waiting for data, 25.0 % in the loop around it",
    ]


def test_json_holds_the_figures_and_the_rates() -> None:
    """Scripts read the same report, in plain units."""
    figures = json.loads(bench._as_json(report_of()))
    assert figures["samples"] == 640
    assert figures["samples_per_second"] == 320
    assert figures["cpu_per_batch"] == 0.05


def test_the_command_knows_its_options() -> None:
    """Batches and seconds exclude each other; several servers may be named."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["tcp://a:1", "tcp://b:1", "--batches", "9", "--order", "arrival", "--json"])
    assert (args.urls, args.batches, args.seconds, args.order) == (["tcp://a:1", "tcp://b:1"], 9, None, "arrival")
    with pytest.raises(SystemExit):
        parser.parse_args(["tcp://a:1", "--batches", "9", "--seconds", "1"])
