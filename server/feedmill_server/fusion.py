"""Fusion: the usual image pipelines, recognised and run faster, to the same result.

A torchvision ``Compose`` (v1 or v2) of crops, resizes and flips is run on uint8 tensors from a fast decoder instead of
Pillow images, each step by torchvision's own code and so with the same random numbers. What torch does not do as Pillow
does it, to 1 of 255, Pillow does. Where it begins with RandomResizedCrop, the crop is drawn first, and only that region
is decoded. Where nothing but "to tensor" and "normalise" follows, the bytes travel, and the client finishes them: a
quarter of the traffic, and none of the arithmetic here. Where something else follows, it runs as written, on what it
expects.

The rule of this file: what is not recognised exactly (a subclass, an odd argument) is not fused.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .decode import require_size
from .jpeg import Backend, Pillow, Refused, Region
from .phases import Lap, Phase, untimed

__all__ = ["Finishing", "Fused", "fuse"]

Step = Callable[[Any], Any]
Resize = Callable[..., torch.Tensor]  # of pixels [3, H, W], and a row in which the result may be made

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

_BILINEAR: Final = (InterpolationMode.BILINEAR, "bilinear")
_BICUBIC: Final = (InterpolationMode.BICUBIC, "bicubic")
"""How releases of v1 and v2 keep what they were given."""

_RISK: Final = 1e-5
"""From which risk on Pillow does the second pass: the share of pixels that torch rounds differently in both of two.

Both libraries round after each pass. Where an exact sum ends in .5 (which it often does from sizes whose ratio is a
simple fraction), each goes by the error of its own fixed-point weights. Once, that makes a pixel 1 apart; in both
passes, 2. This is so for 1 of 385 random crops of photographs; with this limit for 1 of 5,500. Pillow has a part in 1
of 12, and these take three times as long.
"""

_HAS_KERNEL: Final = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
"""Whether torch resizes bytes as bytes here, as `functional.resize_image` knows."""

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

    ``crop`` is a RandomResizedCrop that comes first, or None: it says what to decode, and ``resize`` gives that its
    size. ``steps`` run on what comes of it, a uint8 tensor [3, H, W]. Then either ``finishing`` says what the client
    has to do, or ``rest`` runs, as written, on what it ``expects``.
    """

    crop: Any
    resize: Resize | None
    steps: tuple[Step, ...]
    finishing: Finishing | None
    expects: Step
    rest: tuple[Step, ...]
    description: str

    def __call__(self, data: bytes, backend: Backend, row: torch.Tensor | None = None, lap: Lap = untimed) -> Any:
        """Return what becomes of an encoded image: uint8 [3, H, W] if it is to be finished, or what ``rest`` makes.

        Where that saves a copy, it is made in the memory of ``row``, a tensor like those returned before, which is then
        returned itself. ``lap`` is told when it is decoded.
        """
        pixels = self._decode(data, backend if data.startswith(_JPEG) else _pillow).permute(2, 0, 1)
        lap(Phase.DECODE)
        if self.resize is not None:
            pixels = self.resize(pixels, row if self.finishing is not None else None)
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
    resize: Resize | None = None
    run: list[Step] = []
    expects: Step = _pillow_image  # what the next step expects
    while rest:
        step = rest[0]
        image = expects is _pillow_image
        if image and type(step) in _TENSORS:
            expects = tv_tensors.Image if type(step) is v2.ToImage else _tensor
        elif not (run or crop) and type(step) in _CROPS and (resize := _resizing(step, image=image)) is not None:
            crop = step
        elif (lowered := _lower(step, image=image)) is not None:
            run.append(lowered)
        elif image or not _is_conversion(step, torch.uint8):
            break
        fused.append(step)
        rest = rest[1:]
    finishing = _finishing(rest, image=expects is _pillow_image)
    if finishing is None and not (rest and (run or crop)):
        return None  # nothing to gain; or a Pillow image at the end, of which the pipeline should complain
    if finishing is None:
        description = f"{' + '.join(_names(fused))}; then as written: {' + '.join(_names(rest))}"
        return Fused(crop, resize, tuple(run), None, expects, tuple(rest), description)
    description = " + ".join(_names(fused) + ["the client finishes"] * bool(finishing.scale))
    return Fused(crop, resize, tuple(run), finishing, expects, (), description)


def _names(steps: Iterable[Any]) -> list[str]:
    return [type(step).__name__ for step in steps]


def _flatten(transform: Any) -> list[Any]:
    if type(transform) in {v1.Compose, v2.Compose} and isinstance(transform.transforms, Sequence):
        return [step for inner in transform.transforms for step in _flatten(inner)]
    if type(transform) is torch.nn.Sequential:
        return [step for inner in transform for step in _flatten(inner)]
    return [transform]


def _lower(step: Any, *, image: bool) -> Step | None:
    """Return what does to a uint8 tensor what this step does to a Pillow image (or to a tensor); or None."""
    if type(step) in _RESIZES:
        return _resizing(step, image=image)
    if type(step) in _RANDOM_CROPS:
        return step if type(step.fill) is int and step.fill == 0 and step.padding_mode == "constant" else None
    return step if type(step) in _AS_THEY_ARE else None


def _resizing(step: Any, *, image: bool) -> Resize | None:
    """Return what resizes as a Resize or RandomResizedCrop does that expects a Pillow image, or a tensor; or None."""
    bilinear = step.interpolation in _BILINEAR
    if image:
        return partial(_resize_like_pillow if bilinear else _resize_by_pillow, step)
    # On tensors, v2 has the kernel that is used here; v1 computes in floats, to which a bicubic is not near enough.
    is_v2 = type(step) in {v2.RandomResizedCrop, v2.Resize}
    smooth = bilinear or (is_v2 and step.interpolation in _BICUBIC)
    return partial(_resize, step) if smooth and step.antialias is True else None


def _resize_like_pillow(step: Any, pixels: torch.Tensor, row: torch.Tensor | None = None) -> torch.Tensor:
    (old_height, old_width), (height, width) = pixels.shape[1:], _new_size(step, pixels)
    if _disagreement(old_height, height) * _disagreement(old_width, width) < _RISK:
        return _resize(step, pixels, row)
    # Columns are the first pass of both. What they differ by in that, the second takes for the same.
    columns = functional.resize_image(_packed(pixels), [old_height, width], antialias=True)
    return _resize_by_pillow(step, columns, size=(height, width))


@lru_cache(maxsize=4096)
def _disagreement(old: int, new: int) -> float:
    """Return the share of pixels in which torch and Pillow differ after one pass, from one size to another."""
    strip = _strip(1 << old.bit_length())[:, :old]
    by_pillow = np.array(Image.fromarray(strip).resize((new, len(strip)), Image.Resampling.BILINEAR))
    by_torch = functional.resize_image(torch.from_numpy(strip).permute(2, 0, 1), [len(strip), new], antialias=True)
    return float(np.mean(by_pillow != by_torch.permute(1, 2, 0).numpy()))


@lru_cache
def _strip(width: int) -> Any:
    """Return 64 rows of a picture with the edges of a photograph: errors are in proportion to them."""
    steps = np.random.default_rng(0).normal(0, 40, (64, width, 3))
    return (255 - np.abs(steps.cumsum(axis=1) % 510 - 255)).astype(np.uint8)


def _resize_by_pillow(
    step: Any, pixels: torch.Tensor, _: torch.Tensor | None = None, size: tuple[int, int] | None = None
) -> torch.Tensor:
    image = functional.resize(_pillow_image(pixels), size or _new_size(step, pixels), step.interpolation)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resize(step: Any, pixels: torch.Tensor, row: torch.Tensor | None = None) -> torch.Tensor:
    size = _new_size(step, pixels)
    new = (3, *size)
    if row is not None and row.shape == new != pixels.shape and step.interpolation in _BILINEAR and _HAS_KERNEL:
        # Interpolate has no `out`; this is what it calls.
        torch.ops.aten._upsample_bilinear2d_aa.out(pixels[None], size, False, None, None, out=row[None])  # noqa: SLF001
        return row
    resized: torch.Tensor = functional.resize_image(_packed(pixels), size, step.interpolation, antialias=True)
    return resized


def _packed(pixels: torch.Tensor) -> torch.Tensor:
    """Return rows without gaps, of which torch's resize makes such rows, and in two thirds of the time."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _new_size(step: Any, pixels: torch.Tensor) -> tuple[int, int]:
    if isinstance(step.size, Sequence) and len(step.size) == 2:
        return tuple(step.size)
    _, height, width = pixels.shape
    return _to_shorter_side(step, height, width)


@lru_cache(maxsize=4096)
def _to_shorter_side(step: Any, height: int, width: int) -> tuple[int, int]:
    size = [step.size] if isinstance(step.size, int) else step.size
    like = torch.empty((3, height, width), device="meta")
    return tuple(functional.resize_image(like, size, max_size=step.max_size, antialias=True).shape[1:])


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
