"""The metrics of feeds, for Prometheus: made of `Feed.stats` whenever they are asked for, and never in between.

Names after https://prometheus.io/docs/practices/naming; `docs/monitoring.md` says what they mean.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, get_args, get_type_hints

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from feedmill_protocol.errors import UsageError
from feedmill_protocol.ledger import State

from .feed import Feed
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

__all__ = ["FeedCollector"]

_COUNTERS: Final = {
    "batches": ("batches", "Batches that the trainer took."),
    "samples": ("samples", "Samples in them."),
    "bytes": ("bytes", "Bytes of them as they came."),
    "skipped_samples": ("skipped", "Samples that servers left out of them."),
    "wait_seconds": ("waited", "Seconds that the trainer waited for batches."),
    "repeated_requests": ("asked_again", "Requests repeated, because a server was lost, silent or failed."),
    "hedged_requests": ("hedged", "Requests sent to a second server, because they were late."),
    "duplicate_replies": ("duplicates", "Replies that were not needed any more."),
    "damaged_messages": ("damaged", "Messages whose checksum was wrong."),
}
"""Metrics without their prefix, what of `Stats` they are, and what they mean."""

_LIMITS: Final[tuple[str, ...]] = get_args(get_type_hints(Verdict)["limit"])


class FeedCollector(Collector):
    """What feeds of this process have done, each called by a name: ``REGISTRY.register(FeedCollector(train=feed))``.

    The name is the label ``feed``. A feed that is closed, or gone, is not reported any more: the collector does not
    keep it. Raises UsageError for what is no feed.
    """

    def __init__(self, **feeds: Feed) -> None:
        self._feeds: dict[str, weakref.ref[Feed]] = {}
        self.add(**feeds)

    def add(self, **feeds: Feed) -> None:
        """Report more feeds; one whose name is taken replaces the other."""
        for name, feed in feeds.items():
            if not isinstance(feed, Feed):
                raise UsageError(f"{name}={feed!r}: expected a feed, as feedmill.connect returns it")
        self._feeds = self._feeds | {name: weakref.ref(feed) for name, feed in feeds.items()}

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without figures: a registry wants their names."""
        return self._collect({})

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        found = {name: reference() for name, reference in self._feeds.items()}
        return self._collect({name: feed for name, feed in found.items() if feed is not None and not feed.closed})

    def _collect(self, feeds: dict[str, Feed]) -> Iterator[Metric]:
        seen = {name: (feed.stats(), [*feed.servers().values()]) for name, feed in feeds.items()}
        for metric, (attribute, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f"feedmill_client_{metric}", text, labels=["feed"])
            for name, (stats, _) in seen.items():
                counter.add_metric([name], getattr(stats, attribute))
            yield counter
        by_server = CounterMetricFamily(
            "feedmill_client_server_batches", "Batches by the server that they came from.", labels=["feed", "server"]
        )
        flying = _gauge("in_flight_batches", "Batches that are asked for and have not come.")
        servers = _gauge("servers", "Servers that are known.")
        ready = _gauge("ready_servers", "Servers that can be asked.")
        missing = _gauge("missing_servers", "How many more servers would feed the trainer.")
        verdict = _gauge("verdict", "1 for what limits the trainer's rate.", "limit")
        for name, (stats, states) in seen.items():
            for server, batches in stats.by_server.items():
                by_server.add_metric([name, server], batches)
            flying.add_metric([name], stats.in_flight)
            servers.add_metric([name], len(states))
            ready.add_metric([name], states.count(State.READY.value))
            missing.add_metric([name], stats.verdict.more)
            for limit in _LIMITS:
                verdict.add_metric([name, limit], stats.verdict.limit == limit)
        yield from (by_server, flying, servers, ready, missing, verdict)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"feedmill_client_{name}", text, labels=["feed", *labels])
