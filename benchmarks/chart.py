"""``python -m benchmarks.chart results.json docs/performance.svg``: who is how fast, as a picture.

Plain SVG, which takes its colours from the reader's light or dark theme, and its numbers from the results alone.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Final

from .registry import CONTENDERS
from .rounds import Results

__all__ = ["draw"]

_WIDTH: Final = 760
_LABELS: Final = 330
"""Where the bars begin."""
_BAR, _STEP, _HEAD = 18, 26, 34
_VALUE: Final = 150
"""Kept free at the right, for the number behind the longest bar."""

_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600 }
  .small { font-size: 11px; fill: #59636e }
  .peer { fill: #b6bec8 } .ours { fill: #0969da } .limit { fill: none; stroke: #59636e; stroke-dasharray: 3 3 }
  .whisker { stroke: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .small { fill: #9198a1 }
    .peer { fill: #4a525c } .ours { fill: #4493f8 } .limit, .whisker { stroke: #9198a1 }
  }
"""

_GROUPS: Final = (
    ("float32", "float32, normalised, in the trainer"),
    ("uint8", "uint8, for a trainer whose GPU finishes"),
)
_LIMIT: Final = "loop-decode"
"""What is drawn beside the contenders: nobody can be faster."""


def draw(results: Results) -> str:
    """Return the chart: a bar for each contender's median, a whisker from its slowest round to its fastest."""
    groups = [(title, _bars(results, dtype)) for dtype, title in _GROUPS]
    groups = [(title, bars) for title, bars in groups if bars]
    longest = max((max(rates) for _, bars in groups for _, _, rates in bars), default=1.0)
    scale = (_WIDTH - _LABELS - _VALUE) / longest
    parts: list[str] = []
    y = 0
    for title, bars in groups:
        y += _HEAD
        parts.append(f'<text class="head" x="0" y="{y - 8}">{escape(title)}: images a second</text>')
        for label, kind, rates in bars:
            parts += _row(label, kind, rates, y, scale)
            y += _STEP
    machine, settings = results.machine, results.settings
    foot = f"{machine['cpu']}, {machine['cores']} cores; {settings.workers} workers, batches of {settings.batch}"
    y += 24
    parts.append(f'<text class="small" x="0" y="{y - 6}">{escape(foot)}</text>')
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'


def _bars(results: Results, dtype: str) -> list[tuple[str, str, list[float]]]:
    """Return label, kind and rates of everybody in a group, the fastest first."""
    bars = []
    for contender in CONTENDERS:
        rates = results.values(contender.name, "img_s")
        limit = contender.name == _LIMIT
        if contender.dtype != dtype or not (contender.competes or limit) or not rates:
            continue
        kind = "limit" if limit else "ours" if contender.family == "feedmill" else "peer"
        bars.append((contender.title.replace("*", "").replace("`", ""), kind, rates))
    return sorted(bars, key=lambda bar: -median(bar[2]))


def _row(label: str, kind: str, rates: Sequence[float], y: int, scale: float) -> list[str]:
    middle, length = y + _BAR / 2, median(rates) * scale
    least, most = (_LABELS + rate * scale for rate in (min(rates), max(rates)))
    return [
        f'<text x="{_LABELS - 10}" y="{middle + 4.5:g}" text-anchor="end">{escape(label)}</text>',
        f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
        f'<path class="whisker" d="M{least:.1f} {middle:g}H{most:.1f}"/>',
        f'<text x="{max(most, _LABELS + length) + 8:.1f}" y="{middle + 4.5:g}">{median(rates):,.0f}</text>',
    ]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chart", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    args.svg.write_text(draw(Results.load(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
