import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feedmill.contact_sheet import contact_sheet
from feedmill_protocol.errors import UsageError

WHITE = (255, 255, 255)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(path: Path) -> list[tuple[int, ...]]:
    """Every pixel of the picture."""
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def plain(*colour: float, count: int = 1, dtype: torch.dtype = torch.uint8, side: int = 128) -> torch.Tensor:
    """Images of one colour."""
    return torch.tensor(colour, dtype=dtype)[None, :, None, None].repeat(count, 1, side, side)


def test_uint8_images_are_shown_as_they_are(tmp_path: Path) -> None:
    """A sheet of one plain image is that colour on white."""
    contact_sheet(plain(200, 10, 60), None, tmp_path / "sheet.png")
    assert set(pixels(tmp_path / "sheet.png")) == {(200, 10, 60), WHITE}


def test_normalisation_is_undone(tmp_path: Path) -> None:
    """Mean and std bring normalised floats back to the colours they came from."""
    colour = torch.tensor([51, 102, 204]) / 255
    normalised = ((colour - torch.tensor(MEAN)) / torch.tensor(STD)).tolist()
    images = plain(*normalised, dtype=torch.float32)
    contact_sheet(images, None, tmp_path / "sheet.png", mean=MEAN, std=STD)
    assert set(pixels(tmp_path / "sheet.png")) == {(51, 102, 204), WHITE}


def test_floats_out_of_range_become_black_and_white(tmp_path: Path) -> None:
    """Values below 0 and above 1 do not wrap around."""
    contact_sheet(plain(-3.0, 0.0, 7.0, dtype=torch.float32), None, tmp_path / "sheet.png")
    assert set(pixels(tmp_path / "sheet.png")) == {(0, 0, 255), WHITE}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_shown(tmp_path: Path, dtype: torch.dtype) -> None:
    """Half precision and double precision look like float32."""
    contact_sheet(plain(0.0, 1.0, 0.0, dtype=dtype), None, tmp_path / "sheet.png")
    assert set(pixels(tmp_path / "sheet.png")) == {(0, 255, 0), WHITE}


@pytest.mark.parametrize(("dtype", "level"), [(torch.uint8, 51), (torch.float32, 0.2)])
def test_images_with_one_channel_are_grey(tmp_path: Path, dtype: torch.dtype, level: float) -> None:
    """One channel stands for three."""
    contact_sheet(plain(level, dtype=dtype), None, tmp_path / "sheet.png")
    assert set(pixels(tmp_path / "sheet.png")) == {(51, 51, 51), WHITE}


def test_the_memory_format_does_not_matter(tmp_path: Path) -> None:
    """A channels-last batch makes the same sheet as a contiguous one."""
    images = torch.arange(2 * 3 * 120 * 130, dtype=torch.int64).remainder(251).byte().reshape(2, 3, 120, 130)
    contact_sheet(images, ["a", "b"], tmp_path / "one.png")
    contact_sheet(images.contiguous(memory_format=torch.channels_last), ["a", "b"], tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_images_stand_in_rows_of_columns(tmp_path: Path) -> None:
    """Five images in two columns make three rows; more columns than images leave no empty ones."""
    contact_sheet(plain(0, 0, 0, count=5), None, tmp_path / "five.png", columns=2)
    contact_sheet(plain(0, 0, 0, count=2), None, tmp_path / "two.png", columns=8)
    assert size(tmp_path / "five.png") == (8 + 2 * 136, 8 + 3 * 136)
    assert size(tmp_path / "two.png") == (8 + 2 * 136, 8 + 136)


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    """32 pixels become 128."""
    contact_sheet(plain(0, 0, 0, side=32), None, tmp_path / "sheet.png")
    assert size(tmp_path / "sheet.png") == (8 + 136, 8 + 136)


def test_captions_are_drawn_below_their_images(tmp_path: Path) -> None:
    """A caption makes the sheet taller and leaves ink that no image has."""
    contact_sheet(plain(255, 255, 255, count=2), ["stars", ""], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 8 + 136
        first = sheet.crop((8, 8 + 128, 8 + 128, sheet.height))
        second = sheet.crop((8 + 136, 8 + 128, sheet.width, sheet.height))
        assert first.getextrema() != second.getextrema()
        assert second.getextrema() == ((255, 255),) * 3


def test_a_long_caption_stays_below_its_own_image(tmp_path: Path) -> None:
    """Words that do not fit are cut."""
    contact_sheet(plain(255, 255, 255, count=2), ["a caption " * 20, ""], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.crop((8 + 128, 0, sheet.width, sheet.height)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("images", "captions", "options", "message"),
    [
        (torch.zeros(3, 8, 8), None, {}, r"shape \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8), None, {}, "one or three channels"),
        (torch.zeros(0, 3, 8, 8), None, {}, r"shape \[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), None, {}, "torch.int64 cannot be shown"),
        (torch.zeros(2, 3, 8, 8), ["one"], {}, "1 captions do not fit 2 images"),
        (torch.zeros(1, 3, 8, 8), None, {"columns": 0}, "columns=0 must be at least 1"),
        (torch.zeros(1, 3, 8, 8), None, {"mean": (0.5,)}, r"mean=\(0.5,\) .* three values"),
    ],
)
def test_arguments_that_do_not_fit_together_are_named(
    tmp_path: Path,
    images: torch.Tensor,
    captions: list[str] | None,
    options: dict[str, object],
    message: str,
) -> None:
    """Misuse is a UsageError that names the value, and no file is written."""
    with pytest.raises(UsageError, match=message):
        contact_sheet(images, captions, tmp_path / "sheet.png", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_pillow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thin client says which extra to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'feedmill\[server\]'"):
        contact_sheet(plain(0, 0, 0), None, tmp_path / "sheet.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The folder must exist."""
    path = tmp_path / "missing" / "sheet.png"
    with pytest.raises(UsageError, match=r"missing/sheet\.png: No such file or directory"):
        contact_sheet(plain(0, 0, 0), None, path)
