"""What PromQL asks for, by a parser of PromQL."""

from typing import get_args, get_type_hints

import promql_parser
from promql_parser import Expr, VectorSelector

from feedmill import FeedCollector, Verdict
from feedmill_server.metrics import Metrics
from server.snapshots import BUSY

__all__ = ["assert_answerable", "selectors"]

_GRAFANA = {"$__rate_interval": "1m", "$instance": ".*"}
"""What Grafana puts in, for its variables."""

_SERIES = [
    (sample.name, sample.labels) for family in Metrics("node", lambda: BUSY).collect() for sample in family.samples
] + [("up", {}), *((f"process_{name}", {}) for name in ("cpu_seconds_total", "open_fds", "max_fds"))]
"""What a server exports, with the labels that it gives; and what Prometheus adds."""

_SERIES += [
    (f"{family.name}_total" if family.type == "counter" else family.name, {"limit": limit})
    for family in FeedCollector().describe()
    for limit in get_args(get_type_hints(Verdict)["limit"])
]
"""And what trainers do."""

_FROM_PROMETHEUS = {"instance", "job", "namespace", "pod"}
"""Labels of targets, which Prometheus gives to all series."""


def selectors(query: str) -> list[VectorSelector]:
    """Return the selectors of a query. Raises ValueError if it is none."""
    for variable, value in _GRAFANA.items():
        query = query.replace(variable, value)
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def assert_answerable(query: str) -> set[str]:
    """Check that what a query names is exported: metrics, labels and their values. Return the metrics' names."""
    found = selectors(query)
    assert found, f"{query} asks for nothing"
    return {_checked(selector, query) for selector in found}


def _checked(selector: VectorSelector, query: str) -> str:
    exported = [labels for name, labels in _SERIES if name == selector.name]
    asked = {m.name: m.value for m in selector.matchers.matchers if m.name not in _FROM_PROMETHEUS}
    if not exported or not all(any(labels.get(k) == v for labels in exported) for k, v in asked.items()):
        raise AssertionError(f"nobody exports what {query} asks for: {selector.prettify()}")
    return str(selector.name)
