"""Prometheus' and Grafana's configuration: it asks for what servers export."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.promql import assert_answerable
from feedmill_server.metrics import Metrics
from server.snapshots import BUSY

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "monitoring" / "prometheus"
DASHBOARDS = ROOT / "docker" / "monitoring" / "grafana" / "provisioning" / "dashboards"
(GROUP,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    parsed: dict[str, Any] = json.loads((DASHBOARDS / "feedmill.json").read_text())
    return parsed


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: str(rule["alert"]))
def test_alerts_ask_for_what_servers_export(rule: dict[str, Any]) -> None:
    """And say what is wrong, and how urgent it is."""
    assert_answerable(rule["expr"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "description"}


def test_what_the_document_says_to_ask_can_be_asked() -> None:
    """Each of its queries, one after each comment."""
    document = (ROOT / "docs" / "monitoring.md").read_text()
    blocks = re.findall(r"```promql\n(.*?)```", document, re.DOTALL)
    queries = [query for block in blocks for query in re.split(r"^#.*\n", block, flags=re.MULTILINE) if query.strip()]
    assert len(queries) > 5
    for query in queries:
        assert_answerable(query)


def test_the_dashboard_shows_every_metric(dashboard: dict[str, Any]) -> None:
    """And nothing that there is not."""
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in assert_answerable(target["expr"])
    }
    exported = {sample.name for family in Metrics("node", lambda: BUSY).collect() for sample in family.samples}
    assert exported - shown == {"feedmill_server_info"}


def test_the_panels_of_the_dashboard_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    """In Grafana's 24 columns, each with a number and a description, and none over another."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for a, b in combinations((panel["gridPos"] for panel in panels), 2):
        apart = any(a[at] + a[size] <= b[at] or b[at] + b[size] <= a[at] for at, size in (("x", "w"), ("y", "h")))
        assert apart, f"{a} lies over {b}"


def test_grafana_is_given_the_dashboard_and_its_source(dashboard: dict[str, Any]) -> None:
    """The source is a variable of the dashboard, so that it can be imported elsewhere; here it is the default."""
    (provider,) = yaml.safe_load((DASHBOARDS / "feedmill.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"
    (source,) = yaml.safe_load((DASHBOARDS.parent / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["isDefault"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    used = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]}
    assert used == {"${datasource}"}


def test_prometheus_finds_the_servers_of_compose() -> None:
    """By the name of their service, at the port of their metrics; the alerts know their job."""
    if not (ROOT / "docker-compose.yml").exists():
        pytest.skip("there is no docker-compose.yml")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    (name,) = found["names"]
    assert services[name]["environment"]["FEEDMILL_HTTP"].endswith(f":{found['port']}")
    assert f'job="{job["job_name"]}"' in GROUP["rules"][0]["expr"]


def test_alerts_fire_when_they_should() -> None:
    """By Prometheus' own test of rules, where that is installed."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    for command in (
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    ):
        ended = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
