"""The usual pipelines are recognised, and what they make stays the same."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from feedmill_server.fusion import Fused, fuse
from feedmill_server.jpeg import BACKENDS, choose
from feedmill_server.pictures import draw
from feedmill_server.pipeline import Pipeline
from feedmill_server.randomness import seed_generators

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SEEDS = range(12)

FLOAT = v2.ToDtype(torch.float32, scale=True)
FINISHED = {
    "the seed's": v1.Compose(
        [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    ),
    "evaluation": v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v2, image first": v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(96), v2.RandomHorizontalFlip(), FLOAT, v2.Normalize(MEAN, STD)]
    ),
    "v2, tensor last": v2.Compose(
        [v2.RandomResizedCrop((64, 80), scale=(0.3, 0.9)), v2.RandomVerticalFlip(), v2.ToImage(), FLOAT]
    ),
    "v1, bytes first": v1.Compose(
        [v1.Resize((100, 120)), v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)]
    ),
    "nested": v1.Compose([v1.Compose([v1.Resize(90), v1.CenterCrop(80)]), v1.ToTensor()]),
}
WITH_A_TAIL = {
    "jitter": v1.Compose([v1.RandomResizedCrop(64), v1.ColorJitter(0.4, 0.4, 0.4), v1.ToTensor()]),
    "erasing": v1.Compose([v1.RandomResizedCrop(64), v1.ToTensor(), v1.RandomErasing(p=1.0)]),
    "a function": v1.Compose([v1.RandomResizedCrop(64), lambda image: np.asarray(image).copy()]),
}
AS_WRITTEN = {
    "nearest": v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(64, interpolation=InterpolationMode.NEAREST, antialias=False), FLOAT]
    ),
    "float first": v1.Compose([v1.ToTensor(), v1.RandomResizedCrop(64)]),
    "no antialias": v2.Compose([v2.ToImage(), v2.Resize((64, 64), antialias=False), FLOAT]),
    "a function first": v1.Compose([lambda image: image, v1.RandomResizedCrop(64), v1.ToTensor()]),
    "a subclass": type("Mine", (v1.RandomResizedCrop,), {})(64),
    "no transform at all": None,
    "a string": "RandomResizedCrop",
}


def jpeg(number: int, **options: Any) -> bytes:
    """Return a picture as a JPEG."""
    image = draw(number % 8, 180 + 13 * number, 150 + 7 * number, np.random.default_rng(number))
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def as_written(transform: Callable[[Any], Any], data: bytes, seed: int) -> torch.Tensor:
    """Run a transform on a Pillow image."""
    seed_generators(seed)
    return torch.as_tensor(transform(Image.open(io.BytesIO(data)).convert("RGB")))


def finished(fused: Fused, pixels: torch.Tensor) -> torch.Tensor:
    """Do the client's part."""
    assert fused.finishing is not None
    scale, bias = (torch.tensor(numbers).view(-1, 1, 1) for numbers in fused.finishing)
    return pixels * scale + bias


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_picture_is_the_one_that_was_written(name: str, backend: str) -> None:
    """The same crop and flip for the same seed, and pixels at most 1/255 apart but for one in a million."""
    fused = fuse(FINISHED[name])
    assert fused is not None
    apart = total = 0
    for seed in SEEDS:
        data = jpeg(seed, subsampling=seed % 3, progressive=seed % 2 == 1)
        expected = as_written(FINISHED[name], data, seed)
        seed_generators(seed)
        pixels = fused(data, choose(backend))
        assert pixels.dtype == torch.uint8
        difference = (finished(fused, pixels) - expected).abs()
        scale = torch.tensor(fused.finishing.scale).view(3, 1, 1) if fused.finishing else 1
        levels = difference / scale
        assert levels.max() < 2.01
        apart += int((levels > 1.01).sum())
        total += levels.numel()
    assert apart <= total / 100_000


@pytest.mark.parametrize("name", WITH_A_TAIL)
def test_what_follows_the_prefix_runs_as_written(name: str) -> None:
    """Later steps get what they expect, and draw what they would have drawn."""
    fused = fuse(WITH_A_TAIL[name])
    assert fused is not None
    assert fused.finishing is None
    for seed in SEEDS:
        expected = as_written(WITH_A_TAIL[name], jpeg(seed), seed)
        seed_generators(seed)
        made = torch.as_tensor(fused(jpeg(seed), choose()))
        assert made.dtype == expected.dtype
        assert made.shape == expected.shape
        levels = (made.double() - expected.double()).abs() * (255 if made.is_floating_point() else 1)
        assert levels.mean() < 0.5


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_what_is_not_recognised_is_not_fused(name: str) -> None:
    """An odd argument, a subclass or a stranger's function leaves the pipeline as it is."""
    assert fuse(AS_WRITTEN[name]) is None


def test_a_png_goes_the_same_way() -> None:
    """Only JPEGs have a fast decoder; other pictures of a fused field come from Pillow, as the same kind of row."""
    fused = fuse(FINISHED["evaluation"])
    assert fused is not None
    image = draw(3, 200, 170, np.random.default_rng(3))
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = fused(file.getvalue(), choose())
    expected = as_written(FINISHED["evaluation"], file.getvalue(), 0)
    assert (finished(fused, pixels) - expected).abs().max() < 2.01 / 255 / min(STD)


def test_a_pipeline_says_what_it_fused() -> None:
    """A log line names the steps, the decoder, and what runs as written."""
    written = Pipeline("jpg cls", transforms=[FINISHED["the seed's"], None])
    fused, said = written.fused(choose("pillow"))
    (line,) = said
    assert "RandomResizedCrop + RandomHorizontalFlip" in line
    assert "pillow" in line
    members = {"jpg": jpeg(1), "cls": b"5"}
    seed_generators(1)
    image, label = fused(members)
    (spec, _) = fused.specs([image, label])
    assert spec.channels_last
    assert len(spec.scale) == 3
    assert written(members)[0].dtype == torch.float32


def test_an_exact_pipeline_is_not_fused() -> None:
    """exact=True runs everything as written."""
    _, said = Pipeline("jpg", transforms=[FINISHED["the seed's"]], exact=True).fused(choose())
    assert said == ["jpg: as written"]
