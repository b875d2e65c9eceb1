"""Back ends against Pillow, on everything that is called a JPEG."""

import ctypes.util
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import photographs
from feedmill_protocol.errors import PipelineError
from feedmill_server import decode as decode_module
from feedmill_server import jpeg
from feedmill_server.decode import SCANS
from feedmill_server.jpeg import BACKENDS, Backend, Region, choose
from photographs import KINDS, encoded, noise, photograph, reference, subsampled

unhurried = settings(deadline=None)

FAST = ("turbo", "simplejpeg")
WIDTH, HEIGHT = 83, 67
PICTURES = {kind: make(photograph(WIDTH, HEIGHT, 3)) for kind, make in KINDS.items()}
JPEGS = [kind for kind in KINDS if kind[:3] not in {"PNG", "Web"}]
REFUSED = {"CMYK", "YCCK", "with a tail"}
"""What is Pillow's business, for the back end that is pickiest."""


@pytest.fixture(scope="module", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose(request.param)


@pytest.fixture(params=FAST)
def fast(request: pytest.FixtureRequest) -> Backend:
    return choose(request.param)


def whole(data: bytes) -> Region:
    height, width, _ = reference(data).shape
    return Region(0, 0, height, width)


def same(picture: torch.Tensor, data: bytes, region: Region) -> bool:
    """Tell whether a region is, to the bit, what Pillow's full decode has there."""
    top, left, height, width = region
    return np.array_equal(picture.numpy(), reference(data)[top : top + height, left : left + width])


def regions(height: int, width: int) -> st.SearchStrategy[Region]:
    def sides(top: int, left: int) -> st.SearchStrategy[Region]:
        return st.builds(
            Region, st.just(top), st.just(left), st.integers(1, height - top), st.integers(1, width - left)
        )

    return st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)).flatmap(lambda corner: sides(*corner))


# What is decoded.


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_picture_is_what_pillow_makes_of_it(backend: Backend, kind: str) -> None:
    """To the bit, of every kind that the back end takes; a picture is rotated by none."""
    data = PICTURES[kind]
    try:
        assert backend.size(data) == whole(data)[:1:-1]
        picture = backend.decode(data, whole(data))
    except jpeg.Refused:
        assert kind in REFUSED
        return
    assert (picture.dtype, picture.shape[2]) == (torch.uint8, 3)
    assert same(picture, data, whole(data))


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind not in REFUSED])
def test_every_region_is_the_cut_out_picture(kind: str) -> None:
    """To the bit, wherever it lies: one pixel of margin is enough."""
    data = PICTURES[kind]
    backends = [choose(name) for name in FAST]
    _, _, height, width = whole(data)

    @unhurried
    @given(regions(height, width))
    def check(region: Region) -> None:
        for backend in backends:
            try:
                picture = backend.decode(data, region)
            except jpeg.Refused:  # what the header says does not fit the region's bounds
                assert kind == "two blocks wide"
                continue
            assert picture.shape == (region.height, region.width, 3)
            assert same(picture, data, region)

    check()


@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411"])
def test_regions_of_small_noise_are_exact_too(kind: str) -> None:
    """Pictures of few coding units, where every pixel is at some edge."""
    turbo = choose("turbo")

    @unhurried
    @given(st.data(), st.integers(1, 40), st.integers(1, 40))
    def check(data: Any, width: int, height: int) -> None:
        jpeg_of_noise = subsampled(noise(width, height, width * height), kind)
        region = data.draw(regions(height, width))
        assert same(turbo.decode(jpeg_of_noise, region), jpeg_of_noise, region)

    check()


def test_a_large_picture_is_decoded(backend: Backend) -> None:
    """Of 24 million pixels; a region at its far end."""
    data = encoded(photograph(600, 400, 1).resize((6000, 4000)))
    region = Region(3700, 5800, 300, 200)
    assert backend.size(data) == (6000, 4000)
    assert same(backend.decode(data, region), data, region)


def test_the_real_photographs_are_what_pillow_makes_of_them() -> None:
    """Whole and in part, to the bit."""
    backends = [choose(name) for name in FAST]
    random = np.random.default_rng(0)
    for data in photographs.real():
        _, _, height, width = whole(data)
        top, left = int(random.integers(height)), int(random.integers(width))
        part = Region(top, left, int(random.integers(1, height - top + 1)), int(random.integers(1, width - left + 1)))
        picture = reference(data)
        for backend in backends:
            for region in (part, whole(data)):
                y, x, h, w = region
                assert np.array_equal(backend.decode(data, region).numpy(), picture[y : y + h, x : x + w])


# What is not.


def hostile() -> Iterator[tuple[str, bytes]]:
    good, progressive = PICTURES["4:2:0"], PICTURES["progressive 4:2:0"]
    yield "nothing", b""
    yield "a marker", b"\xff\xd8"
    yield "only the beginning", good[:20]
    yield "only the header", good[: good.index(photographs.SOS)]
    yield "half", good[: len(good) // 2]
    yield "all but the end", good[:-2]
    yield "garbage", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20
    yield "text", b"this is no picture"
    yield "a PNG", PICTURES["PNG"]
    yield "12 bits", photographs.of_12_bits(good)
    yield "a lie about its size", photographs.resized(good, 4000, 3000)
    yield "no columns", photographs.resized(good, 0, 3000)
    yield "many scans", photographs.of_many_scans(progressive, SCANS + 1)
    yield "zeros", good[:200] + bytes(len(good) - 202) + photographs.EOI
    yield "noise", good[:700] + np.random.default_rng(1).bytes(len(good))
    yield "no tables", good.replace(b"\xff\xdb", b"\xff\xfe").replace(b"\xff\xc4", b"\xff\xfe")
    yield "a frame that is too long", good.replace(photographs.SOF0, photographs.SOF0 + b"\xff\xff", 1)
    yield "an unknown frame", good.replace(photographs.SOF0, b"\xff\xcb", 1)


HOSTILE = dict(hostile())


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_damaged_is_refused_and_the_next_picture_is_decoded(fast: Backend, what: str) -> None:
    """Or what there is of it is right: as Pillow has it."""
    good = PICTURES["4:2:2"]
    for region in (Region(0, 0, 8, 8), Region(1, 1, HEIGHT - 1, WIDTH - 1)):
        try:
            picture = fast.decode(HOSTILE[what], region)
        except (jpeg.Refused, ValueError):
            pass
        else:
            assert same(picture, HOSTILE[what], region)
        assert same(fast.decode(good, whole(good)), good, whole(good))


@pytest.mark.parametrize("what", ["half", "all but the end", "only the header"])
def test_a_picture_that_is_cut_short_is_refused_though_the_region_is_there(fast: Backend, what: str) -> None:
    """Whether a sample is bad does not depend on where its crop lies."""
    with pytest.raises(jpeg.Refused):
        fast.decode(HOSTILE[what], Region(0, 0, 1, 1))


def test_a_picture_without_tables_does_not_get_those_of_the_one_before(fast: Backend) -> None:
    """What becomes of a sample does not depend on what was decoded before it."""
    good, bare = PICTURES["4:2:0"], HOSTILE["no tables"]
    assert same(fast.decode(good, whole(good)), good, whole(good))
    with pytest.raises(jpeg.Refused):
        fast.decode(bare, whole(good))


@pytest.mark.parametrize("name", BACKENDS)
def test_pictures_of_too_many_scans_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would cost as much as a whole picture. Good ones that are just below the limit are decoded."""
    data = PICTURES["progressive 4:2:0"]
    scans = data.count(photographs.SOS)
    for module in (decode_module, jpeg):
        monkeypatch.setattr(module, "SCANS", scans)
    assert same(choose(name).decode(data, whole(data)), data, whole(data))
    for module in (decode_module, jpeg):
        monkeypatch.setattr(module, "SCANS", scans - 1)
    with pytest.raises((jpeg.Refused, ValueError), match="scans"):
        choose(name).decode(data, whole(data))


def resident() -> int:
    """Return this process's memory in bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 # no more objects than needed
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_leaks(fast: Backend) -> None:
    """Not from pictures that are refused half way, nor from those that are decoded."""
    large = encoded(photograph(640, 480))
    items = [*HOSTILE.values(), PICTURES["progressive 4:2:0"], large, large[: len(large) // 2] + photographs.EOI]

    def all_of_them() -> None:
        for data in items:
            try:
                fast.size(data)
                fast.decode(data, Region(0, 0, 60, 60))
            except (jpeg.Refused, ValueError):
                pass

    for _ in range(20):
        all_of_them()
    before = resident()
    for _ in range(100):
        all_of_them()
    # A single picture that is kept each time would be 100 times 10 kB at the least, most of them 900 kB.
    assert resident() - before < 4 * 2**20


@unhurried
@given(st.binary(max_size=40), st.integers(2, 2000), st.integers(0, 60), st.integers(0, 60))
def test_no_bytes_do_harm(noise_bytes: bytes, at: int, top: int, left: int) -> None:
    """A picture with any bytes of it replaced is refused, or decoded to something of the right shape."""
    good = PICTURES["4:2:0"]
    data = good[:at] + noise_bytes + good[at + len(noise_bytes) :]
    region = Region(top, left, 5, 5)
    for name in FAST:
        backend = choose(name)
        try:
            width, height = backend.size(data)
            if width * height > 1_000_000 or width < left + 5 or height < top + 5:
                continue
            picture = backend.decode(data, region)
        except (jpeg.Refused, ValueError):
            continue
        assert picture.shape == (5, 5, 3)


# Which is chosen.


def test_the_fastest_that_is_there_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the table; Pillow always is."""
    assert list(BACKENDS) == ["turbo", "simplejpeg", "pillow"]
    assert choose().name == "turbo"
    monkeypatch.setattr(jpeg, "_turbo_paths", lambda: iter(["/nowhere/libturbojpeg.so", ctypes.util.find_library("c")]))
    assert choose().name == "simplejpeg"
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert choose().name == "pillow"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_back_end_can_be_named(name: str) -> None:
    """Whether it is the fastest or not."""
    assert choose(name).name == name


def test_a_back_end_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is missing; nothing else takes its place in silence."""
    with pytest.raises(
        PipelineError, match=r"^there is no JPEG decoder 'jpegli'; there are turbo, simplejpeg, pillow$"
    ):
        choose("jpegli")
    monkeypatch.setattr(jpeg, "_turbo_paths", lambda: iter([]))
    with pytest.raises(PipelineError, match=r"^the JPEG decoder 'turbo' cannot be used: there is no libturbojpeg"):
        choose("turbo")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(PipelineError, match=r"^the JPEG decoder 'simplejpeg' cannot be used: import of simplejpeg"):
        choose("simplejpeg")


def test_libturbojpeg_is_looked_for_in_its_wheel_and_on_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order; neither need be there."""
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.0")
    *wheel, system = jpeg._turbo_paths()
    assert system == "libturbojpeg.so.0"
    assert all("turbojpeg.libs" in path for path in wheel)

    def files(_name: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert list(jpeg._turbo_paths()) == []
