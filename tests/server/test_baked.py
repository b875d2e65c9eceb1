import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol import tenbin
from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec
from feedmill_server.baked import Form, describe, forms, load
from feedmill_server.jpeg import choose
from feedmill_server.shards import ShardStore
from feedmill_server.writing import ShardWriter

PICTURE = FieldSpec(
    "ppm;png;jpg", "uint8", (3, 5, 7), channels_last=True, scale=(0.1, 0.2, 0.3), bias=(-1.0, 0.0, 1 / 3)
)
LABEL = FieldSpec("cls", "int64", ())
JPEG = choose("pillow")


def rows(spec: FieldSpec, n: int) -> list[torch.Tensor]:
    """Return rows of any bits, lying in memory as those of a batch do."""
    if not spec.rows(n).nbytes:
        return [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)) for _ in range(n)]
    noise = np.random.default_rng(n).integers(0, 2, spec.rows(n).nbytes, np.uint8)
    flat = torch.tensor(noise).view(getattr(torch, spec.dtype))
    if spec.channels_last:
        channels, height, width = spec.shape
        return list(flat.view(n, height, width, channels).permute(0, 3, 1, 2))
    return list(flat.view(n, *spec.shape))


def bake(folder: Path, stored: Sequence[Form], columns: Sequence[Sequence[torch.Tensor]]) -> Path:
    """Write a shard; return it."""
    writer = ShardWriter(f"{folder}/b-%d.tar")
    with writer.making(describe(stored, 16)):
        samples = zip(*columns, strict=True)
        writer.write(
            0, ((f"{i}", {f.extension: f.encode(row) for f, row in zip(stored, sample, strict=True)})
                for i, sample in enumerate(samples))
        )  # fmt: skip
        return writer.path(0)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("shape", [(), (4,), (2, 0), (3, 4, 5)])
@pytest.mark.parametrize("kind", ["npy", "ten"])
def test_a_row_comes_back_to_the_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...], kind: str) -> None:
    """Of every dtype that may travel, made in the batch or by itself."""
    spec = FieldSpec("x", dtype, shape)
    given = rows(spec, 3)
    with ShardStore([bake(tmp_path, forms([spec], kind, 90), [given])]) as store:
        pipeline, _ = load(f"{tmp_path}/b.json")
        pipeline, _ = pipeline.fused(JPEG)
        for i, row in enumerate(given):
            for target in (torch.zeros_like(row), None):
                (found,) = pipeline.sample(store.open(0), i, 0, [target])
                assert found.dtype == row.dtype
                assert torch.equal(found.reshape(-1).view(torch.uint8), row.reshape(-1).view(torch.uint8))
                assert found is target or target is None or (dtype, shape) == ("int64", ())


def test_what_is_left_to_do_is_kept(tmp_path: Path) -> None:
    """Scale and bias to the last bit, and how rows lie in memory; so the client does with them what it always does."""
    given = [rows(PICTURE, 2), [torch.tensor(-5), torch.tensor(2**60)]]
    with ShardStore([bake(tmp_path, forms([PICTURE, LABEL], "npy", 90), given)]) as store:
        pipeline, _ = load(f"{tmp_path}/b.json")
        assert pipeline.batch_size == 16
        pipeline, said = pipeline.fused(JPEG)
        assert said == ["ppm;png;jpg: baked, as npy", "cls: baked, as cls"]
        found = pipeline.sample(store.open(0), 1, 0)
        assert pipeline.specs(found) == (PICTURE, LABEL)
    assert torch.equal(found[0], given[0][1])
    assert found[0].stride() == given[0][1].stride()
    assert found[1] == 2**60


@given(st.sampled_from(sorted(set(ITEM_BYTES) - {"bfloat16"})), st.lists(st.integers(0, 9), max_size=4).map(tuple))
def test_arrays_are_files_that_others_read(dtype: str, shape: tuple[int, ...]) -> None:
    """NumPy, and whoever reads .ten; and their elements are aligned."""
    spec = FieldSpec("x.x", dtype, shape)
    (row,) = rows(spec, 1)
    for kind, read in (("npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False)), ("ten", _load_ten)):
        (form,) = forms([spec], kind, 90)
        if form.extension.endswith("cls"):
            return
        found = read(data := form.encode(row))
        assert (found.dtype, found.shape) == (np.dtype(dtype), shape)
        assert found.tobytes() == row.numpy().tobytes()
        assert kind == "ten" or (len(data) - spec.rows(1).nbytes) % 64 == 0


def _load_ten(data: bytes) -> Any:
    (array,), _ = tenbin.loads(data)
    return array


def test_pictures_may_be_jpegs_again(tmp_path: Path) -> None:
    """Nearly what they were: of one colour, they are off by a few of 255."""
    picture = torch.tensor([200, 100, 50], dtype=torch.uint8).repeat(5, 7, 1).permute(2, 0, 1)
    stored = forms([PICTURE, LABEL], "jpg", 95)
    with ShardStore([bake(tmp_path, stored, [[picture], [torch.tensor(1)]])]) as store:
        assert store.index(0).extensions == ("jpg", "cls")
        pipeline, _ = load(f"{tmp_path}/b.json")
        pipeline, said = pipeline.fused(JPEG)
        assert said[0] == "ppm;png;jpg: baked, as jpg"
        found, label = pipeline.sample(store.open(0), 0, 0)
        assert pipeline.specs([found, label]) == (PICTURE, LABEL)
    assert (found.int() - picture.int()).abs().max() <= 3
    with pytest.raises(UsageError, match=r"no field is a picture, uint8 \[3, H, W\], but cls int64 \[\]; use 'npy'"):
        forms([LABEL], "jpg", 90)


def test_fields_have_members_of_their_own() -> None:
    """Pairs of pictures keep their names; what would be called alike is numbered."""
    specs = [replace(PICTURE, name=name) for name in ("input.png", "target.jpg", "png")] + [LABEL, LABEL]
    specs += [FieldSpec("json", "float32", (4,))]
    extensions = [form.extension for form in forms(specs, "npy", 90)]
    assert extensions == ["input.npy", "target.npy", "npy", "cls", "4.cls", "5.npy"]
    extensions = [form.extension for form in forms(specs, "ten", 90)]
    assert extensions == ["input.ten", "target.ten", "ten", "cls", "4.cls", "5.ten"]


@pytest.mark.parametrize("kind", ["npy", "ten"])
def test_another_array_is_an_error_that_says_what_was_expected(tmp_path: Path, kind: str) -> None:
    """Of another size or kind, or no array; never other numbers under the same name."""
    (form,) = forms([PICTURE], kind, 90)
    sound = form.encode(rows(PICTURE, 1)[0])
    other = sound.replace(b"'|u1'", b"'|i1'").replace(b"u1\0", b"i1\0")
    writer = ShardWriter(f"{tmp_path}/b-%d.tar")
    with writer.making(describe([form], 16)):
        writer.write(0, [("0", {kind: sound + b"1"}), ("1", {kind: other}), ("2", {kind: b""}), ("3", {"png": b""})])
        path = writer.path(0)
    pipeline, _ = load(f"{tmp_path}/b.json")
    pipeline, _ = pipeline.fused(JPEG)
    with ShardStore([path]) as store:
        for i in range(3):
            with pytest.raises(
                ValueError, match=rf"^the member {kind} is not the array of uint8 \[5, 7, 3\] that was baked$"
            ):
                pipeline.sample(store.open(0), i, 0)
        with pytest.raises(LookupError, match=f"has no member {kind}, only png"):
            pipeline.sample(store.open(0), 3, 0)


def test_a_jpeg_of_another_size_is_found_by_the_probe(tmp_path: Path) -> None:
    """As a row of another shape is, later."""
    bake(tmp_path, forms([PICTURE], "jpg", 90), [rows(PICTURE, 1)])
    pipeline, _ = load(f"{tmp_path}/b.json")
    with pytest.raises(ValueError, match=r"the member jpg has shape \[3, 4, 4\], not \[3, 5, 7\]"):
        pipeline.specs([torch.zeros(3, 4, 4)])


def field(**changed: Any) -> dict[str, Any]:
    """Return a field as a description has it, with a change."""
    (one,) = describe(forms([LABEL], "npy", 90), 16)["fields"]
    return {**one, **changed}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "expected what 'feedmill bake' writes"),
        ("[]", "not a description of baked shards"),
        ({"version": 2, "batch_size": 1, "fields": [field()]}, "not a description of baked shards"),
        ({"version": 1, "batch_size": 1, "fields": []}, "not a description of baked shards"),
        ({"version": 1, "batch_size": 0, "fields": [field()]}, "batch_size=0: expected an integer in 1..65536"),
        ({"version": 1, "batch_size": 1, "fields": [5]}, "fields: expected maps"),
        (
            {"version": 1, "batch_size": 1, "fields": [field(dtype="object")]},
            "field.dtype: expected one of bool, uint8",
        ),
        ({"version": 1, "batch_size": 1, "fields": [field(shape=[-1])]}, r"field.shape\[0\]: expected an integer in 0"),
        (
            {"version": 1, "batch_size": 1, "fields": [field(shape=[3, 1, 1], scale=[1.0])]},
            "field: scale and bias are not one n",
        ),
        ({"version": 1, "batch_size": 1, "fields": [field(extension=None)]}, "field.extension: expected a string"),
        ({"version": 1, "batch_size": 1, "fields": [field(extension="exe")]}, r"int64 \[\] cannot be stored as 'exe'"),
        ({"version": 1, "batch_size": 1, "fields": [field(extension="jpg")]}, r"int64 \[\] cannot be stored as 'jpg'"),
        ({"version": 1, "batch_size": 1, "fields": [field(dtype="uint8")]}, r"uint8 \[\] cannot be stored as 'cls'"),
    ],
)
def test_a_description_that_is_none_is_an_error(tmp_path: Path, content: object, says: str) -> None:
    """It names the file and what is wrong with it."""
    path = tmp_path / "b.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PipelineError, match=f"^pipeline {path}: .*{says}"):
        load(str(path))


def test_a_description_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It says where it should be."""
    with pytest.raises(PipelineError, match=r"b.json: No such file or directory; it lies beside the shards"):
        load(str(tmp_path / "b.json"))
