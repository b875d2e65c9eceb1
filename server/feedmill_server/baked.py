"""Baked samples: the rows of a pipeline as ``feedmill bake`` stores them, and the pipeline that serves them.

An array goes from its file into its batch in one copy, and nothing is decoded. What a trainer has yet to do (to float,
normalise) stands in a description beside the shards, JSON, with dtypes and shapes: ``--pipeline train.json``.

The rule of this file: a row is what was baked, to the bit (JPEG aside), or an error; and a description runs no code.
"""

import copy
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from PIL import Image

from feedmill_protocol import limits, schema, tenbin
from feedmill_protocol.errors import PipelineError, ProtocolError, UsageError
from feedmill_protocol.messages import check_field
from feedmill_protocol.tensors import FieldSpec, align

from .fields import Field
from .fusion import Finishing, Fused
from .jpeg import Backend
from .phases import Phase
from .pipeline import Pipeline
from .stores import Opened

__all__ = ["FORMATS", "Baked", "Form", "describe", "forms", "load"]

FORMATS: Final = ("npy", "ten", "jpg")
"""How pictures may be stored: as NumPy's or tensorcom's arrays, or encoded again."""

_TEXT: Final = schema.text(limits.NAME_BYTES)


class Form(Protocol):
    """How the rows of one field are stored: as members with an ``extension``, of rows that ``spec`` describes."""

    spec: FieldSpec
    extension: str

    def encode(self, row: torch.Tensor) -> bytes:
        """Return the member that holds a row."""

    def read(self, shard: Opened, offset: int, size: int, row: torch.Tensor | None, backend: Backend) -> torch.Tensor:
        """Return the row that a member holds, in the memory of ``row`` where that saves a copy. Raises ValueError."""


class _Array:
    """A ``.npy`` or ``.ten`` file, C order, of a row as it lies in memory: pictures are HWC, as decoders make them.

    bfloat16, which NumPy lacks, is stored as uint16.
    """

    def __init__(self, spec: FieldSpec, extension: str) -> None:
        self.spec = spec
        self.extension = extension
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._shape = (*spec.shape[1:], spec.shape[0]) if spec.channels_last else spec.shape
        stored = np.dtype("<u2") if spec.dtype == "bfloat16" else np.dtype(spec.dtype).newbyteorder("<")
        frame = _ten_frame if extension.endswith("ten") else _npy_frame
        self._head, self._tail = frame(stored, self._shape)
        self._bytes = len(self._head) + spec.rows(1).nbytes + len(self._tail)

    def encode(self, row: torch.Tensor) -> bytes:
        return self._head + bytes(self._memory(row)) + self._tail

    def read(self, shard: Opened, offset: int, size: int, row: torch.Tensor | None, _backend: Backend) -> torch.Tensor:
        head, tail = bytearray(len(self._head)), bytearray(len(self._tail))
        if row is None:
            row = torch.empty(self._shape, dtype=self._dtype)
            row = row.permute(2, 0, 1) if self.spec.channels_last else row
        if size == self._bytes:
            shard.read_into(offset, memoryview(head), self._memory(row), memoryview(tail))
        if size != self._bytes or head != self._head or tail != self._tail:
            raise ValueError(
                f"the member {self.extension} is not the array of {self.spec.dtype} {list(self._shape)} that was baked"
            )
        return row

    def _memory(self, row: torch.Tensor) -> memoryview:
        lying = row.permute(1, 2, 0) if self.spec.channels_last else row
        return lying.reshape(-1).view(torch.uint8).numpy().data


class _Number:
    """An int64, in decimal, as labels are in WebDataset's shards."""

    def __init__(self, spec: FieldSpec, extension: str) -> None:
        self.spec = spec
        self.extension = extension

    def encode(self, row: torch.Tensor) -> bytes:
        return b"%d" % row.item()

    def read(self, shard: Opened, offset: int, size: int, _row: torch.Tensor | None, _backend: Backend) -> torch.Tensor:
        return torch.tensor(int(shard.read(offset, size)))


class _Jpeg:
    """A picture, uint8 [3, H, W], encoded again."""

    def __init__(self, spec: FieldSpec, extension: str, quality: int = 0) -> None:
        self.spec = spec
        self.extension = extension
        self._quality = quality
        self._decode = Fused(None, None, (), Finishing(), torch.as_tensor, (), "")

    def encode(self, row: torch.Tensor) -> bytes:
        file = io.BytesIO()
        Image.fromarray(row.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=self._quality)
        return file.getvalue()

    def read(self, shard: Opened, offset: int, size: int, _row: torch.Tensor | None, backend: Backend) -> torch.Tensor:
        pixels: torch.Tensor = self._decode(shard.read(offset, size), backend)
        return pixels


class Baked(Pipeline):
    """The pipeline of baked shards: the rows of ``stored`` fields, as they are. Made by `load`."""

    def __init__(self, stored: Sequence[Form], batch_size: int) -> None:
        super().__init__([form.extension for form in stored], decode=False, batch_size=batch_size)
        self.fields = tuple(Field(form.spec.name, (form.extension,)) for form in stored)
        self._stored = stored

    def fused(self, backend: Backend, *, exact: bool = False) -> tuple[Self, list[str]]:  # noqa: ARG002 # it always is
        """Return this pipeline on a decoder, and say how its fields are stored: there are no transforms to run."""
        pipeline = copy.copy(self)
        pipeline._backend = backend  # noqa: SLF001 # a copy of this very class
        return pipeline, [f"{form.spec.name}: baked, as {form.extension}" for form in self._stored]

    def sample(
        self, shard: Opened, index: int, _seed: int, rows: Sequence[torch.Tensor | None] | None = None
    ) -> list[torch.Tensor]:
        """Return the rows of one sample. Raises ValueError for what was not baked like the others."""
        if self._backend is None:
            raise RuntimeError("a baked pipeline is fused before it is run")
        members = shard.index.members(index)
        values = []
        for field, form, row in zip(self.fields, self._stored, rows or [None] * len(self.fields), strict=True):
            _, place = field.choose(members)
            values.append(form.read(shard, *place, row, self._backend))
        self.lap(Phase.READ)  # rows go from the file into their places: there is little else
        return values

    def specs(self, rows: Sequence[torch.Tensor]) -> tuple[FieldSpec, ...]:
        """Return what the description says of every row. Raises ValueError where the first sample contradicts it."""
        for form, row in zip(self._stored, rows, strict=True):
            if tuple(row.shape) != form.spec.shape:
                raise ValueError(
                    f"the member {form.extension} has shape {list(row.shape)}, not {list(form.spec.shape)}"
                )
        return tuple(form.spec for form in self._stored)


def forms(specs: Sequence[FieldSpec], pictures: str, quality: int) -> list[Form]:
    """Return how the rows of a stream's fields are stored; ``pictures`` is one of `FORMATS`.

    Raises UsageError where they are to be JPEGs and none can be.
    """
    found: list[Form] = []
    for number, spec in enumerate(specs):
        if (spec.dtype, spec.shape) == ("int64", ()):
            kind = "cls"
        else:
            kind = pictures if pictures != "jpg" or _is_picture(spec) else "npy"
        *stem, _ = spec.name.partition(";")[0].lower().split(".")  # input.png becomes input.npy
        extension = ".".join([*stem, kind])
        if extension in {form.extension for form in found}:
            extension = f"{number}.{kind}"
        found.append(_form(spec, extension, quality))
    if pictures == "jpg" and not any(isinstance(form, _Jpeg) for form in found):
        shown = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
        raise UsageError(f"format='jpg': no field is a picture, uint8 [3, H, W], but {shown}; use 'npy'")
    return found


def describe(stored: Sequence[Form], batch_size: int) -> dict[str, Any]:
    """Return what `load` needs to know, as JSON."""
    return {
        "version": 1,
        "batch_size": batch_size,
        "fields": [asdict(form.spec) | {"extension": form.extension} for form in stored],
    }


def load(path: str) -> tuple[Baked, str]:
    """Return the pipeline that a description stands for, and its digest. Raises PipelineError."""
    try:
        data = Path(path).read_bytes()
        match json.loads(data):
            case {"version": 1, "batch_size": int(batch_size), "fields": [_, *_] as fields}:
                return Baked([_read_form(field) for field in fields], batch_size), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise PipelineError(f"pipeline {path}: {error.strerror}; it lies beside the shards that were baked") from None
    except (ValueError, RecursionError, ProtocolError) as error:
        raise PipelineError(f"pipeline {path}: {error}; expected what 'feedmill bake' writes") from None
    raise PipelineError(f"pipeline {path}: not a description of baked shards; expected what 'feedmill bake' writes")


def _read_form(field: Any) -> Form:
    if not isinstance(field, Mapping):
        raise ProtocolError("fields: expected maps")
    values = [field.get(name) for name in ("name", "dtype", "shape", "channels_last", "scale", "bias")]
    return _form(check_field(values, "field"), str(_TEXT(field.get("extension"), "field.extension")))


def _form(spec: FieldSpec, extension: str, quality: int = 0) -> Form:
    kind = extension.rpartition(".")[2]
    if kind in {"npy", "ten"}:
        return _Array(spec, extension)
    if kind == "cls" and (spec.dtype, spec.shape) == ("int64", ()):
        return _Number(spec, extension)
    if kind == "jpg" and _is_picture(spec):
        return _Jpeg(spec, extension, quality)
    raise ValueError(f"{spec.dtype} {list(spec.shape)} cannot be stored as {extension!r}")


def _is_picture(spec: FieldSpec) -> bool:
    return spec.dtype == "uint8" and len(spec.shape) == 3 and spec.shape[0] == 3


def _npy_frame(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return what a .npy file, version 1.0, has before an array's elements and behind them.

    Not by NumPy, whose releases pad it differently.
    """
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(10 + len(text) + 1) % limits.ALIGNMENT
    line = (text + " " * padding + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line, b""


def _ten_frame(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return what a .ten file has before an array's elements and behind them."""
    array = np.zeros(shape, dtype)
    file, elements = tenbin.dumps([array]), align(array.nbytes)
    return file[: len(file) - elements], bytes(elements - array.nbytes)
