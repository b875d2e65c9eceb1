"""What a trainer tells Prometheus of its feeds."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import feedmill
from integration.epochs import TIMEOUT
from integration.fleet import Fleet

DOC = Path(__file__).parents[2] / "docs" / "monitoring.md"


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Return what Prometheus would read: values by name and labels, ``feedmill_client_`` left out."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name.removeprefix("feedmill_client_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_feeds_are_told_apart_and_closed_ones_not_told(fleet: Fleet) -> None:
    """The figures are those of feed.stats(); a collector keeps no feed."""
    url = fleet["two"]
    registry = CollectorRegistry(auto_describe=True)  # as prometheus_client.REGISTRY is
    with (
        feedmill.connect(url, "colours", timeout=TIMEOUT) as train,
        feedmill.connect(url, "slow", timeout=TIMEOUT, prefetch=3) as val,
    ):
        collector = feedmill.FeedCollector(train=train)
        registry.register(collector)
        collector.add(val=val)
        assert sum(1 for _ in train.batches()) == 5
        seen, stats = scrape(registry), train.stats()
        assert (seen["batches_total", "train"], seen["samples_total", "train"]) == (5, 90)
        assert (seen["bytes_total", "train"], seen["wait_seconds_total", "train"]) == (stats.bytes, stats.waited)
        assert seen["server_batches_total", "train", url] == 5
        assert (seen["servers", "train"], seen["ready_servers", "train"]) == (1, 1)
        assert {key[2]: value for key, value in seen.items() if key[:2] == ("verdict", "train")} == {
            "unknown": 1,
            "fed": 0,
            "decode-bound": 0,
            "network-bound": 0,
            "trainer-bound": 0,
        }
        assert (seen["batches_total", "val"], seen["in_flight_batches", "val"]) == (0, 0)
        assert ("server_batches_total", "val", url) not in seen
        told = set(re.findall(r"^\| `(feedmill_client_\w+)", DOC.read_text(), re.MULTILINE))
        assert told == {f"feedmill_client_{key[0]}" for key in seen}
        train.close()
        assert {key[1] for key in scrape(registry)} == {"val"}
        collector.add(val=train)
        assert scrape(registry) == {}


def test_what_is_no_feed_is_refused() -> None:
    """With its name."""
    with pytest.raises(feedmill.UsageError, match=r"^train='tcp://a:1': expected a feed, as feedmill\.connect"):
        feedmill.FeedCollector(train="tcp://a:1")  # type: ignore[arg-type]
