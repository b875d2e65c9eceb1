import re

import torch

from feedmill.half_blocks import half_blocks

COLOURS = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")
ESCAPES = re.compile(r"\x1b\[[^m]*m")


def test_a_character_is_two_pixels() -> None:
    """The upper one in the foreground, the lower one in the background."""
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 0] = torch.tensor([1, 2, 3])
    image[0, :, 1, 0] = torch.tensor([4, 5, 6])
    (line,) = half_blocks(image, None, width=80, columns=1)
    assert COLOURS.findall(line) == [("1", "2", "3", "4", "5", "6"), ("0",) * 6]
    assert line.endswith("\x1b[0m")


def test_a_sheet_fits_the_terminal() -> None:
    """Pictures are made smaller, keep their proportions, stand in rows, and captions stay below their own."""
    images = torch.full((5, 3, 100, 200), 9, dtype=torch.uint8)
    lines = [
        ESCAPES.sub("", line) for line in half_blocks(images, ["a long caption " * 9, *"bcde"], width=83, columns=2)
    ]
    picture = "▀" * 40
    assert lines[:10] == [f"{picture} {picture}"] * 10
    assert lines[10] == ("a long caption " * 9)[:40] + " " + "b".ljust(40)
    assert lines[22:] == [picture] * 10 + ["e".ljust(40)]
    assert len(lines) == 3 * 11
