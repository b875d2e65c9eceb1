"""Fusion: the usual image pipelines, recognised and run faster, to the same result.

A torchvision ``Compose`` (v1 or v2) of crops, resizes and flips is run on uint8 tensors from a fast decoder instead of
Pillow images, each step by torchvision's own code and so with the same random numbers. Where it begins with
RandomResizedCrop, the crop is drawn first, and only that region is decoded. Where nothing but "to tensor" and
"normalise" follows, the bytes travel, and the client finishes them: a quarter of the traffic, and none of the
arithmetic here. Where something else follows, it runs as written, on what it expects.

The rule of this file: what is not recognised exactly (a subclass, an odd argument) is not fused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .decode import require_size
from .jpeg import Backend, Pillow, Refused, Region

__all__ = ["Finishing", "Fused", "fuse"]

Step = Callable[[Any], Any]

_CROPS: Final = (v1.RandomResizedCrop, v2.RandomResizedCrop)
_RESIZES: Final = (v1.Resize, v2.Resize)
_AS_THEY_ARE: Final = (
    *(v1.CenterCrop, v1.RandomHorizontalFlip, v1.RandomVerticalFlip),
    *(v2.CenterCrop, v2.RandomHorizontalFlip, v2.RandomVerticalFlip),
)
"""Steps that do to a tensor what they do to a Pillow image, pixel by pixel."""

_SMOOTH: Final = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
"""What torch has antialiased uint8 kernels for."""

_JPEG: Final = b"\xff\xd8\xff"

_pillow: Final = Pillow()


class Finishing(NamedTuple):
    """What the client does to a uint8 picture: ``x * scale + bias`` for each channel, or nothing at all."""

    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Fused:
    """A recognised pipeline.

    ``crop`` is a RandomResizedCrop that comes first, or None. ``steps`` run on a uint8 tensor [3, H, W]. Then either
    ``finishing`` says what the client has to do, or ``rest`` is called with what it expects.
    """

    crop: Any
    steps: tuple[Step, ...]
    finishing: Finishing | None
    rest: Step | None
    as_image: bool
    description: str

    def __call__(self, data: bytes, backend: Backend) -> Any:
        """Return what becomes of an encoded image: uint8 [3, H, W] in channels_last, or whatever ``rest`` returns."""
        # Dense: of a view that was cut out, torch's resize makes planes, and turning those back takes 115 µs a picture.
        pixels = self._decode(data, backend if data.startswith(_JPEG) else _pillow).contiguous().permute(2, 0, 1)
        if self.crop is not None:
            pixels = _resize(pixels, self.crop)
        for step in self.steps:
            pixels = step(pixels)
        if self.rest is None:
            return pixels
        return self.rest(
            Image.fromarray(pixels.permute(1, 2, 0).numpy()) if self.as_image else tv_tensors.Image(pixels)
        )

    def _decode(self, data: bytes, backend: Backend) -> torch.Tensor:
        try:
            width, height = backend.size(data)
        except Refused:
            backend = _pillow
            width, height = _pillow.size(data)
        require_size(width, height)
        region = self._region(width, height)  # the only draw, whoever decodes
        try:
            return backend.decode(data, region)
        except Refused:
            return _pillow.decode(data, region)

    def _region(self, width: int, height: int) -> Region:
        crop = self.crop
        if crop is None:
            return Region(0, 0, height, width)
        canvas = _PIXEL.expand(1, height, width)
        if isinstance(crop, v2.RandomResizedCrop):
            return Region(**crop.make_params([canvas]))
        return Region(*crop.get_params(canvas, crop.scale, crop.ratio))


_PIXEL: Final = torch.zeros((1, 1, 1), dtype=torch.uint8)


def fuse(transform: Any) -> Fused | None:
    """Return the fused form of a transform, or None if it is none that is recognised."""
    steps = _flatten(transform)
    image = True  # what the next step expects: a Pillow image, or a tensor
    if steps and type(steps[0]) in {v2.ToImage, v2.PILToTensor, v1.PILToTensor}:
        image, steps = False, steps[1:]
        if steps and _is_conversion(steps[0], torch.uint8):
            steps = steps[1:]
    crop = steps[0] if steps and type(steps[0]) in _CROPS and _smooth(steps[0]) else None
    rest = steps[1:] if crop is not None else steps
    run: list[Step] = []
    while rest and (step := _lower(rest[0])) is not None:
        run.append(step)
        rest = rest[1:]
    if crop is None and not run:
        return None
    finishing = _finishing(rest, image=image)
    fused = steps[: len(steps) - len(rest)]
    said = " + ".join(type(step).__name__ for step in fused)
    if finishing is not None:
        how = "; the client finishes" if finishing.scale else ""
        return Fused(crop, tuple(run), finishing, None, image, said + how)
    as_written = v2.Compose(rest) if rest else None
    if as_written is None and image:
        return None  # a Pillow image cannot be batched: let the pipeline say so
    names = ", ".join(type(step).__name__ for step in rest)
    return Fused(crop, tuple(run), None, as_written, image, f"{said}; then as written: {names}")


def _flatten(transform: Any) -> list[Any]:
    if type(transform) in {v1.Compose, v2.Compose}:
        return [step for inner in transform.transforms for step in _flatten(inner)]
    if type(transform) is torch.nn.Sequential:
        return [step for inner in transform for step in _flatten(inner)]
    return [transform]


def _smooth(step: Any) -> bool:
    return step.interpolation in _SMOOTH and bool(step.antialias)


def _lower(step: Any) -> Step | None:
    """Return what does to a uint8 tensor what this step does to an image, or None."""
    if type(step) in _RESIZES and _smooth(step):
        return lambda pixels: _resize(pixels, step)
    return step if type(step) in _AS_THEY_ARE else None


def _resize(pixels: torch.Tensor, step: Any) -> torch.Tensor:
    size = [step.size] if isinstance(step.size, int) else step.size
    longest = getattr(step, "max_size", None)
    resized: torch.Tensor = functional.resize_image(
        pixels, size, interpolation=step.interpolation, max_size=longest, antialias=True
    )
    return resized


def _finishing(rest: Sequence[Any], *, image: bool) -> Finishing | None:
    """Return the arithmetic that these last steps come to, None if they are something else."""
    if image:  # a Pillow image becomes a tensor: at once as float, or as bytes first
        if rest and type(rest[0]) is v1.ToTensor:
            return _normalisation(rest[1:])
        if not rest or type(rest[0]) not in {v1.PILToTensor, v2.PILToTensor, v2.ToImage}:
            return None
        rest = rest[1:]
    if not rest:
        return Finishing()
    return _normalisation(rest[1:]) if _is_conversion(rest[0], torch.float32) else None


def _is_conversion(step: Any, dtype: torch.dtype) -> bool:
    if type(step) is v2.ToDtype:
        return bool(step.dtype == dtype and step.scale)
    return type(step) in {v1.ConvertImageDtype, v2.ConvertImageDtype} and bool(step.dtype == dtype)


def _normalisation(rest: Sequence[Any]) -> Finishing | None:
    """x/255, then (x - mean) / std, as one multiplication and addition of x."""
    if not rest:
        return Finishing(scale=(1 / 255,) * 3, bias=(0.0,) * 3)
    if len(rest) > 1 or type(rest[0]) not in {v1.Normalize, v2.Normalize}:
        return None
    mean, std = ([float(v) for v in values] for values in (rest[0].mean, rest[0].std))
    if len(mean) != 3 or len(std) != 3 or not all(std):
        return None
    return Finishing(
        scale=tuple(1 / (255 * s) for s in std),
        bias=tuple(-m / s for m, s in zip(mean, std, strict=True)),
    )
