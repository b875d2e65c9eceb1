"""WebLoader: what webloader promised, and that it gives what a feed gives. The counts are webloader's own tests'."""

import io
import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import feedmill as wl
from feedmill_protocol.errors import SampleError, ShardError, UsageError
from feedmill_server import imagenet
from feedmill_server.randomness import seed_generators
from integration.epochs import TIMEOUT
from integration.fleet import Data, Fleet, png
from integration.loaders import COMPOSED, Sample, equal, labels, write
from integration.pipelines import PNG
from shardmaker import write_tar

N = 47


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the shard that most tests read."""
    return write(tmp_path_factory.mktemp("shard") / "pictures.tar", N)


# What webloader's tests expect.


def test_the_seeds_cells_give_the_seeds_shapes_and_dtypes(shard: str) -> None:
    """float32 [32, 3, 224, 224] and int64 [32]."""
    crop = transforms.Compose([transforms.RandomResizedCrop(224), *COMPOSED.transforms[1:]])
    training = wl.WebLoader(
        shard,
        1000000,
        decode="PIL",
        fields="ppm;png;jpg cls",
        transforms=[crop, None],
        converters="torch",
        batch_size=32,
    )
    images, classes = next(iter(training))
    assert (images.shape, images.dtype) == ((32, 3, 224, 224), torch.float32)
    assert (classes.shape, classes.dtype) == ((32,), torch.int64)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("batches", [40, 80, 120, 160])
def test_single_samples_come_as_often_as_asked_for_and_as_there_are(shard: str, epochs: int, batches: int) -> None:
    """The smaller of the two, and that is what len says."""
    loader = wl.WebLoader(shard, batches, epochs=epochs, fields="__key__ ppm;jpg;jpeg;png cls")
    assert len(loader) == sum(1 for _ in loader) == min(batches, epochs * N)


@pytest.mark.parametrize(
    ("options", "batches", "samples"),
    [
        ({"batches": 5}, 5, 47),
        ({"batches": 5, "partial_batches": False}, 4, 40),
        ({"batches": 10, "epochs": 2}, 10, 94),
        ({"batches": 3}, 3, 30),
        ({"batches": 0}, 0, 0),
        ({"epochs": 0}, 0, 0),
    ],
)
def test_batches_have_their_size_but_the_last_of_an_epoch(
    shard: str, options: dict[str, Any], batches: int, samples: int
) -> None:
    """Which is left out on demand."""
    loader = wl.WebLoader(shard, fields="__key__ png cls", tensor_batches=False, batch_size=10, **options)
    sizes = [len(batch[0]) for batch in loader]
    assert (len(sizes), sum(sizes)) == (batches, samples)
    assert len(loader) == batches


def test_the_same_shard_three_times_gives_three_times_its_samples(shard: str) -> None:
    """A list means what it says."""
    loader = wl.WebLoader([shard] * 3, 10000, fields="cls", batch_size=10)
    assert labels(loader) == list(range(N)) * 3


def test_two_passes_over_an_unshuffled_loader_are_equal(shard: str) -> None:
    """Also when the first was broken off."""
    loader = wl.WebLoader(shard, 90, fields="png cls")
    assert equal(list(islice(loader, 10)), list(islice(loader, 10)))


def test_without_fields_samples_are_dicts(shard: str) -> None:
    """With their key, and all members decoded."""
    sample = next(iter(wl.WebLoader(shard, 90)))
    assert sample.keys() == {"__key__", "png", "cls", "txt", "json"}
    assert (sample["__key__"], sample["cls"], sample["txt"], sample["json"]) == ("000", 0, "number 0", {"half": 0.0})
    assert isinstance(sample["png"], np.ndarray)
    assert (sample["png"].shape, sample["png"].dtype) == ((60, 40, 3), np.float32)


def test_without_fields_batches_are_dicts_of_columns(shard: str) -> None:
    """Numbers make an array; what cannot be stacked is a list."""
    batch = next(iter(wl.WebLoader(shard, batch_size=3, tensor_batches=False)))
    assert isinstance(batch, dict)
    assert batch["__key__"] == ["000", "001", "002"]
    assert batch["cls"].tolist() == [0, 1, 2]
    assert batch["txt"] == ["number 0", "number 1", "number 2"]
    assert [array.shape for array in batch["png"]] == [(60, 40, 3), (60, 41, 3), (60, 42, 3)]


@pytest.mark.parametrize("converters", ["torch", wl.totorch(), [wl.totorch(), None], ["torch", "torch"]])
def test_converters_make_tensors_of_arrays(shard: str, converters: Any) -> None:
    """Channels come first."""
    loader = wl.WebLoader(
        shard, fields="png cls", transforms=[lambda a: a[:40, :40], None], converters=converters, batch_size=32
    )
    images, classes = next(iter(loader))
    assert (images.shape, images.dtype) == ((32, 3, 40, 40), torch.float32)
    assert classes.tolist() == list(range(32))
    assert isinstance(classes, torch.Tensor) == (converters != [wl.totorch(), None] and None not in _listed(converters))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_without_converters_arrays_and_numbers_are_arrays_and_tensors_are_tensors(shard: str) -> None:
    """A batch has what its samples have."""
    loader = wl.WebLoader(
        shard,
        fields="png png cls",
        transforms=[lambda a: a[:8, :8], lambda a: torch.tensor(a[:8, :8]), None],
        batch_size=5,
    )
    array, tensor, classes = next(iter(loader))
    assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float32, (5, 8, 8, 3))
    assert (type(tensor), tensor.dtype, tensor.shape) == (torch.Tensor, torch.float32, (5, 8, 8, 3))
    assert (type(classes), classes.dtype, classes.tolist()) == (np.ndarray, np.int64, [0, 1, 2, 3, 4])


# Order.


def test_without_shuffling_samples_come_in_the_order_of_the_shards(data: Data) -> None:
    """Epoch after epoch."""
    numbers = [str(path) for path in data["slow"].shards]
    assert labels(wl.WebLoader(numbers, epochs=2, fields="cls", batch_size=8)) == [*range(100)] * 2


def test_shards_alone_can_be_shuffled(tmp_path: Path) -> None:
    """Each stays as it is; every epoch has another order."""
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{n}", {"cls": b"%d" % (10 * shard + n)}) for n in range(10)])
    loader = wl.WebLoader(f"{tmp_path}/{{0..7}}.tar", fields="cls", batch_size=10, shardshuffle=True)
    first, second = labels(loader), labels(loader)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(80))
        assert all(epoch[i : i + 10] == list(range(epoch[i], epoch[i] + 10)) for i in range(0, 80, 10))
    assert list(range(80)) != first != second


def test_samples_are_shuffled_within_as_many_shards_as_hold_so_many(tmp_path: Path) -> None:
    """With their shards; and the seed decides."""
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{n}", {"cls": b"%d" % (10 * shard + n)}) for n in range(10)])

    def epoch(**options: Any) -> list[int]:
        return labels(wl.WebLoader(f"{tmp_path}/*.tar", fields="cls", batch_size=20, **options))

    shuffled = epoch(shuffle=15)
    assert sorted(shuffled) == list(range(80))
    for i in range(0, 80, 20):  # windows of two shards
        assert len({label // 10 for label in shuffled[i : i + 20]}) == 2
        assert shuffled[i : i + 20] != sorted(shuffled[i : i + 20])
    assert epoch(shuffle=15) == shuffled != epoch(shuffle=15, seed=1)
    assert len({label // 10 for label in epoch(shuffle=1000)[:20]}) > 2
    within = epoch(shuffle=15, shardshuffle=False)
    assert within != list(range(80))
    assert [sorted(within[i : i + 20]) for i in range(0, 80, 20)] == [list(range(i, i + 20)) for i in range(0, 80, 20)]


def test_parts_share_the_batches(shard: str) -> None:
    """Every sample comes once, and all parts have as many batches; full ones, on demand."""
    full = [
        wl.WebLoader(shard, fields="cls", batch_size=1, subset=(part, 3), partial_batches=False) for part in range(3)
    ]
    assert [len(part) for part in full] == [len(labels(part)) for part in full] == [15, 15, 15]
    parts = [wl.WebLoader(shard, fields="cls", batch_size=4, subset=(part, 3), shuffle=100) for part in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(label for part in parts for label in labels(part)) == list(range(N))


# The same code as servers.


def test_the_trainers_random_numbers_are_those_without_a_loader(shard: str) -> None:
    """Each sample draws from its own seed, and leaves the generators as they were."""

    def drawn() -> list[float]:
        return [random.random(), float(torch.rand(())), float(np.random.rand())]  # noqa: NPY002

    seed_generators(5)
    before = [drawn() for _ in range(3)]
    seed_generators(5)
    during = [drawn() for _ in wl.WebLoader(shard, 3, fields="png cls", transforms=[COMPOSED, None], decode="PIL")]
    assert during == before


@pytest.mark.parametrize("stream", ["pictures", "pictures-exact", "colours"])
def test_a_loader_and_a_feed_give_the_same_tensors(data: Data, fleet: Fleet, stream: str) -> None:
    """For the same seed, to the bit: fused or not, floats or bytes that are finished."""
    written = PNG if stream == "colours" else imagenet.train
    loader = wl.WebLoader(
        [str(path) for path in data[stream].shards],
        epochs=2,
        fields=[field.name for field in written.fields],
        batch_size=data[stream].batch_size,
        shuffle=1000,
        decode="rgb8" if stream == "colours" else "PIL",
        transforms=written._transforms,
        converters="torch",
        seed=3,
        exact=stream.endswith("exact"),
    )
    with wl.connect(fleet["two"], stream, seed=3, timeout=TIMEOUT) as feed:
        expected = [list(batch) for _ in range(2) for batch in feed]
    assert equal(list(loader), expected)


# Decoding.


@pytest.mark.parametrize(
    ("decode", "shape", "dtype"),
    [
        (True, (60, 40, 3), np.float32),
        ("rgb", (60, 40, 3), np.float32),
        ("rgb8", (60, 40, 3), np.uint8),
        ("l8", (60, 40), np.uint8),
        ("rgba", (60, 40, 4), np.float32),
        ("torchrgb", (3, 60, 40), torch.float32),
        ("torchrgb8", (3, 60, 40), torch.uint8),
        ("torchl", (1, 60, 40), torch.float32),
        ("torchrgba8", (4, 60, 40), torch.uint8),
    ],
)
def test_images_become_what_decode_says(shard: str, decode: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """True is webloader's "rgb"."""
    image, _ = next(iter(wl.WebLoader(shard, fields="png cls", decode=decode)))
    assert (tuple(image.shape), image.dtype) == (shape, dtype)


def test_decoders_may_be_chosen_by_extension(shard: str) -> None:
    """The rest is decoded as without a choice."""
    decode = {"cls": lambda _, data: float(data), "txt": False}
    image, label, text = next(iter(wl.WebLoader(shard, fields="png cls txt", decode=decode)))
    assert image.dtype == np.float32
    assert (type(label), text) == (float, b"number 0")


# Stages.


def relabel(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Add a field, and draw it."""
    for sample in samples:
        yield {**sample, "Drawn": torch.rand(3), "cls": sample["cls"] + 1000}


def only_even(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Leave out every other sample."""
    return (sample for sample in samples if sample["cls"] % 2 == 0)


def test_a_pipeline_sees_whole_samples_and_may_leave_some_out(shard: str) -> None:
    """Batches are full all the same."""
    loader = wl.WebLoader(shard, fields="cls drawn", batch_size=10, pipeline=[only_even, relabel])
    batches = [classes for classes, _ in loader]
    assert [len(classes) for classes in batches] == [10, 10, 4]
    assert np.concatenate(batches).tolist() == list(range(1000, 1000 + N, 2))


def test_a_pipeline_without_fields_gives_its_dicts(shard: str) -> None:
    """As they come out of it."""
    sample = next(
        iter(wl.WebLoader(shard, pipeline=lambda samples: ({"__key__": s["__key__"], "n": 1} for s in samples)))
    )
    assert sample == {"__key__": "000", "n": 1}


# Any iterable.


def made(n: int) -> list[Sample]:
    """Return samples as a user makes them: bytes, or decoded already."""
    return [
        {"__key__": f"k{i}", "png": png(i) if i % 2 else Image.open(io.BytesIO(png(i))), "cls": i} for i in range(n)
    ]


def test_any_iterable_of_samples_is_a_source() -> None:
    """Bytes are decoded, the rest is taken as it is."""
    options: dict[str, Any] = {
        "fields": "__key__ png cls",
        "transforms": [None, COMPOSED, None],
        "decode": "PIL",
        "batch_size": 3,
    }
    for loader in (wl.WebLoader(made(7), **options), wl.WebLoader(None, source=made(7), **options)):
        assert len(loader) == 3
        keys, images, classes = zip(*loader, strict=True)
        assert keys == (["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6"])
        assert [image.shape[1:] for image in images] == [(3, 32, 32)] * 3
        assert [c.tolist() for c in classes] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_source_may_be_endless() -> None:
    """No more is taken than is asked for."""
    taken = []

    def source() -> Iterator[Sample]:
        for n in count():
            taken.append(n)
            yield {"cls": n}

    loader = wl.WebLoader(source(), 3, fields="cls", batch_size=4)
    assert len(loader) == 3
    assert labels(loader) == list(range(12)) == taken
    assert labels(loader) == list(range(12, 24))


def test_a_source_is_shuffled_in_a_buffer() -> None:
    """Every sample comes once, epochs differ, the seed decides."""
    samples = [{"cls": n} for n in range(100)]

    def two(seed: int) -> tuple[list[int], list[int]]:
        loader = wl.WebLoader(samples, fields="cls", batch_size=10, shuffle=20, seed=seed)
        return labels(loader), labels(loader)

    first, second = two(0)
    assert sorted(first) == sorted(second) == list(range(100))
    assert len({tuple(order) for order in (first, second, *two(1), range(100))}) == 5
    assert all(label < place + 20 + 1 for place, label in enumerate(first))
    assert two(0) == (first, second)


def test_parts_share_the_batches_of_a_source() -> None:
    """In turn."""
    samples = [{"cls": n} for n in range(10)]
    loader = wl.WebLoader(samples, fields="cls", batch_size=2, subset=(1, 2))
    assert labels(loader) == [2, 3, 6, 7]
    assert len(loader) == 2


def test_an_iterator_that_has_ended_is_an_error_not_an_empty_epoch() -> None:
    """The next iteration would be silent."""
    loader = wl.WebLoader(iter([{"cls": 1}]), epochs=2, fields="cls")
    with pytest.raises(UsageError, match=r"^the source has no sample for epoch 1; an iterator ends for good"):
        list(loader)


# What cannot be.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batches": -1}, r"^batches=-1: expected an integer"),
        ({"batch_size": 0}, r"^batch_size=0: "),
        ({"epochs": 1.5}, r"^epochs=1.5: "),
        ({"shuffle": -1}, r"^shuffle=-1: "),
        ({"subset": 3}, r"^subset=3: expected \(part, parts\)$"),
        ({"subset": (2, 2)}, r"^subset, part=2: expected an integer in 0..1$"),
        ({"decode": "rbg"}, r"^decode='rbg': expected an image kind"),
        ({"fields": "png cls", "transforms": [None] * 3}, r"^transforms: 3 were given for the 2 fields png cls$"),
        ({"fields": "png cls", "converters": "tensor"}, r"^converters='tensor': expected one of torch, "),
        ({"converters": "torch"}, r"^transforms, batch_transforms and converters are for fields; say which"),
        ({"fields": "cls", "pipeline": "relabel"}, r"^pipeline: .relabel. is no function"),
        ({"batch_size": 50, "partial_batches": False}, r"^partial_batches=False: 47 samples are no full batch"),
        ({"source": []}, r"^give either urls or source=$"),
        ({"subset": (0, 50), "batch_size": 1}, r"^subset=\(0, 50\): 47 samples cannot be dealt to 50 in equal numbers"),
        ({"fields": 7}, r"^fields=7: expected 1 to 32 fields"),
    ],
)
def test_arguments_that_cannot_work_are_errors_when_the_loader_is_made(
    shard: str, options: dict[str, Any], says: str
) -> None:
    """They name the argument, and say what would work."""
    with pytest.raises(UsageError, match=says):
        wl.WebLoader(shard, **options)


def test_a_shard_that_is_not_there_is_an_error_when_the_loader_is_made() -> None:
    """As it is for a server."""
    with pytest.raises(ShardError, match=r"no-such\.tar"):
        wl.WebLoader("no-such.tar", fields="cls")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fields": "jpg"}, r"sample 000: MissingField: has no member jpg, only png, cls, txt, json$"),
        ({"fields": "cls", "transforms": lambda label: 1 // label}, r"sample 000: ZeroDivisionError: .*test_webloader"),
        (
            {"fields": "png"},
            r"sample 001: field 'png' is float32 \[60, 41, 3\], but the batch begins with .*, 40, 3\]; end",
        ),
        (
            {"fields": "cls", "transforms": lambda label: label or 10**30},
            r"sample 000: \w+: .*(Overflow|overflow)",
        ),
        (
            {"fields": "cls", "transforms": lambda label: label or 0.5},
            r"sample 001: field 'cls' is int64 \[\], but the",
        ),
        ({"pipeline": lambda samples: (1 / s["cls"] for s in samples)}, r"sample 000: ZeroDivisionError: .*test_webl"),
    ],
)
def test_samples_that_cannot_be_made_are_errors_that_name_them(shard: str, options: dict[str, Any], says: str) -> None:
    """Shard, key, and the line of the user's code."""
    with pytest.raises(SampleError, match=r"^shard pictures\.tar, " + says):
        list(wl.WebLoader(shard, batch_size=8, **options))


@pytest.mark.parametrize("samples", [[5], "abc", {"cls": 1}])
def test_what_is_no_sample_is_an_error_that_says_what_is(samples: Any) -> None:
    """A source has dicts."""
    with pytest.raises(UsageError, match=r"^the source gave .*; a sample is a dict of members by extension$"):
        list(wl.WebLoader(None, source=samples, fields="cls"))


@pytest.mark.parametrize(
    ("stage", "says"), [(lambda _: 5, " made 5 of an iterator"), (lambda _: [5], "made int of sam")]
)
def test_what_is_no_stage_is_an_error_of_the_pipeline(shard: str, stage: Any, says: str) -> None:
    """A stage makes dicts of dicts."""
    with pytest.raises(wl.PipelineError, match=f"^pipeline: .*{says}"):
        list(wl.WebLoader(shard, pipeline=stage))


def test_what_a_source_raises_comes_as_it_is() -> None:
    """It is no sample's fault."""

    def source() -> Iterator[Sample]:
        yield {"cls": 1}
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        list(wl.WebLoader(source(), fields="cls"))
