"""Fused pipelines against the same pipelines as they are written."""

import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

import photographs
from feedmill.tensors import Tensors
from feedmill_protocol.tensors import FieldSpec
from feedmill_server import Pipeline
from feedmill_server.decode import decode_image
from feedmill_server.fusion import Finishing, Fused, fuse
from feedmill_server.jpeg import BACKENDS, Backend, choose
from feedmill_server.randomness import seed_generators
from photographs import KINDS, encoded, noise, photograph

unhurried = settings(deadline=None)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TURBO = choose("turbo")
CPU = torch.device("cpu")
FLOAT = torch.float32
BICUBIC, NEAREST = InterpolationMode.BICUBIC, InterpolationMode.NEAREST

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated, and used
    TO_TENSOR_V2 = v2.ToTensor()

PICTURES: dict[str, bytes] = {
    **{kind: make(photograph(301, 203, 5)) for kind, make in KINDS.items()},
    "upright": encoded(photograph(203, 301, 6)),
    "large": encoded(photograph(1500, 1000, 7)),
    "flat": encoded(photograph(700, 40, 8)),
    "one pixel": encoded(noise(1, 1)),
    "7 by 3": encoded(noise(7, 3)),
    "noise": encoded(noise(240, 250), quality=98, subsampling="4:4:4"),
}

FINISHED: dict[str, Callable[[], Sequence[Any]]] = {
    # the seed's
    "train": lambda: [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)],
    "eval": lambda: [v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize(MEAN, STD)],
    # v2
    "v2 train": lambda: [
        v2.RandomResizedCrop(224),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(FLOAT, scale=True),
        v2.Normalize(MEAN, STD),
    ],
    "v2 train, to tensor": lambda: [
        v2.RandomResizedCrop(224),
        v2.RandomHorizontalFlip(),
        TO_TENSOR_V2,
        v2.Normalize(MEAN, STD),
    ],
    "v2 train on tensors": lambda: [
        v2.ToImage(),
        v2.ToDtype(torch.uint8, scale=True),
        v2.RandomResizedCrop(224, antialias=True),
        v2.RandomHorizontalFlip(p=0.5),
        v2.ToDtype(FLOAT, scale=True),
        v2.Normalize(MEAN, STD),
    ],
    "v2 eval on tensors": lambda: [
        v2.PILToTensor(),
        v2.Resize(256),
        v2.CenterCrop(224),
        v2.ConvertImageDtype(FLOAT),
        v2.Normalize(MEAN, STD),
        v2.ToPureTensor(),
    ],
    "v2, tensors half way": lambda: [
        v2.RandomResizedCrop(64),
        v2.ToImage(),
        v2.RandomVerticalFlip(),
        v2.ToDtype(FLOAT, scale=True),
    ],
    # orders of v1
    "reference recipe": lambda: [
        v1.RandomResizedCrop(176, interpolation=InterpolationMode.BILINEAR, antialias=True),
        v1.RandomHorizontalFlip(0.5),
        v1.PILToTensor(),
        v1.ConvertImageDtype(torch.float),
        v1.Normalize(mean=tuple(MEAN), std=tuple(STD)),
    ],
    "v1 on tensors": lambda: [
        v1.PILToTensor(),
        v1.RandomResizedCrop(96),
        v1.ConvertImageDtype(torch.float),
        v1.Normalize(MEAN, STD),
    ],
    "nested": lambda: [
        v1.Compose([v1.Compose([v1.RandomResizedCrop(80)]), v1.RandomHorizontalFlip()]),
        v2.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    ],
    "modules": lambda: [nn.Sequential(v2.RandomResizedCrop(80), v2.RandomHorizontalFlip()), v1.ToTensor()],
    # arguments
    "no normalisation": lambda: [v1.RandomResizedCrop(48), v1.ToTensor()],
    "bytes": lambda: [v2.RandomResizedCrop(48), v2.PILToTensor()],
    "wide crops": lambda: [v1.RandomResizedCrop((96, 160), scale=(0.3, 0.9), ratio=(0.2, 5)), v1.ToTensor()],
    "bicubic": lambda: [v1.RandomResizedCrop(112, interpolation=BICUBIC), v1.ToTensor()],
    "bicubic eval": lambda: [v2.Resize(236, interpolation=BICUBIC), v2.CenterCrop(224), v2.ToImage()],
    "bicubic on tensors": lambda: [v2.ToImage(), v2.RandomResizedCrop(112, interpolation=BICUBIC)],
    "nearest": lambda: [v1.RandomResizedCrop(112, interpolation=NEAREST), v1.ToTensor()],
    "not antialiased, says Pillow": lambda: [v1.Resize((112, 80), antialias=False), v1.ToTensor()],
    "height and width": lambda: [v1.Resize((100, 313)), v1.ToTensor()],
    "longest side": lambda: [v2.Resize(200, max_size=230), v2.CenterCrop((190, 220)), v1.ToTensor()],
    "small": lambda: [v1.Resize([8, 9]), v1.ToTensor()],
    "old crops": lambda: [v1.Resize(130), v1.RandomCrop(112), v1.RandomVerticalFlip(), v1.ToTensor()],
    "padded crops": lambda: [v1.RandomCrop(200, padding=8, pad_if_needed=True), v1.ToTensor()],
    "v2 padded crops": lambda: [v2.Resize(96), v2.RandomCrop(96, padding=[3, 9]), v1.ToTensor()],
    "center": lambda: [v1.CenterCrop(224), v1.ToTensor()],
    "nothing but a tensor": lambda: [v1.ToTensor(), v1.Normalize(MEAN, STD)],
}
"""Pipelines that the client finishes."""

EXACT = {"bicubic", "bicubic eval", "bicubic on tensors", "nearest"} | {
    *("v2 train on tensors", "v2 eval on tensors", "padded crops", "center", "nothing but a tensor")
}
"""Those which nothing is rounded differently in."""


def as_written(transform: Any, data: bytes, seed: int) -> Any:
    """Return what a transform makes of an image, decoded by Pillow."""
    seed_generators(seed)
    return transform(decode_image(data, "RGB", "pil"))


def as_fused(fused: Fused, data: bytes, seed: int, backend: Backend = TURBO) -> Any:
    seed_generators(seed)
    return fused(data, backend)


def finish(pixels: torch.Tensor, finishing: Finishing) -> torch.Tensor:
    """Finish a row as the client does."""
    field = FieldSpec("x", "uint8", tuple(pixels.shape), True, finishing.scale, finishing.bias)
    (finished,) = Tensors(CPU, None).finish([pixels[None]], [field])
    return finished[0]


def levels_apart(finished: torch.Tensor, wanted: torch.Tensor, finishing: Finishing) -> float:
    """Return the largest difference of two finished pictures, in levels of 255 before they were normalised."""
    assert finished.shape == wanted.shape
    difference = (finished.double() - wanted.double()).abs()
    if finishing.scale:
        difference /= torch.tensor(finishing.scale, dtype=torch.float64).view(-1, 1, 1)
    return float(difference.max())


def fused_of(steps: Sequence[Any]) -> Fused:
    fused = fuse(v1.Compose(list(steps)))
    assert fused is not None
    return fused


@pytest.mark.filterwarnings("ignore:Anti-alias option is always applied")
@pytest.mark.parametrize("name", FINISHED)
def test_a_fused_pipeline_gives_what_is_written(name: str) -> None:
    """The same crop and flip, pixels at most one level apart, and the same random numbers left for whatever follows."""
    steps = FINISHED[name]()
    fused = fused_of(steps)
    assert fused.finishing is not None
    assert fused.rest == ()
    for seed, (kind, data) in enumerate(PICTURES.items()):
        wanted = as_written(v1.Compose(steps), data, seed)
        after = torch.rand(3)
        pixels = as_fused(fused, data, seed)
        assert torch.equal(torch.rand(3), after)
        assert pixels.dtype == torch.uint8
        apart = levels_apart(finish(pixels, fused.finishing), wanted, fused.finishing)
        assert apart < (0.01 if name in EXACT else 1.01), kind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["train", "eval"])
def test_back_ends_agree(name: str, backend: str) -> None:
    """To the bit: what they decode is the same."""
    fused = fused_of(FINISHED[name]())
    for seed, (kind, data) in enumerate(PICTURES.items()):
        assert torch.equal(as_fused(fused, data, seed, choose(backend)), as_fused(fused, data, seed)), kind


@pytest.mark.parametrize("name", ["train", "eval", "v2 train", "v2 train on tensors", "v1 on tensors", "bicubic eval"])
def test_the_real_photographs_come_out_as_written(name: str) -> None:
    """At most one level apart, every pixel of all of them."""
    steps = FINISHED[name]()
    fused = fused_of(steps)
    assert fused.finishing is not None
    for seed, data in enumerate(photographs.real()):
        wanted = as_written(v1.Compose(steps), data, seed)
        apart = levels_apart(finish(as_fused(fused, data, seed), fused.finishing), wanted, fused.finishing)
        assert apart < (0.01 if name in EXACT else 1.01), seed


@unhurried
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_any_size_becomes_any_other(width: int, height: int, to_height: int, to_width: int, seed: int) -> None:
    """Of noise, where every pixel counts."""
    data = encoded(noise(width, height, seed), quality=95)
    steps = [v1.RandomResizedCrop((to_height, to_width)), v1.RandomHorizontalFlip(), v1.ToTensor()]
    fused = fused_of(steps)
    wanted = as_written(v1.Compose(steps), data, seed) * 255
    # Once in some thousands a pixel is rounded differently twice.
    assert float((as_fused(fused, data, seed) - wanted).abs().max()) < 2.01


def test_sizes_at_which_torch_and_pillow_round_differently_are_left_to_both() -> None:
    """320 by 500 to 256 by 400: one in four pixels is a tie, and some are ties twice, and would be 2 apart."""
    data = encoded(noise(500, 320), quality=98, subsampling="4:4:4")
    steps = [v1.Resize(256), v1.ToTensor()]
    wanted = as_written(v1.Compose(steps), data, 0) * 255
    assert float((as_fused(fused_of(steps), data, 0) - wanted).abs().max()) < 1.01


def test_bytes_lie_as_decoders_make_them() -> None:
    """Channels last, so that a row of the slot is one copy."""
    pixels = as_fused(fused_of(FINISHED["train"]()), PICTURES["4:2:0"], 3)
    assert pixels.shape == (3, 224, 224)
    assert torch.empty(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)[0].stride() == pixels.stride()


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_picture_may_be_made_in_its_row(name: str) -> None:
    """The same, to the bit; and where it is not made there, the row is left to the caller."""
    fused = fused_of(FINISHED[name]())
    rows = torch.zeros(2, 3, 224, 224, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    made = 0
    for seed in range(20):
        data = PICTURES["4:2:0"]
        wanted = as_fused(fused, data, seed)
        seed_generators(seed)
        got = fused(data, TURBO, rows[1])
        assert torch.equal(got, wanted)
        made += got.data_ptr() == rows[1].data_ptr()
    assert not rows[0].any()
    assert (0 < made < 20) if name == "train" else not made  # unless it is flipped


def test_a_row_of_another_shape_is_not_touched() -> None:
    """A stream's first sample may have said otherwise; the worker compares."""
    row = torch.zeros(3, 8, 8, dtype=torch.uint8)
    seed_generators(3)
    assert fused_of(FINISHED["train"]())(PICTURES["4:2:0"], TURBO, row).shape == (3, 224, 224)
    assert not row.any()


def test_only_the_region_is_decoded() -> None:
    """What lies around a crop costs nothing, whatever runs after it."""
    asked = []

    class Watched:
        name = "watched"
        size = TURBO.size

        def decode(self, data: bytes, region: Any) -> torch.Tensor:
            asked.append(region)
            return TURBO.decode(data, region)

    for steps in (FINISHED["train"](), [v1.RandomResizedCrop(224), v1.ColorJitter(0.4), v1.ToTensor()]):
        as_fused(fused_of(steps), PICTURES["large"], 1, Watched())
    as_fused(fused_of(FINISHED["eval"]()), PICTURES["large"], 1, Watched())
    assert asked[0] == asked[1] != asked[2] == (0, 0, 1000, 1500)
    assert asked[0].height * asked[0].width < 1500 * 1000


# What the fast path does not take.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot identify image file"),
        (b"\xff\xd8\xff" + bytes(100), "cannot identify image file"),
        (PICTURES["large"][:20_000], "image file is truncated"),
        (PICTURES["large"][:-2], "image file is truncated"),
        (PICTURES["PNG"][:2000], "truncated"),
        (photographs.resized(PICTURES["4:2:0"], 20_000, 5001), "20000x5001 pixels, more than 100,000,000$"),
        (photographs.resized(PICTURES["4:2:0"], 60_000, 60_000), "pixels"),
        (photographs.of_many_scans(PICTURES["progressive 4:2:0"], 600), "609 scans, more than 500$"),
        (photographs.of_12_bits(PICTURES["4:2:0"]), "cannot identify image file|precision"),
    ],
    ids=["nothing", "a marker", "half", "all but the end", "a PNG", "large", "huge", "many scans", "12 bits"],
)
def test_bad_images_are_errors_with_a_reason(data: bytes, says: str, backend: str) -> None:
    """Pillow's, whoever began; and the random numbers of the next sample are its own."""
    fused = fused_of(FINISHED["train"]())
    for seed in range(4):  # wherever the crop lies
        with pytest.raises(Exception, match=says) as caught:
            as_fused(fused, data, seed, choose(backend))
        assert isinstance(caught.value, (OSError, ValueError, Image.DecompressionBombError))
    assert torch.equal(as_fused(fused, PICTURES["4:2:0"], 1, choose(backend)), as_fused(fused, PICTURES["4:2:0"], 1))


# What follows the prefix.


class Noise:
    """A user's own transform."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.seen.append(value)
        if isinstance(value, Image.Image):
            array = np.asarray(value).astype(np.float32)
            return torch.from_numpy(array + np.random.normal(size=array.shape).astype(np.float32)) / 255  # noqa: NPY002
        return torch.as_tensor(value).float() / 255 + torch.rand(value.shape)


TAILS: dict[str, Callable[[], list[Any]]] = {
    "jitter": lambda: [
        v1.RandomResizedCrop(96),
        v1.RandomHorizontalFlip(),
        v1.ColorJitter(0.4, 0.4, 0.4),
        v1.ToTensor(),
    ],
    "v2 jitter": lambda: [v2.RandomResizedCrop(96), v2.ColorJitter(brightness=0.4), v2.ToImage()],
    "v2 jitter on tensors": lambda: [v2.ToImage(), v2.RandomResizedCrop(96), v2.ColorJitter(brightness=0.4)],
    "RandAugment": lambda: [v1.Resize(128), v1.CenterCrop(96), v1.RandAugment(), v1.PILToTensor()],
    "TrivialAugment": lambda: [v2.RandomResizedCrop(96), v2.TrivialAugmentWide(), v2.ToImage()],
    "erasing": lambda: [v1.RandomResizedCrop(96), v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomErasing(p=1)],
    "a function": lambda: [v1.RandomResizedCrop(96), v1.RandomHorizontalFlip(), np.asarray],
    "own noise": lambda: [v1.RandomResizedCrop(96), Noise()],
    "own noise on tensors": lambda: [v1.PILToTensor(), v1.RandomResizedCrop(96), Noise()],
    "half": lambda: [v2.RandomResizedCrop(96), v2.ToImage(), v2.ToDtype(torch.float16, scale=True)],
    "not scaled": lambda: [v2.RandomResizedCrop(96), v2.ToImage(), v2.ToDtype(FLOAT, scale=False)],
    "dtypes by kind": lambda: [
        v2.RandomResizedCrop(96),
        v2.ToImage(),
        v2.ToDtype({tv_tensors.Image: FLOAT}, scale=True),
    ],
    "one mean for all": lambda: [v1.RandomResizedCrop(96), v1.ToTensor(), v1.Normalize([0.5], [0.5])],
    "a number for a mean": lambda: [v1.RandomResizedCrop(96), v1.ToTensor(), v1.Normalize(0.5, 0.5)],
    "normalised twice": lambda: [v1.CenterCrop(96), v1.ToTensor(), v1.Normalize(MEAN, STD), v1.Normalize(MEAN, STD)],
    "cropped in floats": lambda: [v1.Resize(99), v1.ToTensor(), v1.CenterCrop(96)],
}
"""Pipelines whose beginning is fused."""


@pytest.mark.parametrize("name", TAILS)
def test_what_follows_runs_as_written(name: str) -> None:
    """With the random numbers, of all three generators, that it has as written."""
    steps = TAILS[name]()
    fused = fused_of(steps)
    assert fused.finishing is None
    assert "; then as written: " in fused.description
    exact = name == "v2 jitter on tensors"
    for seed, kind in enumerate(["4:2:0", "PNG", "large", "CMYK"]):
        wanted = as_written(v1.Compose(steps), PICTURES[kind], seed)
        after = [float(torch.rand(1)), float(np.random.rand())]  # noqa: NPY002
        made = as_fused(fused, PICTURES[kind], seed)
        assert [float(torch.rand(1)), float(np.random.rand())] == after  # noqa: NPY002
        assert type(made) is type(wanted)
        made, wanted = (value if isinstance(value, torch.Tensor) else torch.tensor(value) for value in (made, wanted))
        assert made.dtype == wanted.dtype
        difference = (made.double() - wanted.double()).abs()
        # A level's difference grows in what follows; in the mean there is next to none.
        assert float(difference.mean()) <= 0.01 * max(1.0, float(wanted.double().std()))
        assert not exact or float(difference.max()) == 0


def test_what_follows_gets_what_it_expects() -> None:
    """A Pillow image, a tensor, or torchvision's own kind of one."""
    for before, kind in (([], Image.Image), ([v1.PILToTensor()], torch.Tensor), ([v2.ToImage()], tv_tensors.Image)):
        own = Noise()
        steps = [*before, v2.RandomResizedCrop(32), own]
        as_written(v1.Compose(steps), PICTURES["4:2:0"], 1)
        as_fused(fused_of(steps), PICTURES["4:2:0"], 1)
        wanted, made = own.seen
        assert type(made) is type(wanted) is (kind if kind is not Image.Image else type(wanted))
        assert isinstance(made, kind)
        if isinstance(made, Image.Image):
            assert (made.mode, made.size) == (wanted.mode, wanted.size)
            made, wanted = np.asarray(made), np.asarray(wanted)
        assert np.abs(np.asarray(made).astype(int) - np.asarray(wanted)).max() <= 1


# What is not recognised.


class Mine(v1.RandomResizedCrop):  # type: ignore[misc]
    """A subclass may do anything."""


UNKNOWN: dict[str, Callable[[], Any]] = {
    "nothing": lambda: v1.Compose([]),
    "a function": lambda: v1.Compose([np.asarray]),
    "a subclass first": lambda: v1.Compose([Mine(32), v1.ToTensor()]),
    "a subclass of Compose": lambda: type("Mine", (v1.Compose,), {})([v1.RandomResizedCrop(32), v1.ToTensor()]),
    "sometimes": lambda: v1.Compose([v1.RandomApply([v1.RandomResizedCrop(32)]), v1.Resize(40), v1.ToTensor()]),
    "floats first": lambda: v1.Compose([v1.ToTensor(), v1.RandomResizedCrop(32), v1.RandomHorizontalFlip()]),
    "nearest on tensors": lambda: v2.Compose([v2.ToImage(), v2.RandomResizedCrop(32, interpolation=NEAREST)]),
    "not antialiased on tensors": lambda: v2.Compose([v2.ToImage(), v2.RandomResizedCrop(32, antialias=False)]),
    "v1, not antialiased on tensors": lambda: v1.Compose([v1.PILToTensor(), v1.RandomResizedCrop(32, antialias=None)]),
    "v1, bicubic on tensors": lambda: v1.Compose([v1.PILToTensor(), v1.RandomResizedCrop(32, interpolation=BICUBIC)]),
    "crops with borders of another kind": lambda: v1.Compose(
        [v1.RandomCrop(32, padding=4, padding_mode="reflect"), v1.ToTensor()]
    ),
    "crops with coloured borders": lambda: v1.Compose([v1.RandomCrop(400, pad_if_needed=True, fill=(1, 2, 3))]),
    "other things": lambda: v1.Compose([v1.Grayscale(3), v1.RandomResizedCrop(32), v1.ToTensor()]),
    "a picture at the end": lambda: v1.Compose([v1.RandomResizedCrop(32), v1.RandomHorizontalFlip()]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_recognised_is_left_alone(name: str) -> None:
    """It is run as written, by the pipeline."""
    assert fuse(UNKNOWN[name]()) is None


def test_steps_are_recognised_by_what_they_are_now() -> None:
    """Whatever was done to them since they were made."""
    crop = v1.RandomResizedCrop(32)
    crop.antialias = False
    assert fuse(v1.Compose([v1.PILToTensor(), crop])) is None


def test_a_normalisation_that_cannot_be_one_is_left_to_torchvision() -> None:
    """Which says what it thinks of it."""
    for mean, std in (
        ([0.5] * 3, [0.0, 1.0, 1.0]),
        ([0.5] * 3, [1e-320] * 3),
        ([float("nan")] * 3, [1.0] * 3),
        ([0.5] * 4, [0.5] * 3),
        ([[0.5] * 3], [[0.5] * 3]),
        ("mean", "std"),
        (None, None),
    ):
        fused = fused_of([v1.RandomResizedCrop(32), v1.ToTensor(), v1.Normalize(mean, std)])
        assert fused.finishing is None


def test_means_may_be_tensors_and_arrays() -> None:
    """Three numbers are three numbers."""
    for make in (tuple, torch.tensor, np.array):
        fused = fused_of([v1.CenterCrop(8), v1.ToTensor(), v1.Normalize(make(MEAN), make(STD))])
        assert fused.finishing is not None
        assert fused.finishing.scale == pytest.approx([1 / (255 * s) for s in STD])
        assert fused.finishing.bias == pytest.approx([-m / s for m, s in zip(MEAN, STD, strict=True)])


def anything() -> list[Any]:
    steps = [step for make in (*FINISHED.values(), *TAILS.values()) for step in make()]
    return [*steps, None, 5, "text", print, object(), nn.Identity(), v1.Compose(None), v2.RandomChoice([v2.Resize(5)])]


@unhurried
@given(st.lists(st.sampled_from(anything()), max_size=6), st.sampled_from([v1.Compose, nn.Sequential, list, tuple]))
def test_nothing_that_fuse_is_given_makes_it_raise(steps: list[Any], into: Any) -> None:
    """It may be anything that a user calls a transform."""
    if into is nn.Sequential:
        steps = [step for step in steps if isinstance(step, nn.Module)]
        fuse(nn.Sequential(*steps))
    else:
        fuse(into(steps))


@unhurried
@given(st.lists(st.sampled_from(anything()), max_size=5), st.sampled_from(["4:2:0", "PNG", "7 by 3"]))
def test_what_is_fused_raises_what_is_raised_as_written(steps: list[Any], kind: str) -> None:
    """A pipeline that cannot work is no reason to do something else."""
    fused = fuse(v1.Compose(steps))
    if fused is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = as_written(v1.Compose(steps), PICTURES[kind], 1)
        except Exception as error:  # noqa: BLE001 # whatever it is
            with pytest.raises(type(error)):
                as_fused(fused, PICTURES[kind], 1)
            return
        made = as_fused(fused, PICTURES[kind], 1)
    assert np.asarray(made).shape == np.asarray(wanted).shape


# In a pipeline.


def members(kind: str = "4:2:0") -> dict[str, bytes]:
    return {"jpg": PICTURES[kind], "cls": b"3"}


def test_a_pipeline_says_what_of_it_is_fused() -> None:
    """Field by field, with the decoder."""
    train = v1.Compose([*FINISHED["train"]()])
    jitter = v1.Compose(TAILS["jitter"]())
    pipeline = Pipeline("a.jpg;a.png b.jpg c.png cls", transforms=[train, jitter, np.asarray, int])
    fused, said = pipeline.fused(TURBO)
    assert said == [
        "a.jpg;a.png: RandomResizedCrop + RandomHorizontalFlip + the client finishes (turbo)",
        "b.jpg: RandomResizedCrop + RandomHorizontalFlip; then as written: ColorJitter + ToTensor (turbo)",
        "c.png: as written",
    ]
    assert pipeline.fused(TURBO, exact=True)[1] == ["a.jpg;a.png: as written", "b.jpg: as written", "c.png: as written"]
    assert fused is not pipeline


def test_the_rows_of_a_fused_pipeline_are_bytes_and_its_fields_say_how_they_are_finished() -> None:
    """Those of the pipeline itself stay what they were."""
    pipeline = Pipeline("jpg cls", transforms=[v1.Compose(FINISHED["train"]()), None])
    fused, _ = pipeline.fused(TURBO)
    seed_generators(1)
    rows = fused(members())
    image, label = fused.specs(rows)
    assert (image.dtype, image.shape, image.channels_last) == ("uint8", (3, 224, 224), True)
    assert len(image.scale) == len(image.bias) == 3
    assert label == FieldSpec("cls", "int64", ())
    seed_generators(1)
    floats = pipeline(members())
    assert pipeline.specs(floats)[0] == FieldSpec("jpg", "float32", (3, 224, 224))
    assert levels_apart(finish(rows[0], Finishing(image.scale, image.bias)), floats[0], Finishing(image.scale)) < 1.01


@pytest.mark.parametrize("arguments", [{"exact": True}, {"decode": "rgb8"}, {"decode": {"jpg": "PIL"}}])
def test_a_pipeline_that_wants_it_otherwise_is_run_as_written(arguments: dict[str, Any]) -> None:
    """``exact``, or a decoder of its own: its transforms get what they were written for."""
    own = Noise()
    pipeline = Pipeline("jpg cls", transforms=[v1.Compose([own]), None], **arguments)
    fused, said = pipeline.fused(TURBO)
    assert said == ["jpg: as written"]
    fused(members())
    assert type(own.seen[0]) is (np.ndarray if arguments.get("decode") == "rgb8" else Image.Image)


def test_an_exact_pipeline_gives_what_torchvision_gives() -> None:
    """To the bit."""
    train = v1.Compose(FINISHED["train"]())
    pipeline, _ = Pipeline("jpg", transforms=[train], exact=True).fused(TURBO)
    seed_generators(9)
    (row,) = pipeline(members())
    assert torch.equal(row, as_written(train, PICTURES["4:2:0"], 9))


def test_members_that_are_no_pictures_are_decoded_as_ever() -> None:
    """Though the field may have pictures too."""
    pipeline, _ = Pipeline("jpg;txt", transforms=[v1.Compose(FINISHED["train"]())]).fused(TURBO)
    with pytest.raises(TypeError):
        pipeline({"txt": b"no picture"})


def test_the_same_picture_gives_the_same_row_whatever_came_before() -> None:
    """A row is a function of the sample and its seed, not of the decoder's past."""
    fused = fused_of(FINISHED["train"]())
    first = as_fused(fused, PICTURES["4:2:0"], 1)
    for data in (PICTURES["CMYK"], b"\xff\xd8\xff", PICTURES["large"][:5000], PICTURES["4:4:0"]):
        with suppress(OSError):
            as_fused(fused, data, 2)
        assert torch.equal(as_fused(fused, PICTURES["4:2:0"], 1), first)


def test_a_large_photograph_of_16_bits_is_pillows_business() -> None:
    """As everything that is no JPEG."""
    buffer = io.BytesIO()
    Image.fromarray((np.arange(90_000, dtype=np.uint16) % 60_000).reshape(300, 300)).save(buffer, "PNG")
    steps = FINISHED["eval"]()
    fused = fused_of(steps)
    assert fused.finishing is not None
    made = finish(as_fused(fused, buffer.getvalue(), 0), fused.finishing)
    assert levels_apart(made, as_written(v1.Compose(steps), buffer.getvalue(), 0), fused.finishing) < 1.01
