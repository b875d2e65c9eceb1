from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from feedmill.histogram_chart import Panel, blocks, svg, write
from feedmill_protocol.errors import UsageError

PANEL = Panel("a < b", -1.0, 0.5, [1, 0, 4])


def test_bars_are_as_high_as_their_counts() -> None:
    """The highest takes all rows, one of a half takes half, and what is there at all is seen."""
    assert blocks([4, 2, 0, 1, 1000], rows=2) == ["    █", "▁▁ ▁█"]
    assert blocks([4, 2, 0], rows=2) == ["█", "██"]
    assert blocks([], rows=1) == [""]


def test_an_svg_is_sound_and_has_the_bars() -> None:
    """Titles are escaped; an empty bin has no bar; heights are proportional."""
    root = ET.fromstring(svg([PANEL, PANEL]))  # noqa: S314 # ours
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["a < b", "-1", "0.5"] * 2
    heights = [float(element.attrib["height"]) for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert heights == [35, 140, 35, 140]


def test_a_png_has_the_bars(tmp_path: Path) -> None:
    """The bins, left, middle and right: a low bar, none, a high one."""
    write([PANEL], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        blue, white = (9, 105, 218), (255, 255, 255)
        heights = [[picture.getpixel((x, y)) for y in (60, 160)] for x in (100, 370, 640)]
    assert heights == [[white, blue], [white, white], [blue, blue]]


@pytest.mark.parametrize(
    ("name", "says"), [("chart.pdf", "name it .svg or .png"), ("missing/chart.svg", "there is no folder .*missing")]
)
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, name: str, says: str) -> None:
    """The kind of picture follows from the name."""
    with pytest.raises(UsageError, match=says):
        write([PANEL], tmp_path / name)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Here it is a folder."""
    (tmp_path / "chart.svg").mkdir()
    with pytest.raises(UsageError, match=r"cannot write the chart .*chart\.svg: Is a directory"):
        write([PANEL], tmp_path / "chart.svg")
