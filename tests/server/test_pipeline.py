import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedmill_protocol import limits
from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec
from feedmill_server import Pipeline
from feedmill_server.fields import MissingField
from feedmill_server.pipeline import dtype_name, load

HEAD = "from feedmill_server import Pipeline\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder for pipelines; leave Python as it was before them."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def row(value: Any) -> torch.Tensor:
    """Return what a pipeline makes of a value."""
    (only,) = Pipeline("bin", transforms=[lambda _: value])({"bin": b""})
    return only


# From members to rows.


def test_each_field_is_chosen_decoded_and_transformed() -> None:
    """In the order of the fields, not of the members; None leaves a field as it is."""
    pipeline = Pipeline("png;txt cls json", decode="PIL", transforms=[len, None, lambda value: value["x"]])
    rows = pipeline({"json": b'{"x": 1.5}', "cls": b"3", "txt": b"four", "jpg": b"?"})
    assert [r.dtype for r in rows] == [torch.int64, torch.int64, torch.float32]
    assert [r.item() for r in rows] == [4, 3, 1.5]


def test_without_transforms_members_are_only_decoded() -> None:
    """Numbers and arrays are rows already."""
    rows = Pipeline("cls cls2")({"cls": b"1", "cls2": b"2"})
    assert [r.item() for r in rows] == [1, 2]


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), torch.bfloat16, (2, 3)),
        (np.zeros((2, 3), np.uint16), torch.uint16, (2, 3)),
        (np.zeros((), np.float64), torch.float64, ()),
        (np.int64(3), torch.int64, ()),
        (np.float32(3), torch.float32, ()),
        (True, torch.bool, ()),
        (3, torch.int64, ()),
        (3.5, torch.float32, ()),
        (1j, torch.complex64, ()),
        (np.zeros((0, 4), np.int8), torch.int8, (0, 4)),
    ],
)
def test_tensors_arrays_and_numbers_become_rows(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """With their dtype and shape: a number stays a number."""
    made = row(value)
    assert (made.dtype, tuple(made.shape)) == (dtype, shape)


def test_arrays_need_be_neither_contiguous_nor_writable() -> None:
    """Mirrored, transposed and read-only ones come through without a warning."""
    array = np.arange(6).reshape(2, 3)
    frozen = array.copy()
    frozen.flags.writeable = False
    for value in (array[:, ::-1], array.T, frozen, array[::2]):
        assert row(value).tolist() == value.tolist()


@pytest.mark.parametrize("value", ["text", b"bytes", None, [1, 2], {"a": 1}])
def test_what_cannot_be_batched_is_an_error_that_names_the_field(value: Any) -> None:
    """And says what would do."""
    with pytest.raises(TypeError, match=rf"^field 'bin' ends as {type(value).__name__}, which cannot be batched; end"):
        row(value)


def test_a_missing_member_is_an_error() -> None:
    """It names what was looked for."""
    with pytest.raises(MissingField, match="has no member png or jpg, only cls"):
        Pipeline("png;jpg")({"cls": b"1"})


def test_what_a_transform_raises_comes_through() -> None:
    """The worker makes a report of it."""
    with pytest.raises(ZeroDivisionError):
        Pipeline("cls", transforms=[lambda value: 1 // value])({"cls": b"0"})


def test_the_key_may_be_a_field() -> None:
    """Like a member, decoded already. It is read with any sample."""
    pipeline = Pipeline("__key__ cls", transforms=[int, None])
    assert pipeline.wanted(["png", "cls"]) == ["cls"]
    assert [r.item() for r in pipeline({"__key__": "12", "cls": b"1"})] == [12, 1]


def _doubled(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({**sample, "Twice": 2 * sample["cls"]} for sample in samples)


def test_stages_come_between_decoding_and_fields() -> None:
    """They see all members, and may add some."""
    pipeline = Pipeline("twice cls", pipeline=[_doubled, _doubled], transforms=[lambda value: value + 1, None])
    assert pipeline.wanted(["cls", "txt"]) == ["cls", "txt"]
    assert [r.item() for r in pipeline({"__key__": "a", "cls": b"3", "txt": b"three"})] == [7, 3]


@pytest.mark.parametrize(("factor", "how_many"), [(0, "none"), (2, "more than one")])
def test_of_one_sample_the_stages_make_one(factor: int, how_many: str) -> None:
    """A row of a batch is one sample's."""

    def repeated(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return (sample for sample in samples for _ in range(factor))

    with pytest.raises(ValueError, match=f"^pipeline= made {how_many} of this sample; on a server it must make one"):
        Pipeline("cls", pipeline=repeated)({"__key__": "a", "cls": b"3"})


def test_specs_say_what_every_sample_looks_like() -> None:
    """Name, dtype and shape of each field."""
    pipeline = Pipeline("png;jpg cls", decode=False, transforms=[lambda _: torch.zeros(3, 2, dtype=torch.uint8), len])
    specs = pipeline.specs(pipeline({"jpg": b"", "cls": b"1"}))
    assert specs == (FieldSpec("png;jpg", "uint8", (3, 2)), FieldSpec("cls", "int64", ()))


def test_dtypes_have_the_names_of_the_wire() -> None:
    """Others cannot travel."""
    for name in ITEM_BYTES:
        assert dtype_name(torch.empty(0, dtype=getattr(torch, name))) == name
    with pytest.raises(TypeError, match=r"^a tensor of float8_e5m2 cannot be sent; send one of bool, uint8, "):
        dtype_name(torch.empty(0, dtype=torch.float8_e5m2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fields": ""}, "^fields='': expected 1 to 32"),
        ({"decode": "rgb9"}, "^decode='rgb9': expected an image kind"),
        ({"transforms": [None]}, "^transforms: 1 were given for 2 fields; give one for each field, None where"),
        ({"transforms": [None, 5]}, "^transforms: 5 is neither callable nor None$"),
        ({"batch_size": 0}, "^batch_size=0: expected an integer in 1..65536$"),
        ({"batch_size": limits.BATCH_SAMPLES + 1}, "^batch_size=65537"),
        ({"batch_size": 8.0}, "^batch_size=8.0"),
        ({"batch_size": True}, "^batch_size=True"),
    ],
)
def test_arguments_that_cannot_work_are_errors_of_usage(arguments: dict[str, Any], says: str) -> None:
    """When the pipeline is made, not when the first sample comes."""
    with pytest.raises(UsageError, match=says):
        Pipeline(**{"fields": "jpg cls"} | arguments)


def test_the_presets_are_pipelines() -> None:
    """They load as any other, and two pipelines of one file are told apart."""
    train, digest = load("feedmill_server.imagenet:train")
    evaluate, other = load("feedmill_server.imagenet:evaluate")
    assert train is not evaluate
    assert digest != other
    assert [field.name for field in train.fields] == ["ppm;png;jpg;jpeg", "cls"]


# Loading.


def test_a_pipeline_is_loaded_from_a_file(folder: Path) -> None:
    """Its folder may have modules of its own, and the digest is that of name and file."""
    (folder / "numbers_of_mine.py").write_text("SEVEN = 7\n")
    source = HEAD + "from numbers_of_mine import SEVEN\nTRAIN = Pipeline('cls', batch_size=SEVEN)\n"
    (folder / "pipe.py").write_text(source)
    for reference in ("pipe.py:TRAIN", f"{folder}/pipe.py:TRAIN"):
        pipeline, digest = load(reference)
        assert pipeline.batch_size == 7
        assert digest == hashlib.sha256(b"TRAIN\0" + source.encode()).hexdigest()


def test_a_pipeline_is_loaded_from_a_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python imports it."""
    monkeypatch.syspath_prepend(folder)
    package = folder / "recipes_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small.py").write_text(HEAD + "VAL = Pipeline('cls', batch_size=5)\n")
    pipeline, digest = load("recipes_of_mine.small:VAL")
    assert pipeline.batch_size == 5
    assert digest == hashlib.sha256(b"VAL\0" + (package / "small.py").read_bytes()).hexdigest()


def test_a_file_may_have_dataclasses_and_the_name_of_a_module(folder: Path) -> None:
    """Dataclasses look their module up by name; a file called json.py does not take json's place."""
    (folder / "json.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD + "@dataclass\nclass Crop:\n"
        "    side: int\n    def __call__(self, value: int) -> int:\n        return value + self.side\n"
        "P = Pipeline('cls', transforms=[Crop(4)])\n"
    )
    json = sys.modules["json"]
    pipeline, _ = load("json.py:P")
    assert pipeline({"cls": b"1"})[0].item() == 5
    assert sys.modules["json"] is json


@pytest.mark.parametrize("reference", ["", "pipe.py", "pipe.py:", ":TRAIN", "TRAIN"])
def test_a_reference_names_a_file_or_module_and_a_name(reference: str) -> None:
    """The error says how it is written."""
    with pytest.raises(PipelineError, match=rf"^pipeline '{reference}': expected FILE.py:NAME or module:NAME$"):
        load(reference)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("OTHER = Pipeline('cls')\n", "TRAIN does not exist; pipelines there: OTHER$"),
        ("TRAIN = 5\n", "TRAIN is a int, not a Pipeline; pipelines there: none$"),
        ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(pipe.py, line 4\)$"),
        ("def f():\n    raise KeyError('x')\nf()\n", r"KeyError: 'x' \(pipe.py, line 3\)$"),
        ("TRAIN = Pipeline(\n    'cls', batch_size=0)\n", r"UsageError: batch_size=0: .* \(pipe.py, line 2\)$"),
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .* \(pipe.py, line 4\)$"),
        ("import no_such_module\n", r"ModuleNotFoundError: No module named 'no_such_module' \(pipe.py, line 2\)$"),
        ("\nTRAIN = = 5\n", r"SyntaxError: invalid syntax \(pipe.py, line 3\)$"),
        ("import broken_neighbour\n", r"SyntaxError: .* \(broken_neighbour.py, line 2\) \(pipe.py, line 2\)$"),
    ],
)
def test_an_error_in_the_users_file_names_the_line(folder: Path, source: str, says: str) -> None:
    """That of the user's file, wherever below it the error was raised."""
    (folder / "broken_neighbour.py").write_text("\n)\n")
    (folder / "pipe.py").write_text(HEAD + source)
    with pytest.raises(PipelineError, match=r"^pipeline pipe.py:TRAIN: " + says):
        load("pipe.py:TRAIN")


def test_an_error_in_the_users_module_names_the_line_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import system's own lines help nobody."""
    monkeypatch.syspath_prepend(folder)
    (folder / "recipe_of_mine.py").write_text(HEAD + "\n[][0]\n")
    with pytest.raises(PipelineError, match=r": IndexError: list index out of range \(recipe_of_mine.py, line 3\)$"):
        load("recipe_of_mine:TRAIN")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("missing.py:P", r"FileNotFoundError: there is no file \S+/missing.py$"),
        (".:P", "TypeError|ValueError|ModuleNotFoundError"),
        ("no_such_module:P", "ModuleNotFoundError: No module named 'no_such_module'$"),
        ("sys:path", "AttributeError"),
        ("json:loads", "loads is a function, not a Pipeline; pipelines there: none$"),
    ],
)
def test_what_cannot_be_found_is_an_error(folder: Path, reference: str, says: str) -> None:
    """Files, modules and names."""
    with pytest.raises(PipelineError, match=says):
        load(reference)


def test_the_package_has_nothing_but_the_pipeline() -> None:
    """It is imported when it is asked for; other names are errors as usual."""
    import feedmill_server

    with pytest.raises(AttributeError, match="module 'feedmill_server' has no attribute 'Pipelines'"):
        feedmill_server.Pipelines  # noqa: B018
