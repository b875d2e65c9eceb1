import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from feedmill_server.metrics import Metrics
from feedmill_server.snapshot import Snapshot
from server.snapshots import BUSY, DRAINING, NASTY, STARTING

DOC = Path(__file__).parents[2] / "docs" / "monitoring.md"


def samples(snapshot: Snapshot, server: str = "node") -> list[Sample]:
    text = Metrics(server, lambda: snapshot).render().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    (one,) = [s.value for s in found if s.name == f"feedmill_{name}" and s.labels == labels]
    return one


def test_what_a_snapshot_says_can_be_scraped() -> None:
    """By Prometheus' own parser; counters end in _total."""
    found = samples(BUSY)
    expected: dict[tuple[str, str], float] = {
        ("batches_total", ""): 90,
        ("samples_total", ""): 2880,
        ("bytes_total", ""): 9_000_000,
        ("cache_hits_total", ""): 7,
        ("failed_batches_total", ""): 2,
        ("made_samples_total", ""): 3000,
        ("worker_restarts_total", ""): 1,
        ("ready", ""): 1,
        ("workers", ""): 2,
        ("busy_workers", ""): 1,
        ("queue_parts", ""): 9,
        ("clients", ""): 2,
        ("open_requests", ""): 4,
        ("unsent_bytes", ""): 1_000_000,
        ("slots", ""): 5,
        ("memory_bytes", ""): 20_000_000,
        ("memory_limit_bytes", ""): 64_000_000,
    }
    assert {key: value(found, key[0]) for key in expected} == expected
    assert {r: value(found, "skipped_samples_total", reason=r) for r in ("shard", "sample", "worker")} == {
        "shard": 32,
        "sample": 4,
        "worker": 1,
    }
    stages = {"read": 2.0, "decode": 40.0, "transform": 8.0, "send": 6.0}
    assert {stage: value(found, "stage_seconds_total", stage=stage) for stage in stages} == stages
    assert any(sample.name == "process_cpu_seconds_total" for sample in found)


def test_a_name_may_be_any_text() -> None:
    """It is escaped as the format says."""
    (info,) = [s for s in samples(STARTING, 'a"b\\c\nd') if s.name == "feedmill_server_info"]
    assert info.labels["server"] == 'a"b\\c\nd'


def test_series_do_not_grow_with_data_or_clients() -> None:
    """No key, shard or address is a label; a server that has done nothing has the series that it will have."""
    assert NASTY not in repr(samples(BUSY))
    series = [{(s.name, *sorted(s.labels.items())) for s in samples(snapshot)} for snapshot in (STARTING, BUSY)]
    assert series[0] == series[1]


@pytest.mark.parametrize("snapshot", [STARTING, DRAINING])
def test_a_server_that_starts_or_drains_is_not_ready(snapshot: Snapshot) -> None:
    """The gauge says what /readyz says."""
    assert value(samples(snapshot), "ready") == 0


def test_every_metric_is_in_the_document_and_no_other() -> None:
    """With its name as it is queried."""
    told = set(re.findall(r"^\| `(feedmill_(?!client_)\w+)", DOC.read_text(), re.MULTILINE))
    assert told == {sample.name for sample in samples(BUSY) if sample.name.startswith("feedmill_")}
