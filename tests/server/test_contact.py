import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feedmill_protocol.messages import Get
from feedmill_protocol.tensors import FieldSpec, offsets
from feedmill_server.builds import Build, Stream
from feedmill_server.contact import copy, draw, shows
from feedmill_server.slots import Slot

LABEL = FieldSpec("cls", "int64", ())

Make = Callable[..., Build[Slot]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a function that makes a finished batch of given rows of one field, behind a label."""
    with ExitStack() as stack:

        def made(field: FieldSpec, rows: Any) -> Build[Slot]:
            fields = (LABEL, field)
            counts = np.array([len(rows)], np.uint32)
            stream = Stream(0, "train", fields, len(rows), ("a.tar",), counts, "catalog", "print")
            get = Get(stream="train", fingerprint="print", seed=0, epoch=3, batch=17, spans=1)
            build: Build[Slot] = Build(
                ("train", 0, 3, "raise", b""), stream, get, np.zeros((1, 3), np.uint32), len(rows)
            )
            starts, size = offsets(f.rows(len(rows)) for f in fields)
            build.slot = Slot(1, size)
            stack.callback(build.slot.close)
            data = rows.tobytes()
            build.slot.memory[starts[1] : starts[1] + len(data)] = data
            build.keys = [f"{i}" for i in range(len(rows))]
            return build

        yield made


def _rows(*shape: int, dtype: str = "uint8") -> Any:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def test_pictures_are_copied_as_height_width_channels_however_they_lie(make: Make) -> None:
    """Planes, interleaved, and planes that lie interleaved; the copy does not change with the slot."""
    planes = _rows(5, 3, 8, 6)
    interleaved = planes.transpose(0, 2, 3, 1).copy()
    builds = [
        make(FieldSpec("x", "uint8", (3, 8, 6)), planes),
        make(FieldSpec("x", "uint8", (3, 8, 6), channels_last=True), interleaved),
        make(FieldSpec("x", "uint8", (8, 6, 3)), interleaved),
    ]
    for build in builds:
        strip = copy(build)
        assert strip is not None
        assert strip[:3] == ("train", 3, 17)
        assert build.slot is not None
        build.slot.memory[:] = bytes(build.slot.capacity)
        np.testing.assert_array_equal(strip.pixels, interleaved)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (FieldSpec("x", "uint8", (3, 8, 6)), True),
        (FieldSpec("x", "float32", (1, 8, 6)), True),
        (FieldSpec("x", "uint8", (8, 6, 3)), True),
        (FieldSpec("x", "int64", (3, 8, 6)), False),
        (FieldSpec("x", "bfloat16", (3, 8, 6)), False),
        (FieldSpec("x", "uint8", (5, 8, 6)), False),
        (FieldSpec("x", "uint8", (3, 0, 6)), False),
        (FieldSpec("x", "float32", (512,)), False),
    ],
)
def test_a_field_that_may_be_a_picture_is_recognised_by_dtype_and_shape(
    make: Make,
    field: FieldSpec,
    expected: bool,  # noqa: FBT001 # what the test expects
) -> None:
    """And nothing is copied of others."""
    assert shows([LABEL, field]) == expected
    dtype = "uint16" if field.dtype == "bfloat16" else field.dtype
    assert (copy(make(field, _rows(2, *field.shape, dtype=dtype))) is not None) == expected


def test_no_more_is_copied_than_a_few_megabytes(make: Make) -> None:
    """Fewer of large pictures, and these with fewer pixels; all of small ones up to 24."""
    small = copy(make(FieldSpec("x", "uint8", (3, 16, 16)), _rows(100, 3, 16, 16)))
    large = copy(make(FieldSpec("x", "float32", (3, 1500, 1600)), _rows(2, 3, 1500, 1600, dtype="float32")))
    assert small is not None
    assert large is not None
    assert small.pixels.shape == (24, 16, 16, 3)
    assert large.pixels.shape[0] == 2
    assert large.pixels.nbytes <= 8 * 2**20


def test_a_batch_that_has_lost_its_memory_has_no_pictures(make: Make) -> None:
    """It was in the cache, and another needed the slot; nor has one of which all samples were skipped."""
    field = FieldSpec("x", "uint8", (3, 8, 6))
    build = make(field, _rows(2, 3, 8, 6))
    build.slot = None
    assert copy(build) is None
    build = make(field, _rows(2, 3, 8, 6))
    build.keys = []
    assert copy(build) is None


@pytest.mark.parametrize("shape", [(3, 200, 100), (1, 30, 90)])
def test_a_sheet_is_a_jpeg_with_rows_of_eight(make: Make, shape: tuple[int, int, int]) -> None:
    """The longer side of each picture is 144 pixels."""
    strip = copy(make(FieldSpec("x", "uint8", shape), _rows(11, *shape)))
    assert strip is not None
    with Image.open(io.BytesIO(draw(strip))) as sheet:
        assert sheet.format == "JPEG"
        width, height = (72, 144) if shape[1] > shape[2] else (144, 48)
        assert sheet.size == (8 * (width + 4) - 4, 2 * (height + 4) - 4)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3], ids=["0..1", "small", "large"])
def test_floats_are_shown_whatever_their_range(make: Make, scale: float) -> None:
    """A ramp from black to white stays one, if it goes below 0 or above 1; what is no number is black or grey."""
    ramp = np.tile(np.linspace(0, 1, 144, dtype=np.float32), (1, 3, 144, 1)) * np.float32(scale)
    if scale != 1.0:
        ramp -= np.float32(scale / 2)
    ramp[:, :, 100:, :40] = np.nan
    strip = copy(make(FieldSpec("x", "float32", (3, 144, 144)), ramp))
    assert strip is not None
    with Image.open(io.BytesIO(draw(strip))) as sheet:
        row = np.asarray(sheet.convert("L")).astype(int)[10]
    assert row[2] < 10
    assert row[-2] > 245
    assert abs(row[72] - 128) < 8
