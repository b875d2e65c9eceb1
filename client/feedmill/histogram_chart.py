"""Histograms as pictures: block characters for a terminal, SVG written by hand, PNG drawn by Pillow.

A chart is a list of `Panel`s, one below the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from feedmill_protocol.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Panel", "blocks", "check", "svg", "write"]

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"

_WIDTH, _PLOT, _TITLE, _AXIS = 720, 140, 30, 34
"""Pixels: a panel is a title, a plot and an axis."""

_HEIGHT: Final = _TITLE + _PLOT + _AXIS

_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .small { font-size: 11px; fill: #59636e }
  rect { fill: #0969da } path { stroke: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } rect { fill: #4493f8 } path { stroke: #9198a1 }
  }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One histogram: its ``title``, and ``counts`` of bins of ``width`` from ``start`` on."""

    title: str
    start: float
    width: float
    counts: Sequence[int]

    @property
    def end(self) -> float:
        """The upper edge of the last bin."""
        return self.start + self.width * len(self.counts)

    def bars(self) -> Iterator[tuple[float, float, float]]:
        """Yield left, width and height of each bar that has one, in pixels of the plot."""
        step, most = _WIDTH / max(1, len(self.counts)), max(self.counts, default=0)
        for k, count in enumerate(self.counts):
            if count:
                yield k * step, max(step - 1, 1), max(1.0, _PLOT * count / most)


def blocks(counts: Sequence[int], rows: int = 4) -> list[str]:
    """Draw bars with block characters, one column each; the smallest count that is not 0 is still seen."""
    most = max(counts, default=0)
    eighths = [max(1, round(8 * rows * count / most)) if count else 0 for count in counts]
    return [
        "".join(_BLOCKS[min(8, max(0, height - 8 * row))] for height in eighths).rstrip()
        for row in reversed(range(rows))
    ]


def svg(panels: Sequence[Panel]) -> str:
    """Return the chart as SVG, which takes its colours from the reader's light or dark theme."""
    height = _HEIGHT * len(panels)
    size = f'viewBox="-10 0 {_WIDTH + 20} {height}" width="{_WIDTH + 20}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<style>{_STYLE}</style>"]
    for number, panel in enumerate(panels):
        top = number * _HEIGHT
        floor = top + _TITLE + _PLOT
        parts.append(f'<text x="0" y="{top + 20}">{escape(panel.title)}</text>')
        for left, width, tall in panel.bars():
            parts.append(f'<rect x="{left:.1f}" y="{floor - tall:.1f}" width="{width:.1f}" height="{tall:.1f}"/>')
        parts.append(f'<path d="M0 {floor}.5H{_WIDTH}"/>')
        parts.append(f'<text class="small" x="0" y="{floor + 16}">{panel.start:g}</text>')
        parts.append(f'<text class="small" x="{_WIDTH}" y="{floor + 16}" text-anchor="end">{panel.end:g}</text>')
    return "\n".join([*parts, "</svg>\n"])


def check(path: Path) -> None:
    """Raise `UsageError` unless a chart can have this name: ``.svg`` or ``.png``, in a folder that there is."""
    if path.suffix.lower() not in {".svg", ".png"}:
        raise UsageError(f"a chart cannot be written as {path}; name it .svg or .png")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"a chart cannot be written as {path}: there is no folder {path.absolute().parent}")


def write(panels: Sequence[Panel], path: Path) -> None:
    """Write the chart to a file that passes `check`.

    PNG needs Pillow. Raises `UsageError` where it is missing, and where the file cannot be written.
    """
    check(path)
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(svg(panels), encoding="utf-8")
        else:
            _write_png(panels, path)
    except OSError as error:
        raise UsageError(f"cannot write the chart {path}: {error.strerror or error}") from error


def _write_png(panels: Sequence[Panel], path: Path) -> None:
    try:
        from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 (the thin client comes without it)
    except ImportError as error:
        raise UsageError(
            f"{path} is drawn with Pillow, which is not installed; write an .svg, or pip install 'feedmill[server]'"
        ) from error
    picture = Image.new("RGB", (_WIDTH + 20, _HEIGHT * len(panels)), "#ffffff")
    draw = ImageDraw.Draw(picture)
    title, small = ImageFont.load_default(13), ImageFont.load_default(11)
    for number, panel in enumerate(panels):
        top = number * _HEIGHT
        floor = top + _TITLE + _PLOT
        draw.text((10, top + 8), panel.title, "#1f2328", title)
        for left, width, tall in panel.bars():
            draw.rectangle((10 + left, floor - tall, 10 + left + width - 1, floor), "#0969da")
        draw.line((10, floor, 10 + _WIDTH, floor), "#59636e")
        draw.text((10, floor + 6), f"{panel.start:g}", "#59636e", small)
        draw.text((10 + _WIDTH, floor + 6), f"{panel.end:g}", "#59636e", small, anchor="ra")
    picture.save(path, "PNG")
