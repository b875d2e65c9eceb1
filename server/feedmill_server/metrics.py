"""The metrics of a server, for Prometheus: made anew of the latest snapshot whenever they are asked for.

Names after https://prometheus.io/docs/practices/naming; `docs/monitoring.md` says what they mean. Labels have values
that are written in this package, never data's or clients'.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from .snapshot import STAGES, Snapshot

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """What a server called ``server`` has done, by the snapshot that ``latest`` returns; and its process."""

    def __init__(self, server: str, latest: Callable[[], Snapshot]) -> None:
        self._about = {"server": server, "version": version("feedmill")}
        self._latest = latest
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all of it in the text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        seen = self._latest()
        yield InfoMetricFamily("feedmill_server", "The server, and the release that it runs.", self._about)
        yield from _counters(seen)
        yield from _gauges(seen)


def _counters(seen: Snapshot) -> Iterator[Metric]:
    tally = seen.tally
    for name, text, value in (
        ("batches", "Batches sent.", tally.batches),
        ("samples", "Samples sent.", tally.samples),
        ("bytes", "Bytes of batches sent.", tally.payload),
        ("cache_hits", "Batches sent that had been made before.", tally.cache_hits),
        ("failed_batches", "Requests answered with the error of a sample.", tally.failed),
        ("made_samples", "Samples that workers have reported on, good or bad.", tally.made),
        ("worker_restarts", "Workers started in place of others.", seen.restarts),
    ):
        yield CounterMetricFamily(f"feedmill_{name}", text, value)
    skipped = CounterMetricFamily("feedmill_skipped_samples", "Samples left out of batches.", labels=["reason"])
    for reason, count in sorted(tally.skipped.items()):
        skipped.add_metric([reason], count)
    yield skipped
    text = "Seconds of workers at samples (read, decode, transform), and of batches on their way (send)."
    stages = CounterMetricFamily("feedmill_stage_seconds", text, labels=["stage"])
    for stage, seconds in zip(STAGES, seen.last.seconds, strict=True):
        stages.add_metric([stage], seconds)
    yield stages


def _gauges(seen: Snapshot) -> Iterator[Metric]:
    for name, text, value in (
        ("ready", "Whether it takes requests: 0 while it starts or drains, or has no workers.", seen.is_ready),
        ("workers", "Worker processes.", len(seen.workers)),
        ("busy_workers", "Worker processes that have work.", sum(worker.is_busy for worker in seen.workers)),
        ("queue_parts", "Parts of batches, of 16 samples at most, that wait for a worker.", seen.queued),
        ("clients", "Clients.", len(seen.clients)),
        ("open_requests", "Requests that are unanswered.", sum(client.requests for client in seen.clients)),
        ("unsent_bytes", "Bytes of batches on their way.", sum(client.unsent for client in seen.clients)),
        ("slots", "Pieces of shared memory for batches.", seen.slots),
        ("memory_bytes", "Shared memory for batches that are made, sent or cached.", seen.memory),
        ("memory_limit_bytes", "How much of that --memory allows.", seen.memory_limit),
    ):
        yield GaugeMetricFamily(f"feedmill_{name}", text, value)
