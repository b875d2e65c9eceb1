"""The pipeline: from the members of a sample to its row of every field.

Written in webloader's words. A pipeline is loaded from the server's own Python, never from the network, runs in the
workers, and is a pure function of the sample and its seed as far as its transforms draw from the seeded generators.
"""

import copy
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec

from .decode import Decode, decoder, is_image
from .fields import Field, parse
from .fusion import Fused, fuse
from .jpeg import Backend
from .phases import Lap, Phase, untimed

__all__ = ["Pipeline", "load"]

Transform = Callable[[Any], Any]


class Pipeline:
    """Fields, how to decode them, what to make of them, and how many make a batch.

    ``fields`` names the members of a sample ("ppm;png;jpg cls"), ``decode`` says how they become objects ("PIL" makes
    Pillow images in RGB; other members have their natural form), ``transforms`` holds one callable or None for each
    field. What comes out of the last one must be a tensor, an array or a number, of the same dtype and shape for every
    sample. ``batch_size`` is what clients get unless they ask for another. ``exact`` runs everything as written, where
    otherwise the usual image transforms are recognised and run faster (`feedmill_server.fusion`), to the same result up
    to 1/255.
    """

    def __init__(
        self,
        fields: str | Sequence[str],
        *,
        decode: Decode = "PIL",
        transforms: Sequence[Transform | None] | None = None,
        batch_size: int = 64,
        exact: bool = False,
    ) -> None:
        self.fields: tuple[Field, ...] = parse(fields)
        self._images_as_pil = decode is True or str(decode).lower() == "pil"
        self._decode = decoder(decode)
        self._transforms = list(transforms) if transforms is not None else [None] * len(self.fields)
        if len(self._transforms) != len(self.fields):
            raise UsageError(
                f"transforms: {len(self._transforms)} were given for {len(self.fields)} fields; give one for "
                "each field, None where a field stays as it is"
            )
        for transform in self._transforms:
            if transform is not None and not callable(transform):
                raise UsageError(f"transforms: {transform!r} is neither callable nor None")
        self.batch_size = integer("batch_size", batch_size, 1, limits.BATCH_SAMPLES)
        self.exact = exact
        self.lap: Lap = untimed
        self._fused: list[Fused | None] = [None] * len(self.fields)
        self._backend: Backend | None = None

    def fused(self, backend: Backend, *, exact: bool = False) -> tuple[Self, list[str]]:
        """Return this pipeline with what is recognised of its image transforms on a fast decoder; and say what was.

        An ``exact`` pipeline stays as written, and so does one whose ``decode`` is anything but "PIL".
        """
        exact = exact or self.exact or not self._images_as_pil
        found: list[Fused | None] = []
        said = []
        for field, transform in zip(self.fields, self._transforms, strict=True):
            is_picture = transform is not None and any(is_image(extension) for extension in field.extensions)
            fused = fuse(transform) if is_picture and not exact else None
            found.append(fused)
            if is_picture:
                said.append(f"{field.name}: " + (f"{fused.description} ({backend.name})" if fused else "as written"))
        pipeline = copy.copy(self)
        vars(pipeline).update(_fused=found, _backend=backend)
        return pipeline, said

    def __call__(
        self, members: Mapping[str, bytes], rows: Sequence[torch.Tensor | None] | None = None
    ) -> list[torch.Tensor]:
        """Return the value of every field. Raises whatever decoders and transforms raise.

        Where that saves a copy, a value is made in the memory of its row of ``rows``, and is that row.
        """
        self.lap(Phase.READ)
        values = []
        places = rows or [None] * len(self.fields)
        for field, transform, fused, row in zip(self.fields, self._transforms, self._fused, places, strict=True):
            extension, data = field.choose(members)
            if fused is not None and self._backend is not None and is_image(extension):
                value = fused(data, self._backend, row, self.lap)
            else:
                value = self._decode(extension, data)
                self.lap(Phase.DECODE)
                if transform is not None:
                    value = transform(value)
            self.lap(Phase.TRANSFORM)
            values.append(_tensor(field.name, value))
        return values

    def specs(self, rows: Sequence[torch.Tensor]) -> tuple[FieldSpec, ...]:
        """Return what the rows of a sample say of every sample."""
        specs = []
        for field, row, fused in zip(self.fields, rows, self._fused, strict=True):
            spec = FieldSpec(field.name, dtype_name(row), tuple(row.shape))
            if fused is not None and fused.finishing is not None:
                spec = replace(spec, channels_last=True, scale=fused.finishing.scale, bias=fused.finishing.bias)
            specs.append(spec)
        return tuple(specs)


def dtype_name(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype as the wire names it. Raises TypeError for one that cannot travel."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise TypeError(f"a tensor of {name} cannot be sent; send one of {', '.join(ITEM_BYTES)}")
    return name


def _tensor(field: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        # What torch takes without a copy or a warning; unlike ascontiguousarray, it leaves a number a number.
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, (bool, int, float, complex)):
        return torch.tensor(value)
    raise TypeError(
        f"field {field!r} ends as {type(value).__name__}, which cannot be batched; end its transforms with a tensor, "
        "an array or a number (ToTensor() for images)"
    )


def load(reference: str) -> tuple[Pipeline, str]:
    """Load ``FILE.py:NAME`` or ``module:NAME``; return the pipeline and a digest of its name and its file.

    Raises PipelineError when that fails in any way.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise PipelineError(f"pipeline {reference!r}: expected FILE.py:NAME or module:NAME")
    try:
        module, path = _import(source)
    except (Exception, SystemExit) as error:
        raise PipelineError(f"pipeline {reference}: {_describe(error)}") from error
    pipeline = getattr(module, name, None)
    if not isinstance(pipeline, Pipeline):
        known = ", ".join(n for n, v in vars(module).items() if isinstance(v, Pipeline)) or "none"
        what = "does not exist" if not hasattr(module, name) else f"is a {type(pipeline).__name__}, not a Pipeline"
        raise PipelineError(f"pipeline {reference}: {name} {what}; pipelines there: {known}")
    return pipeline, hashlib.sha256(name.encode() + b"\0" + path.read_bytes()).hexdigest()


def _import(source: str) -> tuple[Any, Path]:
    if not source.endswith(".py"):
        module = importlib.import_module(source)
        return module, Path(str(module.__file__))
    path = Path(source).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module, path


def _describe(error: BaseException) -> str:
    """Say what went wrong, and in which line of the user's file."""
    # The first frame that is neither ours nor the import system's is the user's; deeper ones may be a library's.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in {__file__, importlib.__file__} and not frame.filename.startswith("<frozen")
    ]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    place = f" ({Path(frames[0].filename).name}, line {lines[-1]})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
