"""Draws the shards of the demo, the tests and the benchmarks: small JPEG pictures of eight patterns.

Everything about a picture follows from ``(seed, number)``: the same arguments give the same bytes (with the
same numpy and Pillow), and any picture can be drawn without those before it.

A pattern is a function from a `_Canvas` to two planes: how much of a pixel is ink, and which mixture of two
inks. It thinks in distances to outlines; `_cover` turns those into smooth edges.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from feedmill_protocol.errors import UsageError

__all__ = ["CLASSES", "draw", "shard_paths", "write_shards"]

_Plane: TypeAlias = NDArray[np.float32]

_QUALITY: Final = 85
"""JPEG quality: what cameras and photo services use."""

_PALETTES: Final = (
    # paper, its other end, and two inks; the inks stand out from both ends of the paper
    ("f6e7cb", "eec3a0", "2f4858", "c8553d"),
    ("0d1b2a", "1b3a4b", "e0e1dd", "f4a259"),
    ("fefae0", "dde5b6", "386641", "bc4749"),
    ("ffe8d6", "f7b89c", "6d597a", "355070"),
    ("22223b", "4a4e69", "f2e9e4", "e5989b"),
    ("caf0f8", "90e0ef", "03045e", "0077b6"),
    ("fff1e6", "fad2e1", "9d4edd", "3c096c"),
    ("264653", "2a6f73", "e9c46a", "f4a261"),
    ("f1faee", "a8dadc", "e63946", "1d3557"),
    ("1a1a1d", "3b1f2b", "ef8354", "f5e663"),
    ("e9edc9", "ccd5ae", "9c6644", "5f6f3a"),
    ("efe9f4", "c7cee8", "2b2d42", "d1495b"),
)


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Where the pixels of a picture lie: `x` and `y` are turned and shifted, and the short side is 2 long.

    `pixel` is the size of one pixel in these units; `random` decides whatever a pattern leaves open.
    """

    x: _Plane
    y: _Plane
    pixel: float
    random: np.random.Generator


_Pattern: TypeAlias = Callable[[_Canvas], tuple[_Plane, _Plane]]
_Outline: TypeAlias = Callable[[_Plane, _Plane, _Plane], _Plane]
"""From distance to the centre, angle, and size of the shape to the distance inside its outline."""


def _cover(inside: _Plane, canvas: _Canvas) -> _Plane:
    """How much of a pixel a shape covers whose outline lies so far outside the pixel's centre."""
    return np.asarray(np.clip(inside / canvas.pixel + 0.5, 0, 1), np.float32)


def _bands(along: _Plane, period: float, duty: float, canvas: _Canvas) -> tuple[_Plane, _Plane]:
    """Bands across `along`, in turns of the two inks; `duty` is the share of a period that is ink."""
    number = np.round(along / period)
    inside = (duty / 2 - np.abs(along / period - number)) * period
    return _cover(inside, canvas), number % 2


def _stripes(canvas: _Canvas) -> tuple[_Plane, _Plane]:
    period, duty = canvas.random.uniform(0.22, 0.5), canvas.random.uniform(0.35, 0.65)
    return _bands(canvas.x, period, duty, canvas)


def _waves(canvas: _Canvas) -> tuple[_Plane, _Plane]:
    period, duty = canvas.random.uniform(0.25, 0.45), canvas.random.uniform(0.35, 0.6)
    height, length = canvas.random.uniform(0.1, 0.18), canvas.random.uniform(0.5, 0.8)
    bent = canvas.x + np.float32(height) * np.sin(canvas.y * (2 * np.pi / length))
    return _bands(bent, period, duty, canvas)


def _checkers(canvas: _Canvas) -> tuple[_Plane, _Plane]:
    period = canvas.random.uniform(0.4, 0.8)
    columns, _ = _bands(canvas.x, period, 0.5, canvas)
    rows, _ = _bands(canvas.y, period, 0.5, canvas)
    return columns + rows - 2 * columns * rows, columns


def _rings(canvas: _Canvas) -> tuple[_Plane, _Plane]:
    period, duty = canvas.random.uniform(0.2, 0.36), canvas.random.uniform(0.35, 0.65)
    return _bands(np.hypot(canvas.x, canvas.y), period, duty, canvas)


def _spirals(canvas: _Canvas) -> tuple[_Plane, _Plane]:
    """Logarithmic arms: they keep their angle to the centre, so that any piece of them shows what it is."""
    arms = 2 * canvas.random.integers(2, 5)  # an even number, so that the inks take turns all around
    twist = canvas.random.choice((-1, 1)) * canvas.random.uniform(0.5, 1.1)
    radius = np.maximum(np.hypot(canvas.x, canvas.y), np.float32(1e-3))
    turn = (np.arctan2(canvas.y, canvas.x) + np.float32(twist) * np.log(radius)) * (arms / (2 * np.pi))
    number = np.round(turn)
    inside = (np.float32(0.25) - np.abs(turn - number)) * radius * (2 * np.pi / arms / np.hypot(1, twist))
    return _cover(inside, canvas), np.asarray(number % 2, np.float32)


def _scatter(canvas: _Canvas, outline: _Outline) -> tuple[_Plane, _Plane]:
    """One shape in each cell of a brick wall, each with a size, an angle, a place and an ink of its own."""
    random, cells = canvas.random, canvas.random.uniform(1.5, 2.6)
    row = np.floor(canvas.y * cells)
    column = np.floor(canvas.x * cells + row % 2 / 2)
    # A table of 16 by 16 cells, repeated, is more than any picture shows.
    here = (row.astype(np.int64) % 16, column.astype(np.int64) % 16)
    size = random.uniform(0.32, 0.47, (16, 16)).astype(np.float32)[here]
    spare = 0.5 - size
    right = canvas.x * cells + row % 2 / 2 - column - 0.5 - spare * _table(random, -1, 1)[here]
    down = canvas.y * cells - row - 0.5 - spare * _table(random, -1, 1)[here]
    angle = np.arctan2(down, right) + _table(random, 0, 2 * np.pi)[here]
    inside = outline(np.hypot(right, down), angle, size) / np.float32(cells)
    return _cover(inside, canvas), np.round(_table(random, 0, 1))[here]


def _table(random: np.random.Generator, low: float, high: float) -> _Plane:
    return random.uniform(low, high, (16, 16)).astype(np.float32)


def _round(radius: _Plane, _angle: _Plane, size: _Plane) -> _Plane:
    return size - radius


def _pointed(radius: _Plane, angle: _Plane, size: _Plane, *, points: int, depth: float) -> _Plane:
    """Distance inside a star of so many points, whose valleys lie `depth` times as far from its centre."""
    wedge = np.float32(2 * np.pi / points)
    folded = np.abs((angle + wedge / 2) % wedge - wedge / 2)
    # In a folded wedge the outline is one line, from the point at (size, 0) to the valley.
    across, up = depth * np.cos(wedge / 2) - 1, depth * np.sin(wedge / 2)
    ahead, aside = radius * np.cos(folded) - size, radius * np.sin(folded)
    return np.asarray((across * aside - up * ahead) / np.hypot(across, up), np.float32)


_PATTERNS: Final[dict[str, _Pattern]] = {
    "stripes": _stripes,
    "waves": _waves,
    "checkers": _checkers,
    "rings": _rings,
    "spirals": _spirals,
    "dots": partial(_scatter, outline=_round),
    "triangles": partial(_scatter, outline=partial(_pointed, points=3, depth=0.5)),
    "stars": partial(_scatter, outline=partial(_pointed, points=5, depth=0.42)),
}

CLASSES: Final = tuple(_PATTERNS)
"""Names of the classes; a label is a position in here."""


def draw(label: int, width: int, height: int, random: np.random.Generator) -> Image.Image:
    """Draw one RGB picture of class `label`; `random` decides everything else about it."""
    canvas = _canvas(width, height, random)
    ink, tint = _PATTERNS[CLASSES[label]](canvas)
    # Planes of colour, [3, H, W]: numpy is three times as fast with a long last axis as with one of 3.
    paper, far_paper, first, second = _colours(random)[:, :, None, None]
    shade = 1 - np.float32(random.uniform(0.15, 0.35)) * _shadow(ink, canvas)
    picture = (paper + (far_paper - paper) * _slope(width, height, random)) * shade
    picture += (first + (second - first) * tint - picture) * ink
    picture *= np.float32(random.uniform(0.85, 1)) + _slope(width, height, random) * np.float32(0.15)
    # The grain of a film, in levels of 255.
    picture += random.standard_normal((height, width), np.float32) * 3
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def _canvas(width: int, height: int, random: np.random.Generator) -> _Canvas:
    pixel = 2 / min(width, height)
    angle = random.uniform(0, 2 * np.pi)
    # The centre of rings and spirals lies in the picture, not always in the middle.
    right, down = random.uniform(-0.5, 0.5, 2)
    x = ((np.arange(width) - (width - 1) / 2) * pixel - right).astype(np.float32)
    y = ((np.arange(height) - (height - 1) / 2) * pixel - down).astype(np.float32)[:, None]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return _Canvas(x * cosine + y * sine, y * cosine - x * sine, pixel, random)


def _colours(random: np.random.Generator) -> _Plane:
    """Four colours that go together, a little off those of the palette."""
    palette = _PALETTES[random.integers(len(_PALETTES))]
    colours = np.array([list(bytes.fromhex(colour)) for colour in palette])
    return np.clip(colours + random.uniform(-14, 14, colours.shape), 0, 255).astype(np.float32)


def _slope(width: int, height: int, random: np.random.Generator) -> _Plane:
    """From 0 at one end of the picture to 1 at the other, in any direction."""
    angle = random.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width) * np.cos(angle)
    y = np.linspace(-0.5, 0.5, height)[:, None] * np.sin(angle)
    return np.asarray((x + y) / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5, np.float32)


def _shadow(ink: _Plane, canvas: _Canvas) -> _Plane:
    """Return the soft shadow of the ink on the paper, below it and to its right."""
    offset = round(0.03 / canvas.pixel)
    moved = np.pad(ink, ((offset, 0), (offset, 0)), mode="edge")[: ink.shape[0], : ink.shape[1]]
    mask = Image.fromarray((moved * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(offset))
    return np.asarray(mask, np.float32) / np.float32(255)


def shard_paths(directory: Path, shards: int) -> list[Path]:
    """Return where `write_shards` writes."""
    return [directory / f"pictures-{shard:06d}.tar" for shard in range(shards)]


def write_shards(
    directory: Path,
    *,
    shards: int,
    samples: int,
    seed: int = 0,
    classes: int = len(CLASSES),
    sides: tuple[int, int] = (200, 320),
    progress: Callable[[int], object] | None = None,
) -> list[Path]:
    """Write `shards` tar files of `samples` pictures each into `directory`, and return their paths in order.

    Shards are ``pictures-000000.tar``, …, in the WebDataset layout: members ``NNNNNN.jpg`` and ``NNNNNN.cls``
    (the label as a decimal number), numbered through all shards. Labels are drawn evenly from the first
    `classes` of `CLASSES`; widths and heights are between `sides`, in pixels, both ends included. A shard
    takes its name when it is whole. `progress` is called after each picture, with the number drawn so far.
    """
    _check(shards, samples, seed, classes, sides)
    directory.mkdir(parents=True, exist_ok=True)
    paths = shard_paths(directory, shards)
    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=directory) as unfinished:
        for shard, path in enumerate(paths):
            drawn = Path(unfinished) / path.name
            with tarfile.open(drawn, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in range(shard * samples, (shard + 1) * samples):
                    _add_sample(tar, number, seed, classes, sides)
                    if progress is not None:
                        progress(number + 1)
            drawn.replace(path)
    return paths


def _check(shards: int, samples: int, seed: int, classes: int, sides: tuple[int, int]) -> None:
    if shards < 1 or samples < 1:
        raise UsageError(f"shards={shards} of samples={samples} hold no picture; both must be at least 1")
    if seed < 0:
        raise UsageError(f"seed={seed} is negative; seeds start at 0")
    if not 1 <= classes <= len(CLASSES):
        raise UsageError(f"classes={classes}: there are 1 to {len(CLASSES)}, namely {', '.join(CLASSES)}")
    if not 16 <= sides[0] <= sides[1]:
        raise UsageError(f"sides={sides} must be a smallest and a largest side in pixels, from 16 up")


def _add_sample(tar: tarfile.TarFile, number: int, seed: int, classes: int, sides: tuple[int, int]) -> None:
    random = np.random.default_rng((seed, number))
    label = int(random.integers(classes))
    width, height = (int(side) for side in random.integers(sides[0], sides[1], 2, endpoint=True))
    jpeg = io.BytesIO()
    draw(label, width, height, random).save(jpeg, "JPEG", quality=_QUALITY)
    for extension, content in (("jpg", jpeg.getvalue()), ("cls", str(label).encode())):
        member = tarfile.TarInfo(f"{number:06d}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
