import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from feedmill_protocol import tenbin
from feedmill_protocol.errors import ProtocolError, UsageError
from feedmill_server import decode as decode_module
from feedmill_server.decode import decoder, is_image

RGB = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


PNG = encoded(RGB, "PNG")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
NOISE_PNG, NOISE_JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")


@pytest.mark.parametrize(("kind", "mode"), [("PIL", "RGB"), ("pill", "L"), ("pilrgba", "RGBA"), (True, "RGB")])
def test_pillow_kinds_give_pillow_images(kind: str | bool, mode: str) -> None:  # noqa: FBT001
    """Converted to the mode that was asked for."""
    image = decoder(kind)("png", PNG)
    assert (image.mode, image.size) == (mode, (6, 4))
    assert image.tobytes() == RGB.convert(mode).tobytes()


@pytest.mark.parametrize(("kind", "mode"), [("rgb8", "RGB"), ("L8", "L"), ("rgba8", "RGBA")])
def test_byte_kinds_give_arrays_of_bytes(kind: str, mode: str) -> None:
    """HWC, or HW; they can be written to."""
    array = decoder(kind)("png", PNG)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    assert np.array_equal(array, np.asarray(RGB.convert(mode)))
    assert array.shape == ((4, 6) if mode == "L" else (4, 6, len(mode)))


@pytest.mark.parametrize(("kind", "mode"), [("rgb", "RGB"), ("l", "L"), ("RGBA", "RGBA")])
def test_float_kinds_give_arrays_from_0_to_1(kind: str, mode: str) -> None:
    """The same pixels in float32."""
    array = decoder(kind)("png", PNG)
    assert array.dtype == np.float32
    assert np.array_equal(array, np.asarray(RGB.convert(mode)).astype(np.float32) / np.float32(255))
    assert array.max() <= 1


@pytest.mark.parametrize("kind", ["rgb", "rgb8", "l", "l8", "rgba", "rgba8"])
def test_torch_kinds_give_tensors_with_the_channels_first(kind: str) -> None:
    """The numbers of the array of that kind; grey has one channel."""
    array, tensor = decoder(kind)("png", PNG), decoder(f"torch{kind}")("png", PNG)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == ({"l": 1, "r": 3}[kind[0]] + kind.startswith("rgba"), 4, 6)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), array.reshape(4, 6, -1))
    assert tensor.numpy().dtype == array.dtype


@pytest.mark.parametrize("format", ["JPEG", "PNG", "PPM", "WEBP", "BMP"])
@pytest.mark.parametrize("extension", ["jpg", "ppm", "seg.png"])
def test_the_content_decides_the_format_not_the_extension(format: str, extension: str) -> None:  # noqa: A002
    """An image is an image under any of their names."""
    assert is_image(extension)
    array = decoder("rgb8")(extension, encoded(RGB, format))
    assert array.shape == (4, 6, 3)
    assert np.abs(array.astype(int) - np.asarray(RGB)).max() < (1 if format in {"PNG", "PPM", "BMP"} else 128)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "ICO", "TGA"])
def test_other_formats_are_refused(format: str) -> None:  # noqa: A002
    """Fewer parsers face the data."""
    with pytest.raises(OSError, match="cannot identify image file"):
        decoder("rgb8")("png", encoded(RGB, format))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot identify"),
        (b"text", "cannot identify"),
        (NOISE_PNG[: len(NOISE_PNG) // 2], "truncated"),
        (NOISE_JPEG[: len(NOISE_JPEG) // 2], "truncated"),
        (NOISE_JPEG[:-100], "truncated"),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "most of a JPEG"],
)
def test_what_is_damaged_is_an_error(data: bytes, says: str) -> None:
    """A picture is never half grey in silence."""
    with pytest.raises(OSError, match=says):
        decoder("PIL")("jpg", data)


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may promise a huge image."""
    monkeypatch.setattr(decode_module, "_PIXELS", 23)

    def load(image: Image.Image) -> None:
        raise AssertionError(image)

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ValueError, match=r"^the image has 6x4 pixels, more than 23$"):
        decoder("rgb8")("png", PNG)


def test_the_limit_lies_at_a_hundred_million_pixels() -> None:
    """Here with a bitmap of one colour, whose header is all that is read."""
    image = Image.new("1", (10_000, 10_001))
    with pytest.raises(ValueError, match=r"^the image has 10000x10001 pixels, more than 100,000,000$"):
        decoder("rgb8")("pbm", encoded(image, "PPM"))


@pytest.mark.parametrize(
    ("extension", "data", "value"),
    [
        ("cls", b"7", 7),
        ("cls", b" -12\n", -12),
        ("cls2", b"0", 0),
        ("count", b"3", 3),
        ("index", b"4", 4),
        ("inx", b"5", 5),
        ("id", b"6", 6),
        ("label.cls", b"8", 8),
        ("txt", "größer".encode(), "größer"),
        ("text", b"", ""),
        ("transcript", b"hello\n", "hello\n"),
        ("json", b'{"a": [1, 2.5, null, "\\u00e4"]}', {"a": [1, 2.5, None, "ä"]}),
        ("jsn", b"[]", []),
        ("bin", b"\0\1", b"\0\1"),
        ("pyd", pickle.dumps([1]), pickle.dumps([1])),
        ("pickle", pickle.dumps([1]), pickle.dumps([1])),
        ("pth", b"PK", b"PK"),
    ],
)
@pytest.mark.parametrize("kind", ["PIL", "rgb8"])
def test_other_members_have_one_natural_form(kind: str, extension: str, data: bytes, value: Any) -> None:
    """Whatever images become; what has none stays bytes, pickles above all."""
    decoded = decoder(kind)(extension, data)
    assert decoded == value
    assert type(decoded) is type(value)


def test_arrays_are_read_without_pickle() -> None:
    """Objects could run code: they are refused."""
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    decoded = decoder("PIL")("npy", npy(array))
    assert decoded.dtype == array.dtype
    assert np.array_equal(decoded, array)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        decoder("PIL")("npy", npy(np.array([{"a": 1}, None], dtype=object)))
    with pytest.raises(ValueError, match="contains pickled"):
        decoder("PIL")("npy", pickle.dumps([1]))


def test_a_ten_member_is_its_array_or_the_tuple_of_its_arrays() -> None:
    """As tensorcom wrote it; a damaged one is an error of the sample's."""
    one, two = np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones(2)
    decoded = decoder("PIL")("ten", tenbin.dumps([one]))
    assert np.array_equal(decoded, one)
    assert decoded.dtype == np.uint8
    first, second = decoder("PIL")("ten", tenbin.dumps([one, two]))
    assert np.array_equal(first, one)
    assert np.array_equal(second, two)
    with pytest.raises(ProtocolError, match="tenbin: 0 frames; there is one array at least"):
        decoder("PIL")("ten", b"")
    with pytest.raises(ProtocolError, match="tenbin: at byte 0"):
        decoder("PIL")("ten", b"no")


@pytest.mark.parametrize(("extension", "data"), [("cls", b"seven"), ("cls", b""), ("json", b"{"), ("txt", b"\xff")])
def test_members_that_are_not_what_their_name_says_are_errors(extension: str, data: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"invalid|Expecting"):
        decoder("PIL")(extension, data)


def test_false_leaves_bytes_and_a_callable_decides_itself() -> None:
    """The callable gets extension and bytes."""
    assert decoder(decode=False)("png", PNG) is PNG
    calls: list[tuple[str, bytes]] = []

    def own(extension: str, data: bytes) -> int:
        calls.append((extension, data))
        return 1

    assert decoder(own)("png", PNG) == 1
    assert calls == [("png", PNG)]


def test_a_dict_decides_by_extension() -> None:
    """Of any of these; the rest is as with True."""
    decode = decoder({"JPG": "l8", ".png": "rgba8", "json": False, "cls": lambda _, data: data * 2})
    assert decode("jpg", encoded(RGB, "JPEG")).shape == (4, 6)
    assert decode("png", PNG).shape == (4, 6, 4)
    assert decode("json", b"{}") == b"{}"
    assert decode("cls", b"1") == b"11"
    assert decode("ppm", PNG).mode == "RGB"
    assert decode("txt", b"a") == "a"


@pytest.mark.parametrize("make", [lambda: decoder("rgb16"), lambda: decoder({"png": "gray"}), lambda: decoder("")])
def test_unknown_kinds_are_errors_of_usage(make: Callable[[], object]) -> None:
    """The error names what was given and what there is."""
    with pytest.raises(
        UsageError, match=r"^decode='\w*': expected an image kind \(pil, pill, .*, torchrgba8\), True, False"
    ):
        make()
