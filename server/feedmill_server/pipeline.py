"""The pipeline: from the members of a sample to its row of every field.

Written in webloader's words. A pipeline is loaded from the server's own Python, never from the network, runs in the
workers, and is a pure function of the sample and its seed as far as its transforms draw from the seeded generators.
"""

import copy
import hashlib
import importlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec

from .decode import Decode, decoder, is_image
from .fields import Field, parse
from .fusion import Finishing, Fused, fuse
from .jpeg import Backend
from .phases import Lap, Phase, untimed
from .randomness import seed_generators
from .stores import Opened

__all__ = ["KEY", "Pipeline", "Stage", "Transform", "load", "row"]

Transform = Callable[[Any], Any]

Stage = Callable[[Iterator[dict[str, Any]]], Iterable[dict[str, Any]]]
"""A function from samples to samples: dicts of decoded members by extension, and ``__key__``."""

KEY: Final = "__key__"
"""Under which a sample has its key."""


class Pipeline:
    """Fields, how to decode them, what to make of them, and how many make a batch.

    ``fields`` names the members of a sample ("ppm;png;jpg cls"), ``decode`` says how they become objects ("PIL" makes
    Pillow images in RGB; other members have their natural form), ``transforms`` holds one callable or None for each
    field. What comes out of the last one must be a tensor, an array or a number, of the same dtype and shape for every
    sample. ``pipeline`` is a `Stage`, or a list of them, through which samples go, with all their members decoded,
    before the fields are taken; on a server, of one sample it must make one. ``batch_size`` is what clients get unless
    they ask for another. ``exact`` runs everything as written, where otherwise the usual image transforms are
    recognised and run faster (`feedmill_server.fusion`), to the same result up to 1/255.
    """

    def __init__(
        self,
        fields: str | Sequence[str],
        *,
        decode: Decode = "PIL",
        transforms: Sequence[Transform | None] | None = None,
        pipeline: Stage | Sequence[Stage] | None = None,
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
        self.stages: tuple[Stage, ...] = _stages(pipeline)
        self.batch_size = integer("batch_size", batch_size, 1, limits.BATCH_SAMPLES)
        self.exact = exact
        self.lap: Lap = untimed
        self._fused: list[Fused | None] = [None] * len(self.fields)
        self._backend: Backend | None = None

    def fused(self, backend: Backend, *, exact: bool = False) -> tuple[Self, list[str]]:
        """Return this pipeline with what is recognised of its image transforms on a fast decoder; and say what was.

        An ``exact`` pipeline stays as written, and so does one whose ``decode`` is anything but "PIL", or that has
        stages.
        """
        exact = exact or self.exact or not self._images_as_pil or bool(self.stages)
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

    def wanted(self, extensions: Iterable[str]) -> list[str]:
        """Return which members of a sample are to be read. Raises MissingField."""
        if self.stages:
            return list(extensions)
        present = dict.fromkeys([KEY, *extensions])
        return [chosen for field in self.fields if (chosen := field.choose(present)[0]) != KEY]

    def __call__(
        self, members: Mapping[str, Any], rows: Sequence[torch.Tensor | None] | None = None
    ) -> list[torch.Tensor]:
        """Return the row of every field. Raises whatever decoders and transforms raise.

        Where that saves a copy, a row is made in the memory of its place in ``rows``, and is that tensor.
        """
        values = self.values(members, rows)
        return [row(field.name, value) for field, value in zip(self.fields, values, strict=True)]

    def values(self, members: Mapping[str, Any], rows: Sequence[torch.Tensor | None] | None = None) -> list[Any]:
        """Return what becomes of every field: rows, or what else the last transforms make.

        ``members`` are bytes by extension, and ``__key__``; what is no bytes is taken for decoded already.
        """
        if self.stages:
            return self.extract(_only(self.through(iter([self.decoded(members)]))))
        values = []
        places = rows or [None] * len(self.fields)
        for field, transform, fused, place in zip(self.fields, self._transforms, self._fused, places, strict=True):
            extension, data = field.choose(members)
            if fused and self._backend and is_image(extension) and isinstance(data, bytes):
                value = fused(data, self._backend, place, self.lap)
            else:
                value = self._decoded(extension, data)
                self.lap(Phase.DECODE)
                if transform is not None:
                    value = transform(value)
            self.lap(Phase.TRANSFORM)
            values.append(value)
        return values

    def members(self, shard: Opened, index: int) -> dict[str, Any]:
        """Read what is wanted of sample ``index`` of a shard: bytes by extension, and its key. Raises ShardError."""
        places = shard.index.members(index)
        read = {extension: shard.read(*places[extension]) for extension in self.wanted(places)}
        return {KEY: shard.index.key(index), **read}

    def sample(
        self, shard: Opened, index: int, seed: int, rows: Sequence[torch.Tensor | None] | None = None
    ) -> list[torch.Tensor]:
        """Read sample ``index`` of a shard, and return the row of every field, drawn from ``seed``.

        ``rows`` are as for a call. Raises ShardError, and what a call raises.
        """
        members = self.members(shard, index)
        self.lap(Phase.READ)
        seed_generators(seed)
        return self(members, rows)

    def decoded(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sample with all its members decoded."""
        return {extension: self._decoded(extension, data) for extension, data in members.items()}

    def through(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield what the stages make of samples. Raises PipelineError if that is something else."""
        for stage in self.stages:
            made = stage(samples)
            if not isinstance(made, Iterable):
                raise PipelineError(
                    f"pipeline: {stage!r} made {made!r} of an iterator of samples, and no other iterator"
                )
            samples = iter(made)
        for sample in samples:
            if not isinstance(sample, Mapping):
                raise PipelineError(f"pipeline: made {type(sample).__name__} of samples, which are dicts")
            yield sample

    def extract(self, sample: Mapping[str, Any]) -> list[Any]:
        """Return what becomes of every field of a sample that is decoded already."""
        members = {name.lower(): value for name, value in sample.items()}
        return [
            value if transform is None else transform(value)
            for field, transform in zip(self.fields, self._transforms, strict=True)
            for _, value in [field.choose(members)]
        ]

    @property
    def finishing(self) -> list[Finishing | None]:
        """What is left to do to the pictures of each field, which are uint8 [3, H, W] then; None if nothing is."""
        return [fused.finishing if fused else None for fused in self._fused]

    def _decoded(self, extension: str, data: Any) -> Any:
        return self._decode(extension, data) if isinstance(data, bytes) else data

    def specs(self, rows: Sequence[torch.Tensor]) -> tuple[FieldSpec, ...]:
        """Return what the rows of a sample say of every sample."""
        specs = []
        for field, tensor, finishing in zip(self.fields, rows, self.finishing, strict=True):
            spec = FieldSpec(field.name, dtype_name(tensor), tuple(tensor.shape))
            if finishing is not None:
                spec = replace(spec, channels_last=True, scale=finishing.scale, bias=finishing.bias)
            specs.append(spec)
        return tuple(specs)


def dtype_name(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype as the wire names it. Raises TypeError for one that cannot travel."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise TypeError(f"a tensor of {name} cannot be sent; send one of {', '.join(ITEM_BYTES)}")
    return name


def row(field: str, value: Any) -> torch.Tensor:
    """Return a value of a field as a tensor. Raises TypeError for one that is neither tensor, array nor number."""
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


def _stages(pipeline: Stage | Sequence[Stage] | None) -> tuple[Stage, ...]:
    stages = [] if pipeline is None else pipeline if isinstance(pipeline, (list, tuple)) else [pipeline]
    for stage in stages:
        if not callable(stage):
            raise UsageError(f"pipeline: {stage!r} is no function from an iterator of samples to another")
    return tuple(stages)


def _only(samples: Iterator[dict[str, Any]]) -> dict[str, Any]:
    made = list(itertools.islice(samples, 2))
    if len(made) != 1:
        how_many = "more than one" if made else "none"
        raise ValueError(f"pipeline= made {how_many} of this sample; on a server it must make one of each")
    return made[0]


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
