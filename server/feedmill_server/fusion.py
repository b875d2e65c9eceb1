"""Fusion: the usual image pipelines, recognised and run faster, to the same result.

A torchvision ``Compose`` (v1 or v2) of crops, resizes and flips is run on uint8 tensors from a fast decoder instead of
Pillow images, each step by torchvision's own code and so with the same random numbers. Where it begins with
RandomResizedCrop, the crop is drawn first, and only that region is decoded. Where nothing but "to tensor" and
"normalise" follows, the bytes travel, and the client finishes them: a quarter of the traffic, and none of the
arithmetic here. Where something else follows, it runs as written, on what it expects.

The rule of this file: what is not recognised exactly (a subclass, an odd argument) is not fused.
"""

from collections.abc import Callable, Iterable, Sequence
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

_RANDOM_CROPS: Final = (v1.RandomCrop, v2.RandomCrop)
_TENSORS: Final = (v1.PILToTensor, v2.PILToTensor, v2.ToImage)
_FLOATS: Final = (v1.ToTensor, v2.ToTensor)

_SMOOTH: Final = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, "bilinear", "bicubic")
"""What torch has antialiased uint8 kernels for; newer releases of v2 keep the name alone."""

_JPEG: Final = b"\xff\xd8\xff"

_pillow: Final = Pillow()


class Finishing(NamedTuple):
    """What the client does to a uint8 picture: ``x * scale + bias`` for each channel, or nothing at all."""

    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()


def _pillow_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _tensor(pixels: torch.Tensor) -> torch.Tensor:
    return pixels


@dataclass(frozen=True, slots=True)
class Fused:
    """A recognised pipeline.

    ``crop`` is a RandomResizedCrop that comes first, or None. ``steps`` run on a uint8 tensor [3, H, W]. Then either
    ``finishing`` says what the client has to do, or ``rest`` runs, as written, on what it ``expects``.
    """

    crop: Any
    steps: tuple[Step, ...]
    finishing: Finishing | None
    expects: Step
    rest: tuple[Step, ...]
    description: str

    def __call__(self, data: bytes, backend: Backend) -> Any:
        """Return what becomes of an encoded image: uint8 [3, H, W] if it is to be finished, or what ``rest`` makes."""
        # Dense: of a view that was cut out, torch's resize makes planes, and turning those back takes 115 µs a picture.
        pixels = self._decode(data, backend if data.startswith(_JPEG) else _pillow).contiguous().permute(2, 0, 1)
        if self.crop is not None:
            pixels = _resize(pixels, self.crop)
        for step in self.steps:
            pixels = step(pixels)
        if self.finishing is not None:
            return pixels
        value = self.expects(pixels)
        for step in self.rest:
            value = step(value)
        return value

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
    rest = _flatten(transform)
    fused: list[Any] = []
    crop: Any = None
    run: list[Step] = []
    expects: Step = _pillow_image  # what the next step expects
    while rest:
        step = rest[0]
        if expects is _pillow_image and type(step) in _TENSORS:
            expects = tv_tensors.Image if type(step) is v2.ToImage else _tensor
        elif crop is None and not run and type(step) in _CROPS and _smooth(step):
            crop = step
        elif (lowered := _lower(step)) is not None:
            run.append(lowered)
        elif expects is _pillow_image or not _is_conversion(step, torch.uint8):
            break
        fused.append(step)
        rest = rest[1:]
    finishing = _finishing(rest, image=expects is _pillow_image)
    if finishing is None and not (rest and (crop or run)):
        return None  # nothing to gain; or a Pillow image at the end, of which the pipeline should complain
    if finishing is None:
        description = f"{_names(fused)}; then as written: {_names(rest)}"
    else:
        description = " + ".join(filter(None, (_names(fused), finishing.scale and "the client finishes")))
    return Fused(crop, tuple(run), finishing, expects, tuple(rest), description)


def _names(steps: Iterable[Any]) -> str:
    return " + ".join(type(step).__name__ for step in steps)


def _flatten(transform: Any) -> list[Any]:
    if type(transform) in {v1.Compose, v2.Compose} and isinstance(transform.transforms, Sequence):
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
    if type(step) in _RANDOM_CROPS:
        return step if type(step.fill) is int and step.fill == 0 and step.padding_mode == "constant" else None
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
    if rest and not image and type(rest[-1]) is v2.ToPureTensor:
        rest = rest[:-1]
    if not rest:
        return None if image else Finishing()
    to_float = type(rest[0]) in _FLOATS if image else _is_conversion(rest[0], torch.float32)
    return _normalisation(rest[1:]) if to_float else None


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
    try:
        mean, std = (torch.as_tensor(values, dtype=torch.float64) for values in (rest[0].mean, rest[0].std))
    except (TypeError, ValueError, RuntimeError):  # torchvision will say what it thinks of them
        return None
    if not mean.shape == std.shape == (3,):
        return None
    scale, bias = 1 / (255 * std), -mean / std
    return Finishing(tuple(scale.tolist()), tuple(bias.tolist())) if (scale + bias).isfinite().all() else None
